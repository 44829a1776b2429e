"""Literals to Python values by plans: how each declared type is read, found once.

A task's interface is the same at every call, and most of what it declares are simple types, whose
literals are read here by the shortest way. Whatever is not as declared is left to ``decode``, which
knows every form and says what is wrong; so a value read here is the one that ``decode`` returns.
"""

from __future__ import annotations

import datetime as dt
import functools
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flyteidl.core import interface_pb2, types_pb2

from connector_service.codec.decode import decode
from connector_service.codec.literals import from_literal_map
from connector_service.codec.values import Trouble

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["Plan", "Plans", "Reader"]

Reader = Callable[[Any], Any]

_Simple = types_pb2.SimpleType

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_BILLION = 1_000_000_000
_FEW = 16  # elements: for fewer it is not worth to look at them as a whole
_MANY_STRINGS = 64
_MANY = 4096  # literals by name: to decode so many takes some milliseconds
_MUCH = 256 * 1024  # bytes in which there may be so many elements
_MOST_BYTES = 1024 * 1024  # of encoded interfaces that are kept, which take some times as much
_LARGEST_KEPT = 128 * 1024  # bytes of one


class Plan:
    """How to read the inputs of one interface."""

    __slots__ = ("_declared", "_readers", "_simple", "_whole", "many_strings")

    def __init__(self, declared: Mapping[str, Any]) -> None:
        """Take the variables by name, which are kept."""
        self._declared = declared
        self._readers = {name: reader(variable.type) for name, variable in declared.items()}
        readers = set(self._readers.values())
        self._simple = readers <= _ALL_SIMPLE
        # Whether it is worth to try ``columns.strings``.
        self.many_strings = readers == {_string} and len(self._readers) >= _MANY_STRINGS
        # Where all are strings, or all integers, they can be read in one go.
        self._whole = _NAMED.get(readers.pop()) if len(readers) == 1 else None

    def fits(self, inputs: Any) -> bool:
        """Tell whether each of the inputs is one value, as far as declared."""
        return self._simple and len(self._readers) >= len(inputs.literals)

    def decode(self, inputs: Any) -> dict[str, Any]:
        """Return Flyte 2's ``Inputs`` as Python values.

        Raises:
            CodecError: As ``from_literal_map``.
        """
        try:
            return self._values(inputs)
        except (Trouble, RecursionError):
            return from_literal_map(inputs, self._declared)  # it says where and what

    def _values(self, inputs: Any) -> dict[str, Any]:
        literals = inputs.literals
        if self._whole is not None and len(literals) >= _FEW:
            whole = self._whole(literals)
            # Each has a name of its own, and none the default that may stand for another thing;
            # a name that is no variable's has, undeclared, the same value.
            if len(whole) == len(literals) and all(whole.values()):
                return whole
        values: dict[str, Any] = {}
        get = self._readers.get
        for entry in literals:
            name, literal = entry.name, entry.value
            read = get(name)
            # The readers' first look, here: each call of a function costs more than all it does.
            if read is _string:
                value = literal.scalar.primitive.string_value
            elif read is _integer:
                value = literal.scalar.primitive.integer
            elif read is _float:
                value = literal.scalar.primitive.float_value
            else:
                value = None
            if not value:
                value = decode(literal, None) if read is None else read(literal)
            values[name] = value
        return values


class Plans:
    """The plans of interfaces seen before, by what these look like encoded; for any thread."""

    def __init__(self, most: int = _MOST_BYTES, largest: int = _LARGEST_KEPT) -> None:
        """Take how many bytes of encoded interfaces are kept, and of one at most."""
        self._plans: dict[bytes, Plan] = {}
        self._most, self._largest = most, largest
        self._bytes = 0
        self._changing = threading.Lock()

    def prepare(
        self, inputs: Any, declared: Any, size: int
    ) -> tuple[Callable[[], dict[str, Any]], bool]:
        """Return what decodes inputs of ``size`` bytes, and whether it takes more than 5 ms or so.

        It may be called on any thread, and raises as ``from_literal_map``.
        """
        if len(inputs.literals) >= _MANY or len(declared.variables) >= _MANY:
            return lambda: self.find(declared).decode(inputs), True
        plan = self.find(declared)
        return functools.partial(plan.decode, inputs), size >= _MUCH and not plan.fits(inputs)

    def find(self, declared: Message) -> Plan:
        """Return the plan for an interface's ``VariableMap`` of either protocol."""
        # A map of variables may be written in any order, so that one interface may have many
        # keys; but ours is made of the parsed message, and of small ones there are few orders.
        key = declared.SerializeToString()
        return self._plans.get(key) or self._learn(key)

    def _learn(self, key: bytes) -> Plan:
        plan = Plan(interface_pb2.VariableMap.FromString(key).variables)
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
_ALL_SIMPLE = frozenset(_SIMPLE.values())

# --- many at a time ----------------------------------------------------------------------------


def _collection(declared: Any, read: Reader, literal: Any) -> Any:
    literals = literal.collection.literals
    if not literals:
        return decode(literal, declared)
    try:
        whole = _LISTED.get(read)
        if whole is None:
            return [read(item) for item in literals]
        values = whole(literals)
        if not all(values):
            for index, value in enumerate(values):
                if not value:
                    values[index] = read(literals[index])
    except Trouble:
        return decode(literal, declared)  # it tells which element it is
    return values


def _map(declared: Any, read: Reader, literal: Any) -> Any:
    literals = literal.map.literals
    if not literals:
        return decode(literal, declared)
    try:
        whole = _MAPPED.get(read)
        if whole is None:
            return {key: read(literals[key]) for key in literals}
        values = whole(literals)
        if not all(values.values()):
            for key, value in values.items():
                if not value:
                    values[key] = read(literals[key])
    except Trouble:
        return decode(literal, declared)
    return values


_LISTED: dict[Reader, Callable[[Any], list[Any]]] = {
    _integer: lambda literals: [item.scalar.primitive.integer for item in literals],
    _float: lambda literals: [item.scalar.primitive.float_value for item in literals],
    _string: lambda literals: [item.scalar.primitive.string_value for item in literals],
}
_MAPPED: dict[Reader, Callable[[Any], dict[str, Any]]] = {
    # A map's `items()` is Python code of protobuf's, called for each of them.
    _integer: lambda literals: {key: literals[key].scalar.primitive.integer for key in literals},
    _float: lambda literals: {key: literals[key].scalar.primitive.float_value for key in literals},
    _string: lambda literals: {
        key: literals[key].scalar.primitive.string_value for key in literals
    },
}
_NAMED: dict[Reader, Callable[[Any], dict[str, Any]]] = {
    _integer: lambda literals: {e.name: e.value.scalar.primitive.integer for e in literals},
    _float: lambda literals: {e.name: e.value.scalar.primitive.float_value for e in literals},
    _string: lambda literals: {e.name: e.value.scalar.primitive.string_value for e in literals},
}
