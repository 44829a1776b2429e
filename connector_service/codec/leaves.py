"""Plain data to Python values without parts: numbers, text, times and references."""

from __future__ import annotations

import datetime as dt
import decimal
import pathlib
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from connector_service.codec.values import (
    Blob,
    LiteralError,
    Schema,
    StructuredDataset,
    Trouble,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EXACT", "duration", "moment", "unfit", "whole"]


def whole(value: Any) -> int:
    """Read an int; a protobuf Struct, and JavaScript before it, has only doubles."""
    kind = type(value)
    if kind is int:
        return value  # type: ignore[no-any-return]
    if kind is float and value.is_integer():
        return int(value)
    if isinstance(value, int) and kind is not bool:
        return int(value)
    raise unfit(value, int)


def moment(value: Any) -> dt.datetime:
    """Read a datetime, or one written as ISO 8601 text."""
    if isinstance(value, dt.datetime):
        return value
    if isinstance(value, str):
        try:
            return dt.datetime.fromisoformat(value)
        except ValueError:
            pass
    raise unfit(value, dt.datetime)


def duration(value: Any) -> dt.timedelta:
    """Read a timedelta, or one written as a number of seconds or as ISO 8601 text."""
    if isinstance(value, dt.timedelta):
        return value
    try:
        if type(value) is float or type(value) is int:
            return dt.timedelta(seconds=value)
        if isinstance(value, str):
            return msgspec.convert(value, dt.timedelta)
    except (msgspec.ValidationError, OverflowError, ValueError):
        pass
    raise unfit(value, dt.timedelta)


def _day(value: Any) -> dt.date:
    if isinstance(value, dt.datetime):
        return value.date()
    if isinstance(value, dt.date):
        return value
    if isinstance(value, str):
        try:
            return dt.datetime.fromisoformat(value).date()  # reads a date alone too
        except ValueError:
            pass
    raise unfit(value, dt.date)


def _clock(value: Any) -> dt.time:
    if isinstance(value, dt.time):
        return value
    if isinstance(value, str):
        try:
            return dt.time.fromisoformat(value)
        except ValueError:
            pass
    raise unfit(value, dt.time)


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and type(value) is not bool:
        try:
            return float(value)
        except OverflowError:
            pass
    raise unfit(value, float)


def _raw(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):  # pydantic's JSON form of bytes is UTF-8 text
        return value.encode()
    raise unfit(value, bytes)


def _same(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is kind:
            return value
        raise unfit(value, kind)

    return check


def _from_text(kind: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if isinstance(value, (str, int)) and type(value) is not bool:
            try:
                return kind(str(value))
            except (ValueError, ArithmeticError):
                pass
        raise unfit(value, kind)

    return convert


def _from_map(kind: type, *keys: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if isinstance(value, dict) and isinstance(value.get(keys[0]), str):
            rest = [value[key] for key in keys[1:] if isinstance(value.get(key), str)]
            return kind(value[keys[0]], *rest[:1])
        raise unfit(value, kind)

    return convert


EXACT: dict[Any, Callable[[Any], Any]] = {
    bool: _same(bool),
    int: whole,
    float: _number,
    str: _same(str),
    bytes: _raw,
    bytearray: lambda value: bytearray(_raw(value)),
    dt.datetime: moment,
    dt.date: _day,
    dt.time: _clock,
    dt.timedelta: duration,
    decimal.Decimal: _from_text(decimal.Decimal),
    uuid.UUID: _from_text(uuid.UUID),
    pathlib.Path: _from_text(pathlib.Path),
    pathlib.PurePath: _from_text(pathlib.PurePath),
    pathlib.PurePosixPath: _from_text(pathlib.PurePosixPath),
    Blob: _from_map(Blob, "path", "format"),
    StructuredDataset: _from_map(StructuredDataset, "uri", "file_format", "format"),
    Schema: _from_map(Schema, "remote_path"),
    LiteralError: _from_map(LiteralError, "message", "failed_node_id"),
}


def unfit(value: object, wanted: Any) -> Trouble:
    """Say which type was expected and which was found."""
    return Trouble(f"expected {type_name(wanted)}, found {type_name(type(value))}")
