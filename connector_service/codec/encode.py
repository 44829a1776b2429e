"""Python values to literals.

A declared literal type steers: it says whether a dict is a map or a struct, which variant a union
holds, and what a value must be. Without one, a value is encoded as flytekit encodes its own type,
and a list, which flytekit would pickle, as a collection.
"""

from __future__ import annotations

import datetime as dt
import enum
import operator
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from flyteidl.core import literals_pb2 as pb
from flyteidl.core import types_pb2

from connector_service.codec.flatten import (
    is_namedtuple,
    is_pydantic,
    is_record,
    refuse_sdk_class,
)
from connector_service.codec.literal_types import (
    DATACLASS_TAG,
    PICKLE_TAG,
    PYDANTIC_TAG,
    describe,
    enum_values,
    literal_type,
    schema_title,
)
from connector_service.codec.scalars import (
    BY_SIMPLE,
    BY_TYPE,
    binary,
    integer,
    packed,
    pass_through,
    string,
)
from connector_service.codec.values import (
    Blob,
    Schema,
    StructuredDataset,
    Trouble,
    a_type,
    type_name,
)

__all__ = ["DEEPEST_MESSAGES", "encode"]

DEEPEST_MESSAGES = 84
"""Nested messages a literal may spend: protobuf parsers stop at 100, and requests wrap literals."""

_PICKLE_FORMAT = "PythonPickle"

_Simple = types_pb2.SimpleType


def encode(value: Any, declared: types_pb2.LiteralType | None, room: int) -> pb.Literal:
    """Encode one value with ``room`` nested messages to spend; or raise ``Trouble``."""
    arm = None if declared is None else declared.WhichOneof("type")
    if arm is None:
        direct = BY_TYPE.get(type(value))
        return _undeclared(value, room) if direct is None else direct(value)
    assert declared is not None  # noqa: S101 - `arm` says so; for the type checker
    if arm == "simple":
        direct = BY_SIMPLE.get((declared.simple, type(value)))
        if direct is not None:
            return direct(value)
    passed = pass_through(value, declared)
    if passed is not None:
        return passed
    return _BY_ARM[arm](value, declared, room)


# --- without a declared type -----------------------------------------------------------------


def _undeclared(value: Any, room: int) -> pb.Literal:
    passed = pass_through(value, None)
    if passed is not None:
        return passed
    kind = type(value)
    refuse_sdk_class(kind)
    if isinstance(value, enum.Enum):
        return string(_enum_text(value, None))
    if is_record(kind):
        return _reference(value) or packed(value)
    if isinstance(value, (list, tuple)):
        return _elements(value, None, room)
    for base in (int, float, str, dt.datetime, dt.date, dt.timedelta):
        if isinstance(value, base):
            return BY_TYPE[base](value)
    if isinstance(value, (bytearray, memoryview)):
        return binary(value)
    raise Trouble(f"cannot encode {a_type(kind)}")


def _reference(value: Any) -> pb.Literal | None:
    if isinstance(value, Blob):
        return _blob(value, _EMPTY_TYPE, 0)
    if isinstance(value, StructuredDataset):
        return _structured_dataset(value, _EMPTY_TYPE, 0)
    if isinstance(value, Schema):
        return _schema(value, _EMPTY_TYPE, 0)
    return None


_EMPTY_TYPE = types_pb2.LiteralType()


# --- with a declared type --------------------------------------------------------------------


def _unfit(value: Any, declared: types_pb2.LiteralType) -> Trouble:
    return Trouble(f"cannot encode {a_type(type(value))} as {describe(declared)}")


def _simple(value: Any, declared: types_pb2.LiteralType, room: int) -> pb.Literal:
    """Encode what the table of exact types did not know: subclasses, records, near types."""
    simple = declared.simple
    if simple == _Simple.STRUCT:
        return _struct(value, declared)
    if simple == _Simple.BINARY:
        if declared.structure.tag == PICKLE_TAG:
            raise Trouble(f"cannot encode {a_type(type(value))} where a pickle is declared")
        if isinstance(value, (bytes, bytearray, memoryview)):
            return binary(value)
        raise _unfit(value, declared)
    if isinstance(value, enum.Enum) and simple == _Simple.STRING and isinstance(value.value, str):
        return string(value.value)
    if isinstance(value, bool):
        raise _unfit(value, declared)
    for (wanted, base), encoder in BY_SIMPLE.items():
        if wanted == simple and isinstance(value, base):
            return encoder(value)
    if simple == _Simple.INTEGER:
        try:
            return integer(operator.index(value))  # numpy's integers
        except TypeError:
            pass
    raise _unfit(value, declared)


