"""Python types to literal types, for interfaces that are built rather than received.

The result is what flytekit makes of the same annotation, with a transformer's name in
``structure.tag`` wherever flyte needs one to guess the type back. What either SDK would pickle
(``Any``, ``list`` without an element type, ``set``) has no literal type here.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from flyteidl.core import types_pb2 as pb

from connector_service.codec.build import is_union, required_keys, strip
from connector_service.codec.flatten import flatten, is_namedtuple, is_pydantic
from connector_service.codec.values import (
    Blob,
    LiteralError,
    Schema,
    StructuredDataset,
    Trouble,
    type_name,
)

__all__ = [
    "DATACLASS_TAG",
    "PICKLE_TAG",
    "PYDANTIC_TAG",
    "describe",
    "enum_values",
    "literal_type",
    "schema_title",
    "to_literal_type",
]

DATACLASS_TAG = "Object-Dataclass-Transformer"
PYDANTIC_TAG = "Pydantic Transformer"
PICKLE_TAG = "FlytePickle"

_MSGPACK_NOTE = {"cache-key-metadata": {"serialization-format": "msgpack"}}
"""Tells propeller's cache that the value is MessagePack, whose bytes vary with key order."""

_Simple = pb.SimpleType

_SIMPLE: dict[Any, tuple[int, str]] = {
    int: (_Simple.INTEGER, "int"),
    float: (_Simple.FLOAT, "float"),
    str: (_Simple.STRING, "str"),
    bool: (_Simple.BOOLEAN, "bool"),
    dt.datetime: (_Simple.DATETIME, "datetime"),
    dt.date: (_Simple.DATETIME, "date"),
    dt.timedelta: (_Simple.DURATION, "timedelta"),
    types.NoneType: (_Simple.NONE, "none"),
    None: (_Simple.NONE, "none"),
    bytes: (_Simple.BINARY, ""),
    LiteralError: (_Simple.ERROR, "FlyteError"),
}


def to_literal_type(python_type: Any) -> pb.LiteralType:
    """Give the literal type of a Python type, as flytekit does for a task's annotation.

    Raises:
        CodecError: the type has no literal form other than a pickle.
    """
    try:
        return literal_type(python_type)
    except Trouble as trouble:
        raise trouble.error("type") from None


def literal_type(python_type: Any, around: tuple[Any, ...] = ()) -> pb.LiteralType:
    """Do the same within the codec, raising ``Trouble``; ``around`` holds the classes entered."""
    return _tagged(strip(python_type), around)[0]


def describe(declared: pb.LiteralType) -> str:
    """Name a literal type for an error: ``INTEGER``, ``list of STRING``, ``blob``."""
    arm = declared.WhichOneof("type")
    if arm == "simple":
        # A later Flyte may know more simple types than this flyteidl can name.
        names = {number: name for name, number in _Simple.items()}
        return str(names.get(declared.simple, f"simple type {declared.simple}"))
    if arm == "collection_type":
        return f"list of {describe(declared.collection_type)}"
    if arm == "map_value_type":
        return f"map of {describe(declared.map_value_type)}"
    if arm == "union_type":
        return " or ".join(describe(variant) for variant in declared.union_type.variants)
    return "nothing" if arm is None else str(arm).removesuffix("_type").replace("_", " ")


def schema_title(declared: pb.LiteralType) -> str:
    """Return the class name in a struct type's JSON schema, or nothing."""
    # Not `fields["title"]`: a protobuf map inserts what it is asked for.
    title = declared.metadata.fields.get("title")
    return "" if title is None else str(title.string_value)


