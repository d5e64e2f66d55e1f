# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled half of `runs.py`: messages of a known shape straight into records, and draining libpq.

A message either matches to its last byte and becomes the record that the ordinary path would make, or nothing happens
and the ordinary path, which knows everything, is asked. So nothing here raises for what a message holds.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy

from cdc.digits cimport decimal, hex8
from cdc.errors import DecodeError
from cdc.source.copy_text import NO_LINE, unescaped

cdef extern from "string.h" nogil:
    void *memmem(const void *haystack, size_t haystacklen, const void *needle, size_t needlelen)

cdef enum How:  # what becomes of a value
    CALL, SPLICE, SPLICE_VALUE, TEXT, INTEGER, NUMBER, QUOTED

HOWS = {"call": CALL, "splice": SPLICE, "splice value": SPLICE_VALUE, "text": TEXT, "integer": INTEGER,
        "number": NUMBER, "quoted": QUOTED}

cdef struct Piece:
    const char *at
    Py_ssize_t size
    bint quoted

cdef const char *SCHEMA = b',"schema":"'  # no name can contain it: inside a JSON string its quotes would be escaped
cdef enum:
    SIZES = 12  # bytes before a flat row: three sizes
cdef int HEADER = 25  # 'w', start LSN, end LSN, clock


def drain(get, Py_ssize_t limit, list payloads):
    """XLogData payloads that are here already, up to about `limit` bytes → (bytes, newest LSN heard of, last answer)."""
    cdef Py_ssize_t size = 0, count
    cdef uint64_t newest = 0, heard
    cdef Py_buffer view
    cdef const unsigned char *at
    cdef int i, start
    while size < limit:
        count, data = get(1)
        if count <= 0:
            return size, newest, count
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            at = <const unsigned char *>view.buf
            start = 9 if at[0] == c"w" else 1
            heard = 0
            if view.len >= start + 8:
                for i in range(start, start + 8):
                    heard = heard << 8 | at[i]
            if heard > newest:
                newest = heard
            if at[0] == c"w" and view.len >= HEADER:
                payloads.append(PyBytes_FromStringAndSize(<const char *>at + HEADER, view.len - HEADER))
        finally:
            PyBuffer_Release(&view)
        size += count
    return size, newest, 1


cdef class Layout:
    """How rows of one table become records: the literals around the values, of the key and of the row."""

    cdef readonly object table
    cdef tuple key, key_literals, row_literals

    def __init__(self, table, tuple key_literals, tuple row_literals):
        self.table, self.key = table, tuple(table.key)
        self.key_literals, self.row_literals = key_literals, row_literals


