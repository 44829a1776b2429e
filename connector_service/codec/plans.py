"""Literals to Python values by plans: how each declared type is read, found once.

A task's interface is the same at every call, and most of what it declares are simple types, whose
literals are read here by the shortest way: from their bytes where ``codec.quick`` is built, else
from protobuf's messages. Whatever is not as declared is left to ``decode``, which knows every form
and says what is wrong; so a value read here is the one that ``decode`` returns.
"""

from __future__ import annotations

import datetime as dt
import functools
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flyteidl.core import interface_pb2, types_pb2
from flyteidl2.core import literals_pb2
from google.protobuf.message import DecodeError

from connector_service.codec.decode import decode
from connector_service.codec.literals import from_literal_map
from connector_service.codec.values import Trouble

try:
    from connector_service.codec import quick
except ImportError:  # installed where there is no C compiler
    quick = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["COMPILED", "Plan", "Plans", "Reader"]

COMPILED = quick is not None
"""Whether inputs are read by compiled code."""

Reader = Callable[[Any], Any]

_Simple = types_pb2.SimpleType

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_BILLION = 1_000_000_000
_MANY = 64  # variables
_MOST_BYTES = 1024 * 1024  # of encoded interfaces that are kept, which take some times as much
_LARGEST_KEPT = 128 * 1024  # bytes of one
# What is left to ``decode``; text that is none, and what is unusual, are ValueErrors.
_LEFT = ValueError, RecursionError, DecodeError, Trouble


class Plan:
    """How to read the inputs of one interface."""

    __slots__ = ("_declared", "_readers", "_ways")

    def __init__(self, declared: Mapping[str, Any]) -> None:
        """Take the variables by name, which are kept."""
        self._declared = declared
        self._readers = {name: reader(variable.type) for name, variable in declared.items()}
        self._ways = [] if quick is None else _ways(declared, set(self._readers.values()))

    def read(self, data: bytes | memoryview, most: int = sys.maxsize) -> dict[str, Any] | None:
        """Return encoded ``Inputs``, or a ``LiteralMap``, as Python values, as ``decode`` does.

        None where they hold more than ``most`` values, are not what is declared or have another
        form than is usual; and always where ``codec.quick`` is not built.
        """
        for kinds, other in self._ways:
            try:
                return quick.values(data, kinds, other, most)
            except _LEFT:
                continue
        return None

    def decode(self, inputs: Any) -> dict[str, Any]:
        """Return Flyte 2's ``Inputs`` as Python values.

        Raises:
            CodecError: As ``from_literal_map``.
        """
        get = self._readers.get
        try:
            return {
                entry.name: get(entry.name, _undeclared)(entry.value) for entry in inputs.literals
            }
        except (Trouble, RecursionError):
            return from_literal_map(inputs, self._declared)  # it says where and what


class Plans:
    """The plans of interfaces seen before, by what these look like encoded; for any thread."""

    def __init__(self, most: int = _MOST_BYTES, largest: int = _LARGEST_KEPT) -> None:
        """Take how many bytes of encoded interfaces are kept, and of one at most."""
        self._plans: dict[bytes, Plan] = {}
        self._most, self._largest = most, largest
        self._bytes = 0
        self._changing = threading.Lock()

    def find(self, declared: Message, within: bytes | memoryview | None = None) -> Plan:
        """Return the plan for an interface's ``VariableMap`` of either protocol.

        ``within``, where it is at hand, is the bytes of a message that always declares the same:
        they are looked up in a fifth of the time in which hundreds of variables are written.
        """
        # A map of variables may be written in any order, so that one interface may have many
        # keys; but ours is made of the parsed message, and of small ones there are few orders.
        key = declared.SerializeToString() if within is None else b"".join((b"\0", within))
        return self._plans.get(key) or self._learn(key, declared)

    def _learn(self, key: bytes, declared: Message) -> Plan:
        plan = Plan(interface_pb2.VariableMap.FromString(declared.SerializeToString()).variables)
        if len(key) > self._largest:
            return plan
        plans = self._plans
        with self._changing:
            if key not in plans:
                plans[key] = plan
                self._bytes += len(key)
            while self._bytes > self._most:
                oldest = next(iter(plans))
                del plans[oldest]
                self._bytes -= len(oldest)
        return plan


def reader(declared: Any) -> Reader:
    """Return what reads a literal of a declared type."""
    arm = declared.WhichOneof("type")
    if arm == "simple":
        simple = _SIMPLE.get(declared.simple)
        if simple is not None:
            return simple
    elif arm == "collection_type":
        return functools.partial(_collection, declared, reader(declared.collection_type))
    elif arm == "map_value_type":
        return functools.partial(_map, declared, reader(declared.map_value_type))
    return functools.partial(_other, declared)


