"""Scalars: simple Python values, and messages that already are literals, to literals."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from flyteidl.core import literals_pb2 as pb
from flyteidl.core import types_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from connector_service.codec.flatten import pack
from connector_service.codec.values import LiteralError, Trouble, type_name

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BY_SIMPLE", "BY_TYPE", "binary", "integer", "packed", "pass_through", "string"]

_LONGEST_DURATION_SECONDS = 315_576_000_000
"""The range of google.protobuf.Duration, 10 000 years; beyond it other languages reject it."""

_Simple = types_pb2.SimpleType


def integer(value: int) -> pb.Literal:
    """Encode an int."""
    made = pb.Literal()
    try:
        made.scalar.primitive.integer = value
    except ValueError:  # its text quotes the value
        raise Trouble("cannot encode an integer beyond 64 bits") from None
    return made


def _float(value: float) -> pb.Literal:
    made = pb.Literal()
    try:
        made.scalar.primitive.float_value = float(value)
    except OverflowError:
        raise Trouble("cannot encode an integer this large as a FLOAT") from None
    return made


def string(value: str) -> pb.Literal:
    """Encode a str."""
    made = pb.Literal()
    try:
        made.scalar.primitive.string_value = value
    except UnicodeError:
        raise Trouble("cannot encode a str with lone surrogates") from None
    return made


def _boolean(value: bool) -> pb.Literal:
    made = pb.Literal()
    made.scalar.primitive.boolean = value
    return made


def _datetime(value: dt.datetime) -> pb.Literal:
    made = pb.Literal()
    try:
        # A datetime without a time zone is taken for UTC, as both SDKs take it.
        made.scalar.primitive.datetime.FromDatetime(value)
    except (OverflowError, ValueError):
        raise Trouble("cannot encode a datetime outside the years 1 to 9999 in UTC") from None
    return made


def _date(value: dt.date) -> pb.Literal:
    return _datetime(dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC))


def _duration(value: dt.timedelta) -> pb.Literal:
    if abs(value.total_seconds()) > _LONGEST_DURATION_SECONDS:
        raise Trouble("cannot encode a timedelta beyond 10 000 years")
    made = pb.Literal()
    made.scalar.primitive.duration.FromTimedelta(value)
    # An empty duration is still a duration: presence must survive.
    made.scalar.primitive.duration.SetInParent()
    return made


def _none(_: None) -> pb.Literal:
    made = pb.Literal()
    made.scalar.none_type.SetInParent()
    return made


def binary(value: bytes | bytearray | memoryview) -> pb.Literal:
    """Encode bytes, packed: flyte unpickles a bare binary scalar, whoever wrote it."""
    return packed(bytes(value))


def packed(value: object) -> pb.Literal:
    """Encode as the MessagePack binary scalar that both SDKs use for records."""
    made = pb.Literal()
    made.scalar.binary.value = pack(value)
    made.scalar.binary.tag = "msgpack"
    return made


def _error(value: LiteralError) -> pb.Literal:
    made = pb.Literal()
    made.scalar.error.message = value.message
    made.scalar.error.failed_node_id = value.failed_node_id
    made.scalar.error.SetInParent()
    return made


# By exact type, the hot path: one look-up per value.
BY_TYPE: dict[type, Callable[[Any], pb.Literal]] = {
    bool: _boolean,
    int: integer,
    float: _float,
    str: string,
    dt.datetime: _datetime,
    dt.date: _date,
    dt.timedelta: _duration,
    type(None): _none,
    bytes: binary,
    dict: packed,
    LiteralError: _error,
}

BY_SIMPLE: dict[tuple[int, type], Callable[[Any], pb.Literal]] = {
    (_Simple.INTEGER, int): integer,
    (_Simple.FLOAT, float): _float,
    (_Simple.FLOAT, int): _float,
    (_Simple.STRING, str): string,
    (_Simple.BOOLEAN, bool): _boolean,
    (_Simple.DATETIME, dt.datetime): _datetime,
    (_Simple.DATETIME, dt.date): _date,
    (_Simple.DURATION, dt.timedelta): _duration,
    (_Simple.NONE, type(None)): _none,
    (_Simple.ERROR, LiteralError): _error,
}


# --- messages --------------------------------------------------------------------------------

_PLACES: dict[str, Callable[[pb.Literal], Any]] = {
    "Literal": lambda made: made,
    "LiteralCollection": lambda made: made.collection,
    "LiteralMap": lambda made: made.map,
    "Scalar": lambda made: made.scalar,
    "Primitive": lambda made: made.scalar.primitive,
    "Blob": lambda made: made.scalar.blob,
    "Binary": lambda made: made.scalar.binary,
    "Schema": lambda made: made.scalar.schema,
    "Void": lambda made: made.scalar.none_type,
    "Error": lambda made: made.scalar.error,
    "StructuredDataset": lambda made: made.scalar.structured_dataset,
    "Union": lambda made: made.scalar.union,
    "LiteralOffloadedMetadata": lambda made: made.offloaded_metadata,
}


def pass_through(value: Any, declared: types_pb2.LiteralType | None) -> pb.Literal | None:
    """Return a literal that was passed as a value, of either protocol or flytekit's models."""
    if isinstance(value, pb.Literal):
        return value
    if not isinstance(value, Message):
        model = getattr(type(value), "to_flyte_idl", None)
        if not callable(model):
            return None
        value = _ask(model, value)
        if not isinstance(value, Message):
            return None
    package, _, name = value.DESCRIPTOR.full_name.rpartition(".")
    made = pb.Literal()
    if package in ("flyteidl.core", "flyteidl2.core") and name in _PLACES:
        place = _PLACES[name](made)
        place.MergeFromString(value.SerializeToString())
        place.SetInParent()
        return made
    if declared is not None and declared.simple != _Simple.STRUCT:
        return None
    try:
        made.scalar.generic.update(json_format.MessageToDict(value))
    except (ValueError, TypeError, AttributeError, json_format.Error):
        raise Trouble(f"cannot encode a {value.DESCRIPTOR.full_name} as a struct") from None
    return made


def _ask(model: Any, value: Any) -> Any:
    try:
        return model(value)
    except Exception as error:  # noqa: BLE001 - the SDK's code, or whoever has such a method
        kinds = type_name(type(value)), type_name(type(error))
        raise Trouble("{} could not give its message ({})".format(*kinds)) from None
