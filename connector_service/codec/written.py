"""Named values as the bytes of a map of literals, which both protocols parse alike.

Simple values of no declared type are most of what tasks return. Each of their literals is four
messages one in another, which to write as bytes takes half the time that making them takes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from connector_service.codec.encode import DEEPEST_MESSAGES, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["entry"]

_SHORT = 0x7F  # bytes: a length up to this one is a byte itself
_64_BITS = (1 << 64) - 1
_pack_float = struct.Struct("<d").pack

# What stands before the bytes of a Primitive in an entry, by their number: Literal, Scalar and
# Primitive, each with its tag and its length.
_AROUND = [b"\x12%c\x0a%c\x0a%c" % (size + 4, size + 2, size) for size in range(_SHORT - 6)]


def entry(name: str, value: Any, declared: Any) -> bytes:
    """Write one entry of a map of literals, or one named literal of Flyte 2: they are the same.

    Raises:
        Trouble: As ``encode``.
        UnicodeError: The name is no text.
    """
    key = name.encode()
    write = _SIMPLE.get(type(value)) if declared is None else None
    if write is not None:
        primitive = write(value)
        if primitive is not None:
            size = len(primitive)
            known = len(key) + size + 10
            if known <= _SHORT:
                return b"\x0a%c\x0a%c%b%b%b" % (known - 2, len(key), key, _AROUND[size], primitive)
    literal = encode(value, declared, DEEPEST_MESSAGES).SerializeToString()
    parts = b"\x0a", _varint(len(key)), key, b"\x12", _varint(len(literal)), literal
    return b"\x0a%b%b" % (_varint(sum(map(len, parts))), b"".join(parts))


def _string(value: str) -> bytes | None:
    try:
        data = value.encode()
    except UnicodeError:
        return None
    return b"\x1a%c%b" % (len(data), data) if len(data) <= _SHORT else None


def _integer(value: int) -> bytes | None:
    if 0 <= value <= _SHORT:
        return b"\x08%c" % value
    return b"\x08" + _varint(value & _64_BITS) if -(1 << 63) <= value < 1 << 63 else None


def _float(value: float) -> bytes:
    return b"\x11" + _pack_float(value)


def _boolean(value: bool) -> bytes:
    return b"\x20\x01" if value else b"\x20\x00"


_SIMPLE: Mapping[type, Callable[[Any], bytes | None]] = {
    str: _string,
    int: _integer,
    float: _float,
    bool: _boolean,
}


def _varint(number: int) -> bytes:
    """Write a number of seven bits a byte, lowest first."""
    written = bytearray()
    while number > _SHORT:
        written.append(number & _SHORT | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