def _other(declared: Any, literal: Any) -> Any:
    return decode(literal, declared)


def _undeclared(literal: Any) -> Any:
    return decode(literal, None)


# --- simple values -----------------------------------------------------------------------------

# A literal that holds another thing, or nothing, has the default of each thing that it might hold:
# only where that is found must be asked what it holds.

_DECLARED = {number: types_pb2.LiteralType(simple=number) for number in _Simple.values()}


def _primitive(field: str, simple: int) -> Reader:
    declared = _DECLARED[simple]

    def read(literal: Any) -> Any:
        primitive = literal.scalar.primitive
        value = getattr(primitive, field)
        if value or primitive.WhichOneof("value") == field:
            return value
        return decode(literal, declared)

    return read


_integer = _primitive("integer", _Simple.INTEGER)
_float = _primitive("float_value", _Simple.FLOAT)
_string = _primitive("string_value", _Simple.STRING)
_boolean = _primitive("boolean", _Simple.BOOLEAN)


def _datetime(literal: Any) -> Any:
    moment = literal.scalar.primitive.datetime
    seconds, nanos = moment.seconds, moment.nanos
    if seconds and 0 <= nanos < _BILLION:
        try:
            return _EPOCH + dt.timedelta(0, seconds, nanos // 1000)
        except OverflowError:
            pass
    return decode(literal, _DECLARED[_Simple.DATETIME])


def _duration(literal: Any) -> Any:
    length = literal.scalar.primitive.duration
    seconds, nanos = length.seconds, length.nanos
    if seconds and nanos >= 0:
        try:
            return dt.timedelta(0, seconds, nanos // 1000)
        except OverflowError:
            pass
    return decode(literal, _DECLARED[_Simple.DURATION])


_SIMPLE: dict[int, Reader] = {
    _Simple.INTEGER: _integer,
    _Simple.FLOAT: _float,
    _Simple.STRING: _string,
    _Simple.BOOLEAN: _boolean,
    _Simple.DATETIME: _datetime,
    _Simple.DURATION: _duration,
}

# --- lists and maps ----------------------------------------------------------------------------


def _collection(declared: Any, read: Reader, literal: Any) -> Any:
    literals = literal.collection.literals
    if not literals:
        return decode(literal, declared)
    try:
        return [read(item) for item in literals]
    except Trouble:
        return decode(literal, declared)  # it tells which element it is


def _map(declared: Any, read: Reader, literal: Any) -> Any:
    literals = literal.map.literals
    if not literals:
        return decode(literal, declared)
    try:
        # A map's `items()` is Python code of protobuf's, called for each of them.
        return {key: read(literals[key]) for key in literals}
    except Trouble:
        return decode(literal, declared)


# --- by their bytes, where that is built --------------------------------------------------------


def _ways(declared: Mapping[str, Any], readers: set[Reader]) -> list[tuple[dict[str, Any], Any]]:
    """Return the kinds of names, and of all others, for one attempt after the other."""
    kinds = {name: _kind(variable.type) for name, variable in declared.items()}
    every = [(kinds, quick.Kind(quick.ANY, functools.partial(_read, _undeclared)))]
    simple = _NUMBERS.get(readers.pop()) if len(readers) == 1 else None
    if simple is None or len(kinds) < _MANY:
        return every
    # Of many that are declared alike none needs to be looked up, while all are as declared.
    return [({}, quick.Kind(simple, _refuse)), *every]


def _kind(declared: Any) -> Any:
    arm = declared.WhichOneof("type")
    if arm == "simple" and declared.simple in _SIMPLE:
        return _simple_kind(declared.simple)
    read = functools.partial(_read, reader(declared))
    if arm == "collection_type":
        return quick.Kind(quick.LIST, read, _kind(declared.collection_type))
    if arm == "map_value_type":
        return quick.Kind(quick.MAP, read, _kind(declared.map_value_type))
    return quick.Kind(quick.OTHER, read)


@functools.cache
def _simple_kind(simple: int) -> Any:
    # Flyte numbers its simple types as a Primitive does the fields that hold them.
    return quick.Kind(simple, functools.partial(_read, _SIMPLE[simple]))


def _read(read: Reader, data: bytes) -> Any:
    return read(literals_pb2.Literal.FromString(data))


def _refuse(_data: bytes) -> Any:
    raise quick.UnusualError


_NUMBERS = {read: number for number, read in _SIMPLE.items()}