def _tagged(  # noqa: PLR0911 - one line per kind of type
    kind: Any, around: tuple[Any, ...]
) -> tuple[pb.LiteralType, str]:
    """Return a type and the name of the SDK transformer that a union variant carries for it."""
    simple = _SIMPLE.get(kind) if kind is None or isinstance(kind, type) else None
    if simple is not None:
        return pb.LiteralType(simple=simple[0]), simple[1]
    if kind is dict or kind is Blob or kind is StructuredDataset or kind is Schema:
        return _bare(kind)
    if is_union(kind):
        return _union(typing.get_args(kind), around), "Typed Union"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return _choices(arguments)
    if origin is tuple and arguments and arguments[-1] is not ...:
        return _struct(_tuple_schema(arguments), PYDANTIC_TAG), "Typed Tuple"
    if origin in (list, tuple, Sequence):
        element = _within(arguments[0], "element", around)
        return pb.LiteralType(collection_type=element), "Typed List"
    if origin in (dict, Mapping):
        if strip(arguments[0]) is not str:
            return _bare(dict)
        return pb.LiteralType(map_value_type=_within(arguments[1], "value", around)), "Typed Dict"
    base: Any = origin if origin is not None else kind
    if isinstance(base, type):
        if issubclass(base, enum.Enum):
            values = enum_values(base)
            return pb.LiteralType(enum_type=pb.EnumType(values=values)), "DefaultEnumTransformer"
        if is_pydantic(base):
            return _record(_model_schema(base), PYDANTIC_TAG, base, around), PYDANTIC_TAG
        if _fields(base) is not None:
            return _record(_schema(base, ()), DATACLASS_TAG, base, around), DATACLASS_TAG
    raise Trouble(f"{type_name(kind)} has no literal type other than a pickle")


def enum_values(kind: type[enum.Enum]) -> list[str]:
    """List what members are called in a literal: text values (flytekit), else names (flyte)."""
    members = list(kind)
    if not members or issubclass(kind, enum.Flag):
        raise Trouble(f"{type_name(kind)} has no members that a literal can name")
    if all(isinstance(member.value, str) for member in members):
        return [str(member.value) for member in members]
    return [member.name for member in members]


def _within(kind: Any, step: str, around: tuple[Any, ...]) -> pb.LiteralType:
    try:
        return literal_type(kind, around)
    except Trouble as trouble:
        raise trouble.under(step) from None


def _bare(kind: type) -> tuple[pb.LiteralType, str]:
    if kind is Blob:
        return pb.LiteralType(blob=pb.BlobType()), "FlyteFilePath"
    if kind is StructuredDataset:
        table = pb.StructuredDatasetType()
        return pb.LiteralType(structured_dataset_type=table), "StructuredDataset Transformer"
    if kind is Schema:
        return pb.LiteralType(schema=pb.SchemaType()), "FlyteSchema Transformer"
    made = pb.LiteralType(simple=_Simple.STRUCT)
    made.annotation.annotations.update(_MSGPACK_NOTE)
    return made, "Typed Dict"


def _union(choices: Sequence[Any], around: tuple[Any, ...]) -> pb.LiteralType:
    made = pb.LiteralType()
    for choice in choices:
        variant, tag = _tagged(strip(choice), around)
        variant.structure.Clear()
        variant.structure.tag = tag
        made.union_type.variants.append(variant)
    return made


def _choices(values: Sequence[Any]) -> tuple[pb.LiteralType, str]:
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or not kinds <= {int, float, str, bool}:
        raise Trouble("Literal[...] has a literal type only for choices of one simple type")
    simple, tag = _SIMPLE[kinds.pop()]
    made = pb.LiteralType(simple=simple)
    made.annotation.annotations.update({"literal_values": list(values)})
    return made, tag


def _struct(schema: dict[str, Any], tag: str) -> pb.LiteralType:
    made = _bare(dict)[0]
    made.metadata.update(schema)
    made.structure.tag = tag
    return made


def _record(
    schema: dict[str, Any], tag: str, kind: type, around: tuple[Any, ...]
) -> pb.LiteralType:
    """Make a struct type whose fields propeller can bind one by one."""
    made = _struct(schema, tag)
    if kind in around:
        return made
    for name, hint in _hints(kind).items():
        try:
            field = literal_type(hint, (*around, kind))
        except Trouble:
            continue  # propeller then cannot bind this one field; the value still travels
        made.structure.dataclass_type[name].CopyFrom(field)
    return made


def _hints(kind: Any) -> dict[str, Any]:
    if is_pydantic(kind):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {name: hint for name, (hint, _) in (_fields(kind) or {}).items()}


