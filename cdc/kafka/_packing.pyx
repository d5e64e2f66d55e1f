# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled half of `batch.py`: records into the bytes of a Kafka record batch, and keys to partitions.

Format: Kafka's documentation, "Record Batch" and "Record" (magic 2); murmur2 as in `partitioner.py`.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cdc.digits cimport decimal, hex8

cdef Py_ssize_t FIRST_BYTES = 16 << 10
cdef enum:
    SIZES = 12  # bytes before a flat row: three sizes


cdef struct Room:
    char *data
    Py_ssize_t used, size, limit
    int count
    int64_t first, newest


cdef class Records:
    """Records one behind the other. `limit`: bytes after which no further one is taken; the first always is."""

    cdef Room at

    def __cinit__(self, Py_ssize_t limit):
        self.at.limit, self.at.size = limit, min(limit, FIRST_BYTES)
        self.at.data = <char *>PyMem_RawMalloc(self.at.size)
        if self.at.data is NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_RawFree(self.at.data)

    def __len__(self):
        return self.at.used

    @property
    def count(self):
        """How many."""
        return self.at.count

    @property
    def first_timestamp(self):
        """Of the first one, in ms."""
        return self.at.first

    @property
    def newest_timestamp(self):
        """The largest, in ms."""
        return self.at.newest

    def __getbuffer__(self, Py_buffer *view, int flags):
        """All of them; nothing is to be added while somebody looks."""
        PyBuffer_FillInfo(view, self, self.at.data, self.at.used, True, flags)

    cpdef bint add(self, bytes key, bytes value, int64_t timestamp, headers) except -1:
        """One record; False when it does not fit any more."""
        cdef Py_ssize_t rest = _sized(key) + _sized(value) + _headers_size(headers)
        cdef char *to
        cdef int opened = _open(&self.at, timestamp, rest, &to)
        if opened == 1:
            _put_headers(_put(_put(to, key), value), headers)
        elif opened < 0:
            raise MemoryError
        return opened


cdef int _open(Room *room, int64_t timestamp, Py_ssize_t rest, char **to) noexcept nogil:
    """Begins a record of which `rest` bytes follow, to be written at `to`: 1; 0 when it does not fit, -1 without
    memory."""
    cdef int64_t delta = timestamp - room.first if room.count else 0
    cdef Py_ssize_t body = 1 + _width(delta) + _width(room.count) + rest
    cdef Py_ssize_t size = body + _width(body)
    if room.count and room.used + size > room.limit:
        return 0
    if not _grow(room, size):
        return -1
    if not room.count:
        room.first = room.newest = timestamp
    to[0] = _varint(room.data + room.used, body)
    to[0][0] = 0  # attributes
    to[0] = _varint(_varint(to[0] + 1, delta), room.count)
    room.used += size
    room.count += 1
    room.newest = max(room.newest, timestamp)
    return 1


cdef bint _grow(Room *room, Py_ssize_t more) noexcept nogil:
    """False without memory."""
    cdef Py_ssize_t size = max(room.size, 1)
    cdef void *data
    while size < room.used + more:
        size *= 2
    if size != room.size:
        data = PyMem_RawRealloc(room.data, size)
        if data is NULL:
            return False
        room.data, room.size = <char *>data, size
    return True


def spread(records, list batches, otherwise):
    """Appends each of `(key, value, timestamp in ms, headers)` to the batch of its key's partition; a record whose batch
    is None or full goes to `otherwise(partition, record)`. Batches have their `records`."""
    cdef int count = len(batches), partition
    cdef list open_ = [None if batch is None else batch.records for batch in batches]
    cdef Records into
    cdef bytes key
    for record in records:
        key = record[0]
        partition = (_murmur2(<const unsigned char *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) & 0x7FFFFFFF) % count
        into = open_[partition]
        if into is None or not into.add(key, record[1], record[2], record[3]):
            otherwise(partition, record)
            open_[partition] = batches[partition].records


cdef struct Common:  # of a block's records
    const char *head
    const char *tail
    const char *end
    const char *before  # the headers up to the ordinal, and behind it
    const char *behind
    Py_ssize_t head_size, tail_size, end_size, before_size, behind_size
    int64_t timestamp