def _struct(value: Any, declared: types_pb2.LiteralType) -> pb.Literal:
    kind = type(value)
    refuse_sdk_class(kind)
    if is_record(kind) and not isinstance(value, (Blob, StructuredDataset, Schema)):
        if "pb_type" in declared.metadata.fields:  # the SDKs read a protobuf only from a Struct
            made = pb.Literal()
            made.scalar.generic.update(value)
            return made
        return packed(value)
    if isinstance(value, tuple) and schema_title(declared).startswith("TupleWrapper_"):
        return packed({f"item_{index}": element for index, element in enumerate(value)})
    raise _unfit(value, declared)


def _collection(value: Any, declared: types_pb2.LiteralType, room: int) -> pb.Literal:
    if not isinstance(value, (list, tuple)) or is_namedtuple(type(value)):
        raise _unfit(value, declared)
    return _elements(value, declared.collection_type, room)


def _elements(value: Any, element: types_pb2.LiteralType | None, room: int) -> pb.Literal:
    made = pb.Literal()
    made.collection.SetInParent()
    inside = _less(room, 2, value)
    add = made.collection.literals.append
    index = 0
    try:
        for index, item in enumerate(value):  # noqa: B007 - read by the handler
            add(encode(item, element, inside))
    except Trouble as trouble:
        raise trouble.under(index) from None
    return made


def _map(value: Any, declared: types_pb2.LiteralType, room: int) -> pb.Literal:
    if not isinstance(value, Mapping):
        raise _unfit(value, declared)
    made = pb.Literal()
    made.map.SetInParent()
    inside = _less(room, 3, value)
    element = declared.map_value_type
    literals = made.map.literals
    for key, item in value.items():
        if not isinstance(key, str):
            raise Trouble(f"cannot encode a map key of type {type_name(type(key))}, only str")
        try:
            literals[key].CopyFrom(encode(item, element, inside))
        except Trouble as trouble:
            raise trouble.under(key) from None
        except UnicodeError:
            raise Trouble("cannot encode a map key with lone surrogates") from None
    return made


def _less(room: int, messages: int, value: Any) -> int:
    if room < messages:
        raise Trouble(
            f"cannot encode {a_type(type(value))} here: it is nested deeper than "
            "protobuf parsers read, or contains itself"
        )
    return room - messages


def _blob(value: Any, declared: types_pb2.LiteralType, room: int) -> pb.Literal:
    if declared.blob.format == _PICKLE_FORMAT and not (
        isinstance(value, Blob) and value.format == _PICKLE_FORMAT
    ):
        raise Trouble(f"cannot encode {a_type(type(value))} where a pickle is declared")
    multipart = declared.blob.dimensionality == types_pb2.BlobType.MULTIPART
    if isinstance(value, (str, pathlib.PurePath)):
        value = Blob(str(value), declared.blob.format, multipart)
    if not isinstance(value, Blob):
        raise _unfit(value, declared)
    if declared is not _EMPTY_TYPE and value.multipart != multipart:
        had, wanted = ("directory", "file") if value.multipart else ("file", "directory")
        raise Trouble(f"cannot encode the Blob of a {had} where a {wanted} is declared")
    made = pb.Literal()
    made.scalar.blob.uri = value.uri
    kind = made.scalar.blob.metadata.type
    kind.format = value.format or declared.blob.format
    kind.dimensionality = (
        types_pb2.BlobType.MULTIPART if value.multipart else types_pb2.BlobType.SINGLE
    )
    return made


def _structured_dataset(value: Any, declared: types_pb2.LiteralType, room: int) -> pb.Literal:
    if isinstance(value, str):
        value = StructuredDataset(value)
    if not isinstance(value, StructuredDataset):
        raise _unfit(value, declared)
    made = pb.Literal()
    made.scalar.structured_dataset.uri = value.uri
    kind = made.scalar.structured_dataset.metadata.structured_dataset_type
    kind.CopyFrom(declared.structured_dataset_type)
    kind.format = kind.format or value.format
    if not kind.columns:
        for name, column in value.columns.items():
            known = isinstance(column, types_pb2.LiteralType)
            kind.columns.add(name=name, literal_type=column if known else literal_type(column))
    return made