def _fields(kind: Any) -> dict[str, tuple[Any, Any]] | None:
    """Map field names to (type, default), or return None for a class without typed fields."""
    if not (
        dataclasses.is_dataclass(kind)
        or is_namedtuple(kind)
        or typing.is_typeddict(kind)
        or issubclass(kind, msgspec.Struct)
    ):
        return None
    try:
        hints = typing.get_type_hints(kind)
    except (NameError, TypeError):
        raise Trouble(f"{type_name(kind)} has annotations that cannot be resolved") from None
    missing = dataclasses.MISSING
    if dataclasses.is_dataclass(kind):
        return {
            field.name: (
                hints.get(field.name, Any),
                field.default if field.default_factory is missing else None,
            )
            for field in dataclasses.fields(kind)
        }
    if issubclass(kind, msgspec.Struct):
        return {
            field.encode_name: (hints.get(field.name, Any), missing if field.required else None)
            for field in msgspec.structs.fields(kind)
        }
    if typing.is_typeddict(kind):
        return {n: (h, missing if n in required_keys(kind) else None) for n, h in hints.items()}
    defaults = getattr(kind, "_field_defaults", {})
    return {name: (hint, defaults.get(name, missing)) for name, hint in hints.items()}


_LEAF_SCHEMAS: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    types.NoneType: {"type": "null"},
    None: {"type": "null"},
    bytes: {"type": "string", "format": "base64"},
    dt.datetime: {"type": "string", "format": "date-time"},
    dt.date: {"type": "string", "format": "date"},
    dt.time: {"type": "string", "format": "time"},
    dt.timedelta: {"type": "number", "format": "time-delta"},
    Any: {},
    Blob: {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    StructuredDataset: {
        "type": "object",
        "properties": {"uri": {"type": "string"}, "file_format": {"type": "string"}},
        "required": ["uri"],
    },
    Schema: {"type": "object", "properties": {"remote_path": {"type": "string"}}},
}


def _schema(  # noqa: PLR0911 - one line per kind of type
    kind: Any, around: tuple[Any, ...]
) -> dict[str, Any]:
    """Write the JSON schema that mashumaro writes, whose ``title`` both SDKs look for."""
    kind = strip(kind)
    if kind in _LEAF_SCHEMAS:
        return _LEAF_SCHEMAS[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_union(kind):
        return {"anyOf": [_schema(choice, around) for choice in arguments]}
    if origin is tuple and arguments and arguments[-1] is not ...:
        return {"type": "array", "prefixItems": [_schema(item, around) for item in arguments]}
    if origin in (list, tuple, set, frozenset, Sequence):
        return {"type": "array", "items": _schema(arguments[0], around)}
    if origin in (dict, Mapping):
        keys, values = arguments
        return {
            "type": "object",
            "propertyNames": _schema(keys, around),
            "additionalProperties": _schema(values, around),
        }
    base: Any = origin if origin is not None else kind
    if not isinstance(base, type):
        return {}
    if issubclass(base, enum.Enum):
        return {"enum": [flatten(member.value) for member in base]}
    if is_pydantic(base):
        return _model_schema(base)
    if issubclass(base, (list, tuple, set, frozenset)) and not is_namedtuple(base):
        return {"type": "array"}
    fields = None if base in around else _fields(base)
    if fields is None:
        return {"type": "object", "title": base.__name__} if base in around else {}
    inner = (*around, base)
    return {
        "type": "object",
        "title": base.__name__,
        "properties": {name: _schema(hint, inner) for name, (hint, _) in fields.items()},
        "required": [n for n, (_, default) in fields.items() if default is dataclasses.MISSING],
        "additionalProperties": False,
    }


def _model_schema(model: Any) -> dict[str, Any]:
    return dict(model.model_json_schema())


def _tuple_schema(arguments: Sequence[Any]) -> dict[str, Any]:
    names = [f"item_{index}" for index in range(len(arguments))]
    return {
        "type": "object",
        "title": "TupleWrapper_tuple",
        "properties": {n: _schema(item, ()) for n, item in zip(names, arguments, strict=True)},
        "required": names,
    }
