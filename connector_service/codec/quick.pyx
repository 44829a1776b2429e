# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Encoded literals to Python values, compiled.

protobuf makes four Python objects for a literal that holds a simple value, before the value is at
hand. Here its bytes are read themselves, in the form in which every library writes them. Whatever
has another form (a field that is unknown, comes twice or is of another type than declared) is left
to who knows every form: a value to ``Kind.read``, the whole to the caller.

Where this module is not built, all is read by protobuf.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

import datetime as dt

cdef object _EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
cdef object _timedelta = dt.timedelta
# Entering a function of its own, the interpreter hands its lock to whoever has waited for it long
# enough. Were the lock released here as often, each release would wake the others too late and
# have their waiting begin anew: they would get it by luck.
cdef object _breathe = eval("lambda: None")

# The fields of a Primitive, and so the kinds of simple values.
cdef enum:
    _OTHER = 0
    _INTEGER = 1
    _FLOAT = 2
    _STRING = 3
    _BOOLEAN = 4
    _DATETIME = 5
    _DURATION = 6
    _ANY = 7  # of these; of a variable that is not declared
    _LIST = 8
    _MAP = 9

# Tags: the number of a field, and how it is written.
cdef enum:
    _FIRST_NUMBER = 0x08
    _SECOND_NUMBER = 0x10
    _FIRST = 0x0A  # a map's entry, its key, a list's item, Literal.scalar, Scalar.primitive
    _SECOND = 0x12  # an entry's value, Literal.collection, Inputs.context
    _THIRD = 0x1A  # Literal.map
    _DOUBLE = 0x11

cdef enum:
    _BREATH = 4096  # values after which other threads may go on
    _BYTES_OF_ONE = 64  # what others read is counted as so many values as it has times so many

cdef uint8_t _TAGS[7]
_TAGS[:] = [0, 0x08, 0x11, 0x1A, 0x20, 0x2A, 0x32]

OTHER, ANY, LIST, MAP = _OTHER, _ANY, _LIST, _MAP


class UnusualError(ValueError):
    """The bytes are of another form, or hold more values than they should."""


cdef class Kind:
    """How the literals of one declared type are read.

    ``number`` is that of a simple type, or ``ANY`` of them, ``LIST`` or ``MAP`` of an ``inner``
    kind, or ``OTHER``. ``read`` is given the bytes of each literal that is not plainly so.
    """

    cdef int number
    cdef Kind inner
    cdef object read

    def __init__(self, int number, object read, Kind inner=None):
        """Take what it is."""
        if (number in (_LIST, _MAP)) != (inner is not None) or not _OTHER <= number <= _MAP:
            raise ValueError("A list and a map have an inner kind, and nothing else has.")
        self.number = number
        self.read = read
        self.inner = inner


cdef struct Span:
    const uint8_t* at
    const uint8_t* end


def values(object data, dict kinds not None, Kind other not None, Py_ssize_t most):
    """Return what encoded ``Inputs`` or a ``LiteralMap`` hold, by name, as ``kinds`` say.

    ``data`` is any buffer, and ``other`` the kind of names that are not in ``kinds``.

    Raises:
        UnusualError: They are of another form, or hold more than ``most`` values.
        UnicodeDecodeError: A text is none.
    """
    cdef Py_buffer buffer
    cdef Span span
    cdef Py_ssize_t left = most
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        span.at = <const uint8_t*>buffer.buf
        span.end = span.at + buffer.len
        return _entries(span, kinds, other, &left)
    finally:
        PyBuffer_Release(&buffer)


cdef dict _entries(Span span, dict kinds, Kind one, Py_ssize_t* left):
    cdef Span entry, key, value
    cdef Kind kind
    cdef object name, known
    cdef dict found = {}
    while span.at < span.end:
        if span.at[0] == _SECOND and kinds is not None:
            _skip_context(&span)
            continue
        _take(&span, _FIRST, &entry)
        _take(&entry, _FIRST, &key)
        _take(&entry, _SECOND, &value)
        if entry.at != entry.end:
            raise UnusualError
        name = _text(key)
        kind = one
        if kinds is not None:
            known = kinds.get(name)
            if known is not None:
                kind = known
        found[name] = _literal(value, kind, left)
    return found


cdef int _skip_context(Span* span) except -1:
    """Go past a KeyValuePair, made sure that it is one."""
    cdef Span pair, text
    _take(span, _SECOND, &pair)
    while pair.at < pair.end:
        _take(&pair, _FIRST if pair.at[0] == _FIRST else _SECOND, &text)
        _text(text)
    return 0