cdef struct Span:  # a piece's rows that are still to come
    const char *at
    const char *stop


def pack(block, list batches, otherwise):
    """Appends the records of a block (`block.py`), each to the batch of its key's partition, without the interpreter but
    for those whose batch is None or full, which go to `otherwise(partition, record)`."""
    cdef list pieces = list(block.rows.pieces)
    cdef bytes head = block.head, tail = block.tail, end = block.end
    cdef bytes before = _before(block.names[0].encode(), block.position)
    cdef bytes behind = _behind(block.names[1].encode(), block.vector)
    cdef uint32_t *sizes
    cdef const char *row
    cdef long long ordinal = block.after
    cdef int count = len(batches), partition = 0
    cdef Py_ssize_t number = len(pieces), i = 0
    cdef Common common
    cdef Room **rooms = <Room **>PyMem_RawMalloc(count * sizeof(void *))
    cdef Span *spans = <Span *>PyMem_RawMalloc(max(1, number) * sizeof(Span))
    common.head, common.head_size = head, len(head)
    common.tail, common.tail_size = tail, len(tail)
    common.end, common.end_size = end, len(end)
    common.before, common.before_size = before, len(before)
    common.behind, common.behind_size = behind, len(behind)
    common.timestamp = block.timestamp_ms
    try:
        if rooms is NULL or spans is NULL:
            raise MemoryError
        for i in range(number):
            spans[i].at = PyBytes_AS_STRING(pieces[i])
            spans[i].stop = spans[i].at + len(pieces[i])
        for partition in range(count):
            rooms[partition] = NULL if batches[partition] is None else &(<Records>batches[partition].records).at
        i = 0
        while True:
            with nogil:
                while i < number and _pack(&common, rooms, count, spans + i, &ordinal, &partition):
                    i += 1
            if i == number:
                return
            row, sizes = spans[i].at + SIZES, <uint32_t *>spans[i].at
            ordinal += 1
            otherwise(partition, block.record(row[:sizes[0]], row[sizes[0]:sizes[0] + sizes[1]], ordinal))
            rooms[partition] = &(<Records>batches[partition].records).at
            spans[i].at = row + sizes[0] + sizes[1] + sizes[2]
    finally:
        PyMem_RawFree(rooms)
        PyMem_RawFree(spans)


cdef bytes _before(bytes name, bytes position):
    """Of the headers what comes before the ordinal: their number, a name, the position."""
    cdef char made[40]
    cdef char *to = _varint(_varint(made, 2), len(name))
    cdef bytes first = made[:to - made]
    to = _varint(made, len(position) + 8)
    return first + name + made[:to - made] + position


cdef bytes _behind(bytes name, bytes vector):
    cdef char made[40]
    cdef char *to = _varint(made, len(name))
    cdef bytes first = made[:to - made]
    to = _varint(made, len(vector))
    return first + name + made[:to - made] + vector


cdef bint _pack(
    Common *common, Room **rooms, int count, Span *span, long long *ordinal, int *partition
) noexcept nogil:
    """The rows of a span; False at one whose `partition` does not take it."""
    cdef uint32_t *sizes
    cdef const char *key
    cdef char *to
    cdef char digits[24]
    cdef int width
    cdef Py_ssize_t value, rest
    while span.at < span.stop:
        sizes = <uint32_t *>span.at
        key = span.at + SIZES
        partition[0] = (_murmur2(<const unsigned char *>key, sizes[0]) & 0x7FFFFFFF) % count
        width = decimal(ordinal[0] + 1, digits)
        value = common.head_size + sizes[1] + common.tail_size + width + common.end_size
        rest = _width(sizes[0]) + sizes[0] + _width(value) + value + common.before_size + 8 + common.behind_size
        if rooms[partition[0]] is NULL or _open(rooms[partition[0]], common.timestamp, rest, &to) != 1:
            return False  # also without memory: the other way says so
        ordinal[0] += 1
        to = _copy(_varint(to, sizes[0]), key, sizes[0])
        to = _copy(_varint(to, value), common.head, common.head_size)
        to = _copy(_copy(to, key + sizes[0], sizes[1]), common.tail, common.tail_size)
        to = _copy(_copy(to, digits, width), common.end, common.end_size)
        to = _copy(to, common.before, common.before_size)
        hex8(to, ordinal[0])
        _copy(to + 8, common.behind, common.behind_size)
        span.at = key + sizes[0] + sizes[1] + sizes[2]
    return True