def _schema(value: Any, declared: types_pb2.LiteralType, room: int) -> pb.Literal:
    if isinstance(value, str):
        value = Schema(value)
    if not isinstance(value, Schema):
        raise _unfit(value, declared)
    made = pb.Literal()
    made.scalar.schema.uri = value.uri
    kind = made.scalar.schema.type
    kind.CopyFrom(declared.schema)
    if not kind.columns:
        for name, word in value.columns.items():
            try:
                kind.columns.add(name=name, type=word.upper())
            except ValueError:
                raise Trouble("has a column of no schema column type").under(name) from None
    return made


def _enum(value: Any, declared: types_pb2.LiteralType, room: int) -> pb.Literal:
    if isinstance(value, enum.Enum):
        return string(_enum_text(value, declared))
    if isinstance(value, str) and value in declared.enum_type.values:
        return string(value)
    if isinstance(value, str):
        raise Trouble("is a str that the declared enum does not list")
    raise _unfit(value, declared)


def _enum_text(value: enum.Enum, declared: types_pb2.LiteralType | None) -> str:
    """Choose between a member's value (flytekit) and its name (flyte) by what is declared.

    The whole list decides, so that an enum whose names are other members' values is not mixed up.
    """
    kind = type(value)
    if declared is None:
        return value.value if enum_values(kind) and isinstance(value.value, str) else value.name
    listed = list(declared.enum_type.values)
    if listed == [member.name for member in kind]:
        return value.name
    for text in (value.value, value.name):
        if isinstance(text, str) and text in listed:
            return text
    raise Trouble(f"is {a_type(kind)} that the declared enum does not list")


def _union(value: Any, declared: types_pb2.LiteralType, room: int) -> pb.Literal:
    inside = _less(room, 3, value)
    variants = declared.union_type.variants
    # `sorted` is stable: of variants that suit equally, the first declared wins.
    for variant in sorted(variants, key=lambda one: _distance(value, one)):
        try:
            held = encode(value, variant, inside)
        except Trouble as trouble:
            last = trouble
            continue
        made = pb.Literal()
        made.scalar.union.value.CopyFrom(held)
        made.scalar.union.type.CopyFrom(variant)
        return made
    if len(variants) == 1:
        raise last
    raise _unfit(value, declared)


def _distance(value: Any, variant: types_pb2.LiteralType) -> int:
    """Rank how far a variant is from the value's own type: 0 is exact."""
    arm = variant.WhichOneof("type")
    kind = type(value)
    if arm == "simple":
        if variant.simple == _Simple.STRUCT:
            return _struct_distance(value, variant)
        if (variant.simple, kind) in BY_SIMPLE:
            # An int is at home in INTEGER, and welcome in FLOAT.
            return int(variant.simple == _Simple.FLOAT and kind is int)
        return 5
    at_home = {
        "enum_type": enum.Enum,
        "collection_type": list,
        "map_value_type": dict,
        "blob": Blob,
        "structured_dataset_type": StructuredDataset,
        "schema": Schema,
    }
    return 0 if arm in at_home and isinstance(value, at_home[arm]) else 5


def _struct_distance(value: Any, variant: types_pb2.LiteralType) -> int:
    schema = variant.metadata.fields
    kind = type(value)
    if isinstance(value, Mapping):
        properties = schema["properties"].struct_value.fields if "properties" in schema else {}
        return 3 if properties and set(properties) != set(value) else 2
    if schema_title(variant) == kind.__name__:
        return 0
    tag = PYDANTIC_TAG if is_pydantic(kind) else DATACLASS_TAG
    return 2 if variant.structure.tag == tag else 3


_BY_ARM: dict[str, Callable[[Any, types_pb2.LiteralType, int], pb.Literal]] = {
    "simple": _simple,
    "collection_type": _collection,
    "map_value_type": _map,
    "blob": _blob,
    "structured_dataset_type": _structured_dataset,
    "schema": _schema,
    "enum_type": _enum,
    "union_type": _union,
}
