# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled half of `batch.py`: records into the bytes of a Kafka record batch, and keys to partitions.

Format: Kafka's documentation, "Record Batch" and "Record" (magic 2); murmur2 as in `partitioner.py`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef Py_ssize_t FIRST_BYTES = 16 << 10


cdef class Records:
    """Records one behind the other. `limit`: bytes after which no further one is taken; the first always is."""

    cdef char *_data
    cdef Py_ssize_t _used, _room, _limit
    cdef readonly int count
    cdef readonly int64_t first_timestamp, newest_timestamp

    def __cinit__(self, Py_ssize_t limit):
        self._limit, self._room = limit, min(limit, FIRST_BYTES)
        self._data = <char *>PyMem_Malloc(self._room)
        if self._data is NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self._data)

    def __len__(self):
        return self._used

    def content(self):
        """All of them, as bytes."""
        return PyBytes_FromStringAndSize(self._data, self._used)

    cpdef bint add(self, bytes key, bytes value, int64_t timestamp, headers) except -1:
        """One record; False when it does not fit any more."""
        cdef int64_t delta = timestamp - self.first_timestamp if self.count else 0
        cdef Py_ssize_t body = 1 + _width(delta) + _width(self.count) + _sized(key) + _sized(value) + _headers_size(headers)
        cdef Py_ssize_t size = body + _width(body)
        cdef char *to
        if self.count and self._used + size > self._limit:
            return False
        if not self.count:
            self.first_timestamp = self.newest_timestamp = timestamp
        self._grow(size)
        to = _varint(self._data + self._used, body)
        to[0] = 0  # attributes
        to = _varint(_varint(to + 1, delta), self.count)
        to = _put_headers(_put(_put(to, key), value), headers)
        self._used += size
        self.count += 1
        self.newest_timestamp = max(self.newest_timestamp, timestamp)
        return True

    cdef int _grow(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t room = self._room
        while room < self._used + more:
            room *= 2
        if room != self._room:
            data = <char *>PyMem_Realloc(self._data, room)
            if data is NULL:
                raise MemoryError
            self._data, self._room = data, room
        return 0


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


cdef uint32_t _murmur2(const unsigned char *at, Py_ssize_t size) noexcept:
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


cdef inline uint64_t _zigzag(int64_t number) noexcept:
    return <uint64_t>number << 1 ^ <uint64_t>(number >> 63)


cdef inline int _width(int64_t number) noexcept:
    """Bytes of a varint."""
    cdef uint64_t rest = _zigzag(number) >> 7
    cdef int width = 1
    while rest:
        rest >>= 7
        width += 1
    return width


cdef inline char *_varint(char *to, int64_t number) noexcept:
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
