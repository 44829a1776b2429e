"""Literal and literal type <-> Python: the functions that the rest of the service calls.

A declared type (a ``LiteralType``, or the ``Variable`` map of a template's interface) steers both
ways and is best always given. Nothing here does I/O, and nothing is ever pickled or unpickled.

Messages pass through: a literal of either protocol, or a flytekit model with ``to_flyte_idl``,
given as a value or inside a container, is used as it is. Declared types may be of either protocol;
literals that are made here are Flyte 1's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from flyteidl.core import interface_pb2, literals_pb2, types_pb2
from google.protobuf.message import Message

from connector_service.codec.build import build
from connector_service.codec.convert import named_literals, reread
from connector_service.codec.decode import decode
from connector_service.codec.encode import DEEPEST_MESSAGES, encode
from connector_service.codec.literal_types import to_literal_type
from connector_service.codec.values import CodecError, Trouble, type_name
from connector_service.codec.written import entry

__all__ = [
    "fill",
    "from_literal_map",
    "to_literal",
    "to_literal_map",
    "to_literal_type",
    "to_python",
]

T = TypeVar("T")

_TOO_DEEP = "is nested too deeply"


def to_literal(
    value: Any, literal_type: types_pb2.LiteralType | None = None, *, path: str = "value"
) -> literals_pb2.Literal:
    """Encode a Python value.

    Without a declared type a dict becomes MessagePack, as in flytekit, and a list a collection.
    A datetime without a time zone is taken for UTC, as both SDKs take it. A bool is never an
    INTEGER, an int may be a FLOAT.

    Raises:
        CodecError: the value has no literal form, or not the declared one; the text starts with
            ``path`` and never holds the value.
    """
    try:
        return encode(value, _flyte1(literal_type), DEEPEST_MESSAGES)
    except Trouble as trouble:
        raise trouble.error(path) from None
    except RecursionError:
        raise CodecError(f"{path}: {_TOO_DEEP}.") from None


def to_literal_map(
    values: Mapping[str, Any] | literals_pb2.LiteralMap,
    variables: Mapping[str, interface_pb2.Variable] | None = None,
    *,
    path: str = "inputs",
) -> literals_pb2.LiteralMap:
    """Encode named values by the variables of an interface.

    A name that no variable declares is encoded by its own type: propeller does not check names.
    An empty mapping gives an empty map, which is not the same as none: Flyte writes it as the
    task's outputs, where none makes it look for a file.

    Raises:
        CodecError: a name is not a str, or a value cannot be encoded.
    """
    if isinstance(values, Message):
        literal = to_literal(values, path=path)
        if literal.WhichOneof("value") == "map":
            return literal.map
    made = literals_pb2.LiteralMap()
    fill(made, values, variables, path=path)
    return made


def fill(
    made: Any,
    values: Mapping[str, Any],
    variables: Mapping[str, interface_pb2.Variable] | None = None,
    *,
    path: str = "outputs",
) -> None:
    """Encode named values into an empty ``LiteralMap``, or Flyte 2's ``Outputs``.

    Raises:
        CodecError: as ``to_literal_map``.
    """
    if type(values) is not dict and not isinstance(values, Mapping):
        raise CodecError(f"{path}: expected a mapping of names, found {type_name(type(values))}.")
    name: object = None
    parts = []
    try:
        for name, value in values.items():
            key = name if type(name) is str else _name(name)
            variable = None if variables is None else variables.get(key)
            parts.append(entry(key, value, None if variable is None else _flyte1(variable.type)))
    except Trouble as trouble:
        raise trouble.under(name).error(path) from None
    except (RecursionError, UnicodeError) as error:
        deep = isinstance(error, RecursionError)
        raise CodecError(
            f"{path}: {_TOO_DEEP if deep else 'has a name that is not text'}."
        ) from None
    made.SetInParent()
    made.MergeFromString(b"".join(parts))


@overload
def to_python(
    literal: literals_pb2.Literal,
    literal_type: types_pb2.LiteralType | None = None,
    python_type: None = None,
    *,
    path: str = "value",
) -> Any: ...


@overload
def to_python(
    literal: literals_pb2.Literal,
    literal_type: types_pb2.LiteralType | None,
    python_type: type[T],
    *,
    path: str = "value",
) -> T: ...


@overload
def to_python(
    literal: literals_pb2.Literal,
    literal_type: types_pb2.LiteralType | None = None,
    *,
    python_type: type[T],
    path: str = "value",
) -> T: ...


def to_python(
    literal: literals_pb2.Literal,
    literal_type: types_pb2.LiteralType | None = None,
    python_type: Any = None,
    *,
    path: str = "value",
) -> Any:
    """Decode a literal, into ``python_type`` when one is wanted.

    Without it, records (dataclasses, models) come back as dicts, enums as their text, datetimes
    in UTC, files and tables as ``Blob`` and ``StructuredDataset``, and Flyte's pickles unopened.

    Raises:
        CodecError: the literal is empty, malformed, offloaded, or not what is declared or wanted.
    """
    try:
        value = decode(literal, literal_type)
        return value if python_type is None else build(value, python_type, literal_type)
    except Trouble as trouble:
        raise trouble.error(path) from None
    except RecursionError:
        raise CodecError(f"{path}: {_TOO_DEEP}.") from None


def from_literal_map(
    literal_map: literals_pb2.LiteralMap,
    variables: Mapping[str, interface_pb2.Variable] | None = None,
    *,
    python_types: Mapping[str, Any] | None = None,
    path: str = "inputs",
) -> dict[str, Any]:
    """Decode a map of literals by the variables of an interface.

    Only what the map holds is returned: a variable without a literal is left out.

    Raises:
        CodecError: as ``to_python``, with the name in the path.
    """
    values: dict[str, Any] = {}
    name = ""
    try:
        for name, literal in named_literals(literal_map):
            variable = None if variables is None else variables.get(name)
            declared = None if variable is None else variable.type
            value = decode(literal, declared)
            wanted = None if python_types is None else python_types.get(name)
            values[name] = value if wanted is None else build(value, wanted, declared)
    except Trouble as trouble:
        raise trouble.under(name).error(path) from None
    except RecursionError:
        raise Trouble(_TOO_DEEP).under(name).error(path) from None
    return values


def _flyte1(literal_type: Any) -> types_pb2.LiteralType | None:
    """Return a declared type of either protocol as Flyte 1's: the literals made here hold it."""
    return None if literal_type is None else reread(literal_type, types_pb2.LiteralType)


def _name(name: object) -> str:
    if isinstance(name, str):
        return name
    raise Trouble(f"expected a str for a name, found {type_name(type(name))}")