def kept(bytes content, skip):
    """Of flat rows (`block.py`) those whose key is not in `skip`, and how many."""
    cdef const char *at = PyBytes_AS_STRING(content)
    cdef const char *stop = at + PyBytes_GET_SIZE(content)
    cdef const char *start = at
    cdef const char *row
    cdef uint32_t *sizes
    cdef list pieces = []
    cdef int count = 0
    while at < stop:
        row, sizes = at, <uint32_t *>at
        at += SIZES + sizes[0] + sizes[1] + sizes[2]
        if row[SIZES:SIZES + sizes[0]] in skip:
            pieces.append(start[:row - start])
            start = at
        else:
            count += 1
    pieces.append(start[:stop - start])
    return b"".join(pieces), count


cdef inline char *_copy(char *to, const char *what, Py_ssize_t size) noexcept nogil:
    memcpy(to, what, size)
    return to + size


cdef uint32_t _murmur2(const unsigned char *at, Py_ssize_t size) noexcept nogil:
    cdef uint32_t factor = 0x5BD1E995, value = 0x9747B28Cu ^ <uint32_t>size, word
    cdef Py_ssize_t whole = size & ~3, i
    for i in range(0, whole, 4):
        word = at[i] | <uint32_t>at[i + 1] << 8 | <uint32_t>at[i + 2] << 16 | <uint32_t>at[i + 3] << 24
        word *= factor
        value = value * factor ^ (word ^ word >> 24) * factor
    if size != whole:
        word = 0
        for i in range(size - 1, whole - 1, -1):
            word = word << 8 | at[i]
        value = (value ^ word) * factor
    value = (value ^ value >> 13) * factor
    return value ^ value >> 15


cdef inline uint64_t _zigzag(int64_t number) noexcept nogil:
    return <uint64_t>number << 1 ^ <uint64_t>(number >> 63)


cdef inline int _width(int64_t number) noexcept nogil:
    """Bytes of a varint."""
    cdef uint64_t rest = _zigzag(number) >> 7
    cdef int width = 1
    while rest:
        rest >>= 7
        width += 1
    return width


cdef inline char *_varint(char *to, int64_t number) noexcept nogil:
    cdef uint64_t rest = _zigzag(number)
    while rest > 0x7F:
        to[0] = <char>(rest & 0x7F | 0x80)
        rest >>= 7
        to += 1
    to[0] = <char>rest
    return to + 1


cdef inline Py_ssize_t _sized(bytes what) noexcept:
    """Bytes of a length and what it is of; None has the length -1."""
    if what is None:
        return 1
    return _width(PyBytes_GET_SIZE(what)) + PyBytes_GET_SIZE(what)


cdef inline char *_put(char *to, bytes what) noexcept:
    if what is None:
        return _varint(to, -1)
    to = _varint(to, PyBytes_GET_SIZE(what))
    memcpy(to, PyBytes_AS_STRING(what), PyBytes_GET_SIZE(what))
    return to + PyBytes_GET_SIZE(what)


cdef Py_ssize_t _headers_size(headers) except -1:
    cdef Py_ssize_t size = _width(len(headers)), length
    for name, value in headers:
        PyUnicode_AsUTF8AndSize(name, &length)
        size += _width(length) + length + _sized(value)
    return size


cdef char *_put_headers(char *to, headers) except NULL:
    cdef Py_ssize_t length
    cdef const char *text
    to = _varint(to, len(headers))
    for name, value in headers:
        text = PyUnicode_AsUTF8AndSize(name, &length)
        to = _varint(to, length)
        memcpy(to, text, length)
        to = _put(to + length, value)
    return to