cdef class Target:
    """Where records of one table and source transaction go. `end` closes a value behind the ordinal, `tail` comes
    before it; `position` lacks the ordinal's eight hex digits."""

    cdef list records
    cdef object timestamp, name
    cdef tuple version
    cdef bytes position, tail, end
    cdef public Py_ssize_t rows, room, limit, nbytes
    cdef public long long ordinal

    def __init__(self, tuple headers, timestamp, bytes position, bytes vector, bytes tail, bytes end):
        self.name, self.version = headers[0], (headers[1], vector)
        self.timestamp, self.position = timestamp, position
        self.tail, self.end = tail, end

    def bound(self, list records, long long ordinal, Py_ssize_t rows, Py_ssize_t room, Py_ssize_t limit):
        """Before a run: the list to fill, the last ordinal given, and how much may come."""
        self.records, self.ordinal, self.rows, self.room, self.limit, self.nbytes = records, ordinal, rows, room, limit, 0

    cdef bint add(self, Layout layout, bytes head, Piece *pieces) except -1:
        """The same from pieces."""
        cdef char digits[24]
        cdef int width = decimal(self.ordinal + 1, digits)
        cdef bytes key = _joined(layout.key_literals, pieces, layout.key)
        cdef Py_ssize_t size = _joined_size(layout.row_literals, pieces, None)
        cdef bytes value = self.blank(key, PyBytes_GET_SIZE(head) + size + width)
        if value is None:
            return False
        to = _join(_put(PyBytes_AS_STRING(value), head), layout.row_literals, pieces, None)
        self.close(key, value, to, digits, width)
        return True

    cdef bytes blank(self, bytes key, Py_ssize_t size):
        """A value to write into; None when the record would be too large."""
        size += PyBytes_GET_SIZE(self.tail) + PyBytes_GET_SIZE(self.end)
        return None if size + PyBytes_GET_SIZE(key) > self.limit else PyBytes_FromStringAndSize(NULL, size)

    cdef int close(self, bytes key, bytes value, char *to, char *digits, int width) except -1:
        """Writes what stands behind the row from `to` on, and adds the record."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(value)
        cdef bytes position = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(self.position) + 8)
        to = _put(to, self.tail)
        memcpy(to, digits, width)
        _put(to + width, self.end)
        self.ordinal += 1
        hex8(_put(PyBytes_AS_STRING(position), self.position), self.ordinal)
        self.records.append((key, value, self.timestamp, [(self.name, position), self.version]))
        self.rows -= 1
        self.room -= size
        self.nbytes += size
        return 0


cdef class Run:
    """Messages of one kind: its columns' literals (wal2json) or its relation (pgoutput), and what becomes of values.

    `places` tells each column's index in the table, -1 for one that does not travel; `hows` and `calls` go with them.
    """

    cdef readonly Layout layout
    cdef bytes head
    cdef tuple places, hows, calls
    cdef Piece *pieces
    cdef int columns

    def __cinit__(self, Layout layout, bytes head, tuple places, tuple hows, tuple calls, *rest):
        self.layout, self.head, self.places, self.calls = layout, head, places, calls
        self.hows = tuple(HOWS[how] for how in hows)
        self.columns = len(places)
        self.pieces = <Piece *>malloc(sizeof(Piece) * max(1, len(layout.row_literals) + self.columns))
        if self.pieces is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.pieces)

    def take(self, list payloads, Py_ssize_t start, Target target):
        """Records of the messages from `start` on, up to the first that is not of this kind: the index of that one."""
        cdef bytes payload
        cdef list kept = []
        while start < len(payloads) and target.rows > 0 and target.room > 0:
            payload = payloads[start]
            kept.clear()
            if not self.read(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), kept):
                break
            if not target.add(self.layout, self.head, self.pieces):
                break
            start += 1
        return start

    cdef bint read(self, const char *at, Py_ssize_t size, list kept) except -1:
        raise NotImplementedError

    cdef bint note(self, int column, const char *at, Py_ssize_t size, list kept) except -1:
        """One value into its piece; False when the ordinary way has to look at it."""
        cdef int how = self.hows[column], place = self.places[column]
        cdef Piece *piece
        if place < 0:
            return True
        piece = self.pieces + place
        piece.at, piece.size, piece.quoted = at, size, how == TEXT or how == QUOTED
        if how == SPLICE or (how == SPLICE_VALUE and not _is_null(at, size)) or (how == TEXT and _plain(at, size)):
            return True
        if (how == INTEGER and _digits(at, size, False)) or (how >= NUMBER and _digits(at, size, True)):
            return True
        return how != SPLICE_VALUE and self.call(column, piece, kept)

    cdef bint call(self, int column, Piece *piece, list kept) except -1:
        """By the column's own codec. A mark is no bytes."""
        try:
            fragment = self.calls[column](PyBytes_FromStringAndSize(piece.at, piece.size))
        except DecodeError:
            return False  # the ordinary way says which table it was
        if not PyBytes_CheckExact(fragment):
            return False
        kept.append(fragment)
        piece.at, piece.size, piece.quoted = PyBytes_AS_STRING(fragment), PyBytes_GET_SIZE(fragment), False
        return True


