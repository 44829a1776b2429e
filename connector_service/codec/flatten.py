"""Python objects to plain data, the content of a MessagePack literal.

Plain data is what MessagePack holds: None, bool, int, float, str, bytes, list and dict. Both SDKs
write dataclasses through mashumaro, so its forms are used here: a date or time is ISO 8601 text, a
timedelta a number of seconds, an enum its value, a tuple or set a list, Decimal, UUID and paths
text. Pydantic models are written as pydantic's own JSON, where a timedelta is ISO 8601 text.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from connector_service.codec.values import (
    Blob,
    Schema,
    StructuredDataset,
    Trouble,
    a_type,
    type_name,
)

__all__ = [
    "flatten",
    "is_namedtuple",
    "is_pydantic",
    "is_record",
    "pack",
    "refuse_sdk_class",
    "unpack",
]

DEEPEST = 200
"""Levels of plain data, well below the 511 at which the SDKs' msgpack library gives up."""

_SDK_ROOTS = frozenset({"flyte", "flytekit"})


def pack(value: object) -> bytes:
    """Write a value as MessagePack."""
    plain = flatten(value)
    try:
        return msgspec.msgpack.encode(plain)
    except (UnicodeError, OverflowError, ValueError, TypeError):
        # The reason would quote the value.
        raise Trouble(f"cannot encode this {type_name(type(value))} as MessagePack") from None


def unpack(data: bytes) -> Any:
    """Read MessagePack into plain data."""
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Trouble("holds malformed or too deeply nested MessagePack") from None


def is_pydantic(kind: object) -> bool:
    """Tell whether a type is a pydantic model, without importing pydantic."""
    model = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return model is not None and isinstance(kind, type) and issubclass(kind, model)


def is_namedtuple(kind: object) -> bool:
    """Tell whether a type is a named tuple."""
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def is_record(kind: type) -> bool:
    """Tell whether a type has named fields, so that its values pack as a map."""
    return (
        issubclass(kind, (Mapping, msgspec.Struct))
        or dataclasses.is_dataclass(kind)
        or is_namedtuple(kind)
        or is_pydantic(kind)
    )


def flatten(value: object) -> Any:
    """Turn a value into plain data; refuse what has no form there and what holds itself."""
    return _flatten(value, [])


def _flatten(value: Any, around: list[int]) -> Any:
    kind = type(value)
    if kind is str or kind is bool or kind is float or value is None or kind is bytes:
        return value
    if kind is int:
        return _ranged(value)
    leaf = _LEAVES.get(kind)
    if leaf is not None:
        return leaf(value)
    return _flatten_container(value, kind, around)


def _flatten_container(  # noqa: PLR0911 - one line per kind of type
    value: Any, kind: type, around: list[int]
) -> Any:
    identity = id(value)
    if identity in around:
        raise Trouble(f"cannot encode {a_type(kind)} that contains itself")
    if len(around) >= DEEPEST:
        raise Trouble(f"is nested deeper than {DEEPEST} levels")
    around.append(identity)
    try:
        if issubclass(kind, enum.Enum):
            return _flatten(value.value, around)
        refuse_sdk_class(kind)
        if issubclass(kind, Mapping):
            return _flatten_items(value.items(), around)
        if is_pydantic(kind):
            return _dump_pydantic(value)
        if issubclass(kind, msgspec.Struct):
            return _flatten_struct(value, around)
        if is_namedtuple(kind):
            return _flatten_items(value._asdict().items(), around)
        if issubclass(kind, (list, tuple, set, frozenset)):
            return _flatten_elements(value, around)
        if dataclasses.is_dataclass(kind):
            names = (field.name for field in dataclasses.fields(kind))
            return _flatten_items(((name, getattr(value, name)) for name in names), around)
        for base, leaf in _LEAVES.items():
            if issubclass(kind, base):
                return leaf(value)
    finally:
        around.pop()
    raise Trouble(f"cannot encode {a_type(kind)}")


def _flatten_elements(value: Any, around: list[int]) -> list[Any]:
    plain: list[Any] = []
    for index, element in enumerate(value):
        try:
            plain.append(_flatten(element, around))
        except Trouble as trouble:
            raise trouble.under(index) from None
    return plain


def _flatten_items(items: Any, around: list[int]) -> dict[Any, Any]:
    plain: dict[Any, Any] = {}
    for key, element in items:
        try:
            plain[_key(key)] = _flatten(element, around)
        except Trouble as trouble:
            raise trouble.under(key) from None
    return plain


def _flatten_struct(value: msgspec.Struct, around: list[int]) -> Any:
    config = value.__struct_config__
    values = [getattr(value, name) for name in value.__struct_fields__]
    if config.array_like:
        tag = [] if config.tag is None else [config.tag]
        return tag + _flatten_elements(values, around)
    tagged = {} if config.tag is None else {config.tag_field: config.tag}
    names = value.__struct_encode_fields__
    return tagged | _flatten_items(zip(names, values, strict=True), around)


def _dump_pydantic(value: Any) -> Any:
    # Both SDKs go through JSON, so a model's own serializers and NaN-to-null rule apply.
    try:
        return msgspec.json.decode(value.model_dump_json())
    except Exception as error:  # noqa: BLE001 - a model's serializers are its author's code
        kind = type_name(type(value))
        raise Trouble(f"cannot dump a {kind} as JSON ({type_name(type(error))})") from None


def _key(key: object) -> Any:
    kind = type(key)
    if kind is str or kind is bool or kind is float or key is None or kind is bytes:
        return key
    if isinstance(key, enum.Enum):
        return _key(key.value)
    if kind is int:
        return _ranged(key)
    for base, leaf in _LEAVES.items():
        if isinstance(key, base):
            return leaf(key)
    raise Trouble(f"cannot encode a mapping key of type {type_name(kind)}")


def _ranged(value: Any) -> int:
    if -(1 << 63) <= value < 1 << 64:
        return int(value)
    raise Trouble("cannot encode an integer beyond 64 bits")


def refuse_sdk_class(kind: type) -> None:
    """Refuse what only an SDK can encode: its files upload themselves, its frames need pandas."""
    if str(kind.__module__).partition(".")[0] in _SDK_ROOTS:
        raise Trouble(
            f"cannot encode {a_type(kind)}, "
            "pass the literal its own SDK makes of it or a value type of connector_service.codec"
        )


# A subclass is found by walking this in order: bool before int, datetime before date.
_LEAVES: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    int: _ranged,
    float: float,
    str: str.__str__,
    bytes: bytes,
    bytearray: bytes,
    memoryview: bytes,
    dt.datetime: dt.datetime.isoformat,
    dt.date: dt.date.isoformat,
    dt.time: dt.time.isoformat,
    dt.timedelta: dt.timedelta.total_seconds,
    decimal.Decimal: str,
    uuid.UUID: str,
    pathlib.PurePath: str,
    # The keys are those of flytekit's FlyteFile, StructuredDataset and FlyteSchema and of flyte's
    # File and DataFrame inside a dataclass; each SDK reads its own and ignores the other's.
    Blob: lambda blob: {"path": blob.uri, "format": blob.format},
    StructuredDataset: lambda table: {
        "uri": table.uri,
        "file_format": table.format,
        "format": table.format,
    },
    Schema: lambda schema: {"remote_path": schema.uri},
}
