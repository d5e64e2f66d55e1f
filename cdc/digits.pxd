"""Numbers as text, for the compiled halves of the hot path; inlined into each."""


cdef inline int decimal(long long number, char *digits) noexcept nogil:
    """Writes a number that is not negative, at most 19 digits; how many."""
    cdef char turned[24]
    cdef int width = 0, i
    while number or not width:
        turned[width] = <char>(c"0" + number % 10)
        number //= 10
        width += 1
    for i in range(width):
        digits[i] = turned[width - 1 - i]
    return width


cdef inline void hex8(char *to, long long number) noexcept nogil:
    """Writes the low 32 bits as eight digits."""
    cdef int i
    for i in range(8):
        to[7 - i] = b"0123456789abcdef"[number & 15]
        number >>= 4