cdef class Wal2jsonRun(Run):
    """`literals`: what stands before each value, and behind the last; from `,"schema":"` on. `old` are the literals of
    an update's identity, `same` the column whose value each has to repeat (-1: any)."""

    cdef tuple literals, old, same

    def __init__(self, Layout layout, bytes head, tuple places, tuple hows, tuple calls, tuple literals, tuple old, tuple same):
        self.literals, self.old, self.same = literals, old, same

    cdef bint read(self, const char *at, Py_ssize_t size, list kept) except -1:
        cdef const char *end = at + size
        cdef const char *value
        cdef int i, same
        at = <const char *>memmem(at, size, SCHEMA, 11)
        if at is NULL:
            return False
        for i in range(self.columns):
            at = _skip(at, end, <bytes>self.literals[i])
            value = at
            if at is NULL or (at := _value_end(at, end)) is NULL or not self.note(i, value, at - value, kept):
                return False
        for i in range(len(self.same)):
            at = _skip(at, end, <bytes>self.old[i])
            value = at
            if at is NULL or (at := _value_end(at, end)) is NULL:
                return False
            same = self.same[i]
            if same >= 0 and not _equal(self.pieces + same, value, at - value):
                return False
        return _skip(at, end, <bytes>self.literals[self.columns]) == end


cdef class PgoutputRun(Run):
    """`start`: the message up to the number of columns, which is all that tells the kind."""

    cdef bytes start

    def __init__(self, Layout layout, bytes head, tuple places, tuple hows, tuple calls, bytes start):
        self.start = start

    cdef bint read(self, const char *at, Py_ssize_t size, list kept) except -1:
        cdef const char *end = at + size
        cdef Piece *piece
        cdef Py_ssize_t length
        cdef int i
        at = _skip(at, end, self.start)
        if at is NULL:
            return False
        for i in range(self.columns):
            if at >= end:
                return False
            if at[0] == c"n":
                at += 1
                if self.places[i] >= 0:
                    piece = self.pieces + <int>self.places[i]
                    piece.at, piece.size, piece.quoted = b"null", 4, False
                continue
            if at[0] != c"t" or end - at < 5:
                return False
            length = _big4(<const unsigned char *>at + 1)
            at += 5
            if length > end - at or not self.note(i, at, length, kept):
                return False
            at += length
        return at == end