cdef object _literal(Span span, Kind kind, Py_ssize_t* left):
    cdef Span inside = span
    cdef object value = None
    left[0] -= 1
    if left[0] < 0:
        raise UnusualError
    if left[0] % _BREATH == 0:
        _breathe()
    if _INTEGER <= kind.number <= _ANY:
        if _enter(&inside, _FIRST) and _enter(&inside, _FIRST):
            value = _primitive(inside, kind.number)
    elif kind.number == _LIST:
        if _enter(&inside, _SECOND):
            value = _items(inside, kind.inner, left)
    elif kind.number == _MAP:
        if _enter(&inside, _THIRD):
            value = _entries(inside, None, kind.inner, left)
    if value is None:
        left[0] -= (span.end - span.at) // _BYTES_OF_ONE
        if left[0] < 0:
            raise UnusualError
        value = kind.read(PyBytes_FromStringAndSize(<const char*>span.at, span.end - span.at))
    return value


cdef list _items(Span span, Kind kind, Py_ssize_t* left):
    cdef Span item
    cdef list found = []
    while span.at < span.end:
        _take(&span, _FIRST, &item)
        found.append(_literal(item, kind, left))
    return found


cdef object _primitive(Span span, int number):
    """Return the one value of a Primitive; None if it is not of the kind, or not plain."""
    cdef uint64_t bits = 0
    cdef double real
    cdef Span inside
    cdef uint8_t tag
    if span.at >= span.end:
        return None
    tag = span.at[0]
    if number == _ANY:
        number = _FLOAT if tag == _DOUBLE else tag >> 3
        if not _INTEGER <= number <= _DURATION:
            return None
    if tag != _TAGS[number]:
        return None
    if number == _FLOAT:
        if span.end - span.at != 9:
            return None
        for index in range(8):  # lowest byte first, whatever the machine's order is
            bits |= <uint64_t>span.at[1 + index] << (8 * index)
        memcpy(&real, &bits, 8)
        return real
    if number == _INTEGER or number == _BOOLEAN:
        span.at += 1
        if not _varint(&span, &bits) or span.at != span.end:
            return None
        return <int64_t>bits if number == _INTEGER else bits != 0
    inside = span
    if not _enter(&inside, tag):
        return None
    return _text(inside) if number == _STRING else _time(inside, number)


cdef object _time(Span span, int number):
    """Return a Timestamp or a Duration; None where it is not plain."""
    cdef uint64_t seconds = 0, nanos = 0
    if span.at >= span.end or span.at[0] != _FIRST_NUMBER:
        return None
    span.at += 1
    if not _varint(&span, &seconds):
        return None
    if span.at < span.end:
        if span.at[0] != _SECOND_NUMBER:
            return None
        span.at += 1
        if not _varint(&span, &nanos):
            return None
    if span.at != span.end or not seconds or nanos >= 1_000_000_000:
        return None
    try:
        length = _timedelta(0, <int64_t>seconds, nanos // 1000)
        return length if number == _DURATION else _EPOCH + length
    except OverflowError:
        return None


cdef inline object _text(Span span):
    return PyUnicode_DecodeUTF8(<const char*>span.at, span.end - span.at, NULL)


cdef inline int _take(Span* span, uint8_t tag, Span* inside) except -1:
    """Take a field with a length from the front; what is not there is unusual."""
    cdef uint64_t length
    if span.at >= span.end or span.at[0] != tag:
        raise UnusualError
    span.at += 1
    if not _varint(span, &length) or length > <uint64_t>(span.end - span.at):
        raise UnusualError
    inside.at = span.at
    span.at += length
    inside.end = span.at
    return 0


cdef inline bint _enter(Span* span, uint8_t tag) noexcept nogil:
    """Go into the only field of a message; return whether it is the only one, and has a length."""
    cdef uint64_t length
    if span.at >= span.end or span.at[0] != tag:
        return False
    span.at += 1
    return _varint(span, &length) and length == <uint64_t>(span.end - span.at)


cdef inline bint _varint(Span* span, uint64_t* value) noexcept nogil:
    """Read a number of seven bits a byte, lowest first; return whether there is one."""
    cdef int shift = 0
    cdef uint8_t byte
    value[0] = 0
    while span.at < span.end and shift < 64:
        byte = span.at[0]
        span.at += 1
        if shift == 63 and byte > 1:
            return False
        value[0] |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            return True
        shift += 7
    return False
