"""Literals to Python values.

Without a declared type a literal says enough of itself. A declared one steers where it does not:
an integer literal under FLOAT is a float, numbers that went through a protobuf Struct become ints
again, and a binary scalar that propeller cut out of a dataclass is whatever its variable declares.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from flyteidl.core import literals_pb2 as pb
from flyteidl.core import types_pb2

from connector_service.codec.conform import conform, plain_struct
from connector_service.codec.convert import reread
from connector_service.codec.flatten import unpack
from connector_service.codec.literal_types import describe, schema_title
from connector_service.codec.values import (
    Blob,
    LiteralError,
    Schema,
    StructuredDataset,
    Trouble,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["decode"]

_Simple = types_pb2.SimpleType
_SchemaColumnType = types_pb2.SchemaType.SchemaColumn.SchemaColumnType


def decode(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> Any:
    """Decode one literal; raise ``Trouble`` if it is not what is declared."""
    arm = literal.WhichOneof("value")
    if arm == "scalar":
        scalar = literal.scalar
        kind = scalar.WhichOneof("value")
        if kind == "primitive":
            return _decode_primitive(scalar.primitive, declared)
        if kind == "none_type":
            return _decode_none(declared)
        if kind is not None:
            return _BY_SCALAR[kind](literal, declared)
    elif arm == "collection":
        return _decode_collection(literal, declared)
    elif arm == "map":
        return _decode_map(literal, declared)
    elif arm == "offloaded_metadata":
        raise Trouble("was offloaded to storage, which this service does not read")
    raise Trouble("is a literal that holds no value")


# --- simple values ---------------------------------------------------------------------------


def _decode_datetime(primitive: pb.Primitive) -> dt.datetime:
    try:
        moment: dt.datetime = primitive.datetime.ToDatetime(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        raise Trouble("is a datetime outside the years 1 to 9999") from None
    return moment


def _decode_duration(primitive: pb.Primitive) -> dt.timedelta:
    try:
        length: dt.timedelta = primitive.duration.ToTimedelta()
    except (ValueError, OverflowError):
        raise Trouble("is a duration longer than a timedelta holds") from None
    return length


_READERS: dict[str, Callable[[pb.Primitive], Any]] = {
    "integer": lambda primitive: primitive.integer,
    "float_value": lambda primitive: primitive.float_value,
    "string_value": lambda primitive: primitive.string_value,
    "boolean": lambda primitive: primitive.boolean,
    "datetime": _decode_datetime,
    "duration": _decode_duration,
}

_AT_HOME = {
    (_Simple.INTEGER, "integer"),
    (_Simple.FLOAT, "float_value"),
    (_Simple.STRING, "string_value"),
    (_Simple.BOOLEAN, "boolean"),
    (_Simple.DATETIME, "datetime"),
    (_Simple.DURATION, "duration"),
}


def _decode_primitive(primitive: pb.Primitive, declared: types_pb2.LiteralType | None) -> Any:
    name = primitive.WhichOneof("value")
    if name is None:
        raise Trouble("is a literal that holds no value")
    value = _READERS[name](primitive)
    if declared is None:
        return value
    arm = declared.WhichOneof("type")
    if arm is None or (arm == "simple" and (declared.simple, name) in _AT_HOME):
        return value
    return conform(value, declared)


def _decode_none(declared: types_pb2.LiteralType | None) -> None:
    if declared is not None:
        conform(None, declared)


# --- containers ------------------------------------------------------------------------------


def _decode_collection(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> list[Any]:
    declared = _variant(declared, "collection_type")
    element = None if declared is None else declared.collection_type
    values = []
    index = 0
    try:
        for index, item in enumerate(literal.collection.literals):  # noqa: B007 - the handler's
            values.append(decode(item, element))
    except Trouble as trouble:
        raise trouble.under(index) from None
    return values


def _decode_map(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> dict[str, Any]:
    declared = _variant(declared, "map_value_type")
    element = None if declared is None else declared.map_value_type
    values = {}
    for key, item in literal.map.literals.items():
        try:
            values[key] = decode(item, element)
        except Trouble as trouble:
            raise trouble.under(key) from None
    return values


def _variant(declared: types_pb2.LiteralType | None, wanted: str) -> types_pb2.LiteralType | None:
    """Return the declared type for a container, found in a union if need be."""
    if declared is None:
        return None
    arm = declared.WhichOneof("type")
    if arm == wanted:
        return declared
    if arm is None:
        return None
    if arm == "union_type":
        for variant in declared.union_type.variants:
            if variant.WhichOneof("type") == wanted:
                return variant
    found = "a list" if wanted == "collection_type" else "a map"
    raise Trouble(f"expected {describe(declared)}, found {found}")


# --- other scalars ---------------------------------------------------------------------------


def _decode_union(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> Any:
    union = literal.scalar.union
    stored = union.type
    if declared is None or declared.WhichOneof("type") is None:
        return decode(union.value, stored)
    if declared.WhichOneof("type") != "union_type":
        return decode(union.value, declared)
    # The declared variant knows the fields of a dataclass; the stored type lost them to its tag.
    arm, tag = stored.WhichOneof("type"), stored.structure.tag
    same = [one for one in declared.union_type.variants if one.WhichOneof("type") == arm]
    if arm == "simple":
        same = [one for one in same if one.simple == stored.simple]
    same = [one for one in same if one.structure.tag == tag] or same
    same = [one for one in same if schema_title(one) == schema_title(stored)] or same
    if arm is not None and not same:
        raise Trouble(f"expected {describe(declared)}, found {describe(stored)}")
    return decode(union.value, same[0] if same else declared)


def _decode_binary(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> Any:
    binary = literal.scalar.binary
    if binary.tag == "msgpack":
        plain = unpack(binary.value)
        return plain if declared is None else conform(plain, declared)
    if binary.tag:
        raise Trouble("is a binary of an unknown format")
    # flyte leaves its pickles untagged: they are handed on as bytes, never opened.
    return binary.value


def _decode_generic(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> Any:
    if literal.metadata.get("format") == "pickle":
        raise Trouble("is a pickle, which this service never opens")
    plain = plain_struct(literal.scalar.generic)
    return plain if declared is None else conform(plain, declared, integers=True)


def _decode_blob(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> Any:
    blob = literal.scalar.blob
    kind = blob.metadata.type
    multipart = kind.dimensionality == types_pb2.BlobType.MULTIPART
    value = Blob(blob.uri, kind.format, multipart)
    return value if declared is None else conform(value, declared)


def _decode_structured_dataset(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> Any:
    table = literal.scalar.structured_dataset
    kind = table.metadata.structured_dataset_type
    # Flyte 1's types whatever the literal is, for the value may be encoded again.
    columns = {one.name: reread(one.literal_type, types_pb2.LiteralType) for one in kind.columns}
    value = StructuredDataset(table.uri, kind.format, columns)
    return value if declared is None else conform(value, declared)


def _decode_schema(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> Any:
    schema = literal.scalar.schema
    words = {number: word.lower() for word, number in _SchemaColumnType.items()}
    columns = {one.name: words.get(one.type, "unknown") for one in schema.type.columns}
    value = Schema(schema.uri, columns)
    return value if declared is None else conform(value, declared)


def _decode_error(literal: pb.Literal, declared: types_pb2.LiteralType | None) -> Any:
    error = literal.scalar.error
    value = LiteralError(error.message, error.failed_node_id)
    return value if declared is None else conform(value, declared)


_BY_SCALAR: dict[str, Callable[[pb.Literal, types_pb2.LiteralType | None], Any]] = {
    "union": _decode_union,
    "binary": _decode_binary,
    "generic": _decode_generic,
    "blob": _decode_blob,
    "structured_dataset": _decode_structured_dataset,
    "schema": _decode_schema,
    "error": _decode_error,
}
