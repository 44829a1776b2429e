"""Steering by the declared type: a decoded value as what its variable says it is.

Needed where the literal's own form says less: numbers of a protobuf Struct, and a binary scalar
that propeller cut out of a dataclass to bind one field of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flyteidl.core import types_pb2

from connector_service.codec.build import build
from connector_service.codec.leaves import duration, moment, whole
from connector_service.codec.literal_types import describe, schema_title
from connector_service.codec.values import (
    Blob,
    LiteralError,
    Schema,
    StructuredDataset,
    Trouble,
    type_name,
)

__all__ = ["conform", "plain_struct"]

_Simple = types_pb2.SimpleType


def plain_struct(struct: Any) -> dict[str, Any]:
    """Read a protobuf Struct into a dict, its numbers all floats as it holds them."""
    return {key: _plain_value(value) for key, value in struct.fields.items()}


def _plain_value(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return plain_struct(value.struct_value)
    if kind == "list_value":
        return [_plain_value(item) for item in value.list_value.values]
    return None if kind is None or kind == "null_value" else getattr(value, kind)


_BUILT: dict[int, Any] = {
    _Simple.FLOAT: float,
    _Simple.STRING: str,
    _Simple.BOOLEAN: bool,
    _Simple.NONE: None,
    _Simple.ERROR: LiteralError,
}


def conform(  # noqa: PLR0911 - one line per kind of type
    value: Any, declared: types_pb2.LiteralType, *, integers: bool = False
) -> Any:
    """Turn a decoded or plain value into what is declared.

    ``integers`` says that the numbers come from a protobuf Struct, where every one is a double.
    """
    arm = declared.WhichOneof("type")
    if arm is None:
        return value
    if arm == "simple":
        return _conform_simple(value, declared, integers=integers)
    if arm == "union_type":
        return _conform_union(value, declared, integers=integers)
    if arm == "collection_type" and isinstance(value, list):
        element = declared.collection_type
        return [_conform_step(item, element, i, integers) for i, item in enumerate(value)]
    if arm == "map_value_type" and isinstance(value, dict):
        element = declared.map_value_type
        return {key: _conform_step(item, element, key, integers) for key, item in value.items()}
    if arm == "enum_type" and isinstance(value, str):
        if value in declared.enum_type.values:
            return value
        raise Trouble("is a string that the declared enum does not list")
    if arm == "blob" and isinstance(value, (Blob, dict)):
        return _conform_blob(value, declared)
    if arm == "structured_dataset_type" and isinstance(value, (StructuredDataset, dict)):
        return build(value, StructuredDataset)
    if arm == "schema" and isinstance(value, (Schema, dict)):
        return build(value, Schema)
    raise unlike(value, declared)


def _conform_step(
    value: Any,
    declared: types_pb2.LiteralType,
    step: object,
    integers: bool,
) -> Any:
    try:
        return conform(value, declared, integers=integers)
    except Trouble as trouble:
        raise trouble.under(step) from None


def _conform_simple(value: Any, declared: types_pb2.LiteralType, *, integers: bool) -> Any:
    simple = declared.simple
    if simple == _Simple.STRUCT:
        return _conform_struct(value, declared, integers=integers)
    try:
        if simple == _Simple.INTEGER:
            return whole(value)
        if simple == _Simple.DATETIME:
            return moment(value)
        if simple == _Simple.DURATION:
            return duration(value)
        if simple in _BUILT:
            return build(value, _BUILT[simple])
    except Trouble:
        raise unlike(value, declared) from None
    if simple == _Simple.BINARY:
        return value  # MessagePack of anything
    raise unlike(value, declared)


def _conform_struct(value: Any, declared: types_pb2.LiteralType, *, integers: bool) -> Any:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise unlike(value, declared)
    if integers and declared.metadata.fields:
        schema = plain_struct(declared.metadata)
        return _with_integers(value, schema, schema)
    if integers and declared.structure.dataclass_type:
        fields = declared.structure.dataclass_type
        return {
            key: _whole_fields(item, fields[key]) if key in fields else item
            for key, item in value.items()
        }
    names = [f"item_{index}" for index in range(len(value))]
    if schema_title(declared).startswith("TupleWrapper_") and value.keys() == set(names):
        return tuple(value[name] for name in names)
    return value


def _whole_fields(value: Any, declared: types_pb2.LiteralType) -> Any:
    try:
        return conform(value, declared, integers=True)
    except Trouble:
        return value  # the fields steer; only the literal's own type is checked


def _conform_union(value: Any, declared: types_pb2.LiteralType, *, integers: bool) -> Any:
    near: list[Any] = []
    for variant in declared.union_type.variants:
        try:
            conformed = conform(value, variant, integers=integers)
        except Trouble:
            continue
        if type(conformed) is type(value):
            return conformed
        near.append(conformed)
    if near:
        return near[0]
    raise unlike(value, declared)


def _conform_blob(value: Any, declared: types_pb2.LiteralType) -> Blob:
    if isinstance(value, Blob):
        if value.multipart != (declared.blob.dimensionality == types_pb2.BlobType.MULTIPART):
            raise Trouble(
                f"is a {'directory' if value.multipart else 'file'}, not what is declared"
            )
        return value
    built = build(value, Blob)
    multipart = declared.blob.dimensionality == types_pb2.BlobType.MULTIPART
    return Blob(built.uri, built.format or declared.blob.format, multipart)


def _with_integers(value: Any, schema: Any, root: Mapping[str, Any]) -> Any:
    """Make ints of the doubles that a JSON schema calls integers; leave what it does not cover."""
    if not isinstance(schema, Mapping):
        return value
    if isinstance(reference := schema.get("$ref"), str):
        name = reference.rpartition("/")[2]
        defined = root.get("$defs") or root.get("definitions") or {}
        return _with_integers(value, defined.get(name), root)
    if isinstance(value, float):
        return int(value) if value.is_integer() and _says_integer(schema) else value
    choices = schema.get("anyOf") or schema.get("oneOf") or [schema]
    if isinstance(value, dict):
        for choice in choices:
            if isinstance(choice, Mapping) and "$ref" in choice:
                choice = root.get("$defs", {}).get(choice["$ref"].rpartition("/")[2])  # noqa: PLW2901
            if not isinstance(choice, Mapping):
                continue
            fields = choice.get("properties") or {}
            others = choice.get("additionalProperties")
            if fields or isinstance(others, Mapping):
                whole_keys = _says_integer(choice.get("propertyNames") or {})
                return {
                    _whole_key(key) if whole_keys else key: _with_integers(
                        item, fields.get(key, others), root
                    )
                    for key, item in value.items()
                }
    if isinstance(value, list):
        for choice in choices:
            if isinstance(choice, Mapping) and (choice.get("items") or choice.get("prefixItems")):
                first = choice.get("prefixItems") or []
                return [
                    _with_integers(item, first[i] if i < len(first) else choice.get("items"), root)
                    for i, item in enumerate(value)
                ]
    return value


def _says_integer(schema: Mapping[str, Any]) -> bool:
    kinds = [schema, *(schema.get("anyOf") or []), *(schema.get("oneOf") or [])]
    named = {kind.get("type") for kind in kinds if isinstance(kind, Mapping)}
    # marshmallow, long ago: {"type": "number", "format": "integer"}
    formats = {kind.get("format") for kind in kinds if isinstance(kind, Mapping)}
    return "integer" in formats or ("integer" in named and "number" not in named)


def _whole_key(key: str) -> str | int:
    digits = key.removeprefix("-")
    return int(key) if len(digits) < 20 and digits.isdecimal() else key


def unlike(value: Any, declared: types_pb2.LiteralType) -> Trouble:
    return Trouble(f"expected {describe(declared)}, found {type_name(type(value))}")