cdef class Result(Run):
    """Rows in PostgreSQL's text: of a query's result, or of COPY."""

    cdef char *flat
    cdef Py_ssize_t room

    def __dealloc__(self):
        free(self.flat)

    def rows(self, get, Py_ssize_t count, int version, list rows):
        """Appends `(key, the row's JSON without its braces, the value of the column `version`)` for each row; the last
        is None for version -1. `get(row, column)` gives text or None. The size of all. Raises DecodeError."""
        cdef Py_ssize_t size = 0, row
        cdef bytes key, body
        cdef list kept = []
        cdef int column
        for row in range(count):
            kept.clear()
            for column in range(self.columns):
                text = get(row, column)
                if text is None:
                    self.nothing(column)
                else:
                    kept.append(text)
                    self.value(column, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), kept)
            key = _joined(self.layout.key_literals, self.pieces, self.layout.key)
            body = _joined(self.layout.row_literals, self.pieces, None)
            size += PyBytes_GET_SIZE(body)
            rows.append((key, body, self.piece(version) if version >= 0 else None))
        return size

    def copied(self, get, int version, list pieces):
        """Lines of COPY that are here already, appended to `pieces` as flat rows (kafka/block.py). Returns how many, the
        bytes of the longest key and body, the last line and what `get(1)` said then. Raises DecodeError."""
        cdef Py_ssize_t used = 0, rows = 0, longest = 0, size
        cdef Py_buffer view
        cdef list kept = []
        cdef object last = b""
        while True:
            count, data = get(1)
            if count <= 0:
                break
            kept.clear()
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            try:
                self.line(<const char *>view.buf, view.len, kept)
                size = self.put(used, version)
            finally:
                PyBuffer_Release(&view)
            used += SIZES + size
            if version >= 0:
                used += (<uint32_t *>(self.flat + used - SIZES - size))[2]
            longest = max(longest, size)
            rows += 1
            last = data
        if rows:
            pieces.append(PyBytes_FromStringAndSize(self.flat, used))
        return rows, longest, bytes(last), count

    cdef int line(self, const char *at, Py_ssize_t size, list kept) except -1:
        """Cells to pieces."""
        cdef const char *end = at + size - 1
        cdef const char *stop
        cdef int column
        if size < 1 or end[0] != c"\n":
            raise DecodeError(NO_LINE)
        for column in range(self.columns):
            stop = <const char *>memchr(at, c"\t", end - at)
            if (stop is NULL) != (column == self.columns - 1):
                raise DecodeError(NO_LINE)
            if stop is NULL:
                stop = end
            if stop - at == 2 and at[0] == c"\\" and at[1] == c"N":
                self.nothing(column)
            elif memchr(at, c"\\", stop - at) is NULL:
                self.value(column, at, stop - at, kept)
            else:
                text = unescaped(at[:stop - at])
                kept.append(text)
                self.value(column, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), kept)
            at = stop + 1
        return 0

    cdef Py_ssize_t put(self, Py_ssize_t used, int version) except -1:
        """The pieces as a flat row; the bytes of its key and body."""
        cdef Py_ssize_t key = _joined_size(self.layout.key_literals, self.pieces, self.layout.key)
        cdef Py_ssize_t body = _joined_size(self.layout.row_literals, self.pieces, None), vector = 0
        cdef Piece *piece = self.pieces + version
        cdef uint32_t *sizes
        cdef char *to
        if version >= 0:
            vector = piece.size + 2 * piece.quoted
        self.grow(used + SIZES + key + body + vector)
        sizes = <uint32_t *>(self.flat + used)
        sizes[0], sizes[1], sizes[2] = <uint32_t>key, <uint32_t>body, <uint32_t>vector
        to = _join(self.flat + used + SIZES, self.layout.key_literals, self.pieces, self.layout.key)
        to = _join(to, self.layout.row_literals, self.pieces, None)
        if version >= 0:
            _put(to, self.piece(version))
        return key + body

    cdef int grow(self, Py_ssize_t size) except -1:
        cdef void *flat
        if size > self.room:
            flat = realloc(self.flat, 2 * size)
            if flat is NULL:
                raise MemoryError
            self.flat, self.room = <char *>flat, 2 * size
        return 0

    cdef void nothing(self, int column) noexcept:
        cdef Piece *piece = self.pieces + <int>self.places[column]
        piece.at, piece.size, piece.quoted = b"null", 4, False

    cdef int value(self, int column, const char *at, Py_ssize_t size, list kept) except -1:
        if not self.note(column, at, size, kept):
            self.calls[column](at[:size])  # raises what was wrong
            raise DecodeError("a codec gave no bytes")
        return 0

    cdef bytes piece(self, int place):
        cdef Piece *piece = self.pieces + place
        cdef bytes text = PyBytes_FromStringAndSize(piece.at, piece.size)
        return b'"' + text + b'"' if piece.quoted else text


cdef inline const char *_skip(const char *at, const char *end, bytes literal) noexcept:
    """Behind the literal; NULL when it is not here."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(literal)
    if at is NULL or end - at < size or memcmp(at, PyBytes_AS_STRING(literal), size) != 0:
        return NULL
    return at + size


cdef const char *_value_end(const char *at, const char *end) noexcept:
    """Behind a JSON value as wal2json writes them (RFC 8259 for strings); NULL when it is none."""
    if at == end:
        return NULL
    if at[0] == c'"':
        return _string_end(at + 1, end)
    if at[0] == c"n" or at[0] == c"t":
        return at + 4 if end - at >= 4 and (memcmp(at, b"null", 4) == 0 or memcmp(at, b"true", 4) == 0) else NULL
    if at[0] == c"f":
        return at + 5 if end - at >= 5 and memcmp(at, b"false", 5) == 0 else NULL
    return _number_end(at + 1 if at[0] == c"-" else at, end)


cdef const char *_number_end(const char *at, const char *end) noexcept:
    cdef const char *start = at
    at = _digits_end(at, end)
    if at is NULL or (start[0] == c"0" and at > start + 1):
        return NULL
    if at < end and at[0] == c".":
        at = _digits_end(at + 1, end)
    if at is not NULL and at < end and (at[0] == c"e" or at[0] == c"E"):
        at += 1
        if at < end and (at[0] == c"+" or at[0] == c"-"):
            at += 1
        at = _digits_end(at, end)
    return at


cdef inline const char *_digits_end(const char *at, const char *end) noexcept:
    """Behind one digit or more; NULL when there is none."""
    cdef const char *start = at
    while at < end and c"0" <= at[0] <= c"9":
        at += 1
    return at if at > start else NULL


cdef const char *_string_end(const char *at, const char *end) noexcept:
    cdef int i
    while at < end:
        if at[0] == c'"':
            return at + 1
        if <unsigned char>at[0] < 0x20:
            return NULL
        if at[0] != c"\\":
            at += 1
            continue
        if end - at < 2:
            return NULL
        if at[1] == c"u":
            if end - at < 6:
                return NULL
            for i in range(2, 6):
                if not (c"0" <= at[i] <= c"9" or c"a" <= at[i] <= c"f" or c"A" <= at[i] <= c"F"):
                    return NULL
            at += 6
        elif memchr(b'"\\/bfnrt', at[1], 8) is not NULL:
            at += 2
        else:
            return NULL
    return NULL


cdef inline bint _plain(const char *at, Py_ssize_t size) noexcept:
    """Text that a JSON string holds as it is: ASCII without what has to be escaped."""
    cdef Py_ssize_t i
    for i in range(size):
        if <unsigned char>at[i] < 0x20 or <unsigned char>at[i] >= 0x7F or at[i] == c'"' or at[i] == c"\\":
            return False
    return True


cdef bint _digits(const char *at, Py_ssize_t size, bint fraction) noexcept:
    """`-?[0-9]+`, with `(\\.[0-9]+)?` behind it."""
    cdef const char *end = at + size
    at = _digits_end(at + 1 if size and at[0] == c"-" else at, end)
    if at is not NULL and fraction and at < end and at[0] == c".":
        at = _digits_end(at + 1, end)
    return at == end


cdef inline bint _is_null(const char *at, Py_ssize_t size) noexcept:
    return size == 4 and memcmp(at, b"null", 4) == 0


cdef inline bint _equal(Piece *piece, const char *at, Py_ssize_t size) noexcept:
    return piece.size == size and memcmp(piece.at, at, size) == 0


cdef inline Py_ssize_t _big4(const unsigned char *at) noexcept:
    return <Py_ssize_t>at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3]


cdef inline char *_put(char *to, bytes what) noexcept:
    memcpy(to, PyBytes_AS_STRING(what), PyBytes_GET_SIZE(what))
    return to + PyBytes_GET_SIZE(what)


cdef Py_ssize_t _joined_size(tuple literals, Piece *pieces, tuple chosen) except -1:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(literals[0])
    cdef int i, place
    for i in range(len(literals) - 1):
        place = i if chosen is None else chosen[i]
        size += pieces[place].size + 2 * pieces[place].quoted + PyBytes_GET_SIZE(literals[i + 1])
    return size


cdef bytes _joined(tuple literals, Piece *pieces, tuple chosen):
    cdef bytes joined = PyBytes_FromStringAndSize(NULL, _joined_size(literals, pieces, chosen))
    _join(PyBytes_AS_STRING(joined), literals, pieces, chosen)
    return joined


cdef char *_join(char *to, tuple literals, Piece *pieces, tuple chosen) except NULL:
    """literal, value, literal, value, …, literal; `chosen` are the values' indexes, None for all in order."""
    cdef Piece *piece
    cdef int i
    to = _put(to, <bytes>literals[0])
    for i in range(len(literals) - 1):
        piece = pieces + (i if chosen is None else <int>chosen[i])
        if piece.quoted:
            to[0] = c'"'
            to += 1
        memcpy(to, piece.at, piece.size)
        to += piece.size
        if piece.quoted:
            to[0] = c'"'
            to += 1
        to = _put(to, <bytes>literals[i + 1])
    return to
