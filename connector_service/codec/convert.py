"""The two protocols' message classes, and a message of one re-read as the other.

Every field of Flyte 1's requests and resources exists in Flyte 2 with the same number and type
(flyteidl 1.16.8, flyteidl2 2.0.53; a test holds the pinned facts together), so the bytes of one
parse as the other: no message is rebuilt field by field. A ``LiteralMap`` parses as ``Inputs`` or
``Outputs`` and back, since a map's entries are messages with the same two fields.
"""

from __future__ import annotations

import functools
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from flyteidl.admin import agent_pb2
from flyteidl.core import execution_pb2, literals_pb2, tasks_pb2
from flyteidl2.connector import connector_pb2
from flyteidl2.core import execution_pb2 as execution2_pb2
from flyteidl2.core import tasks_pb2 as tasks2_pb2
from flyteidl2.task import common_pb2
from google.protobuf.message import DecodeError, Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "MESSAGES",
    "FlyteProtocol",
    "Messages",
    "begin_field",
    "leading",
    "named_literals",
    "read",
    "reread",
    "split",
    "variables",
]

M = TypeVar("M", bound=Message)

# How protobuf writes a field, by the last three bits of its tag; fixed ones by their length.
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
_DEEPER = {3: 1, 4: -1}  # a group begins, and ends


class FlyteProtocol(StrEnum):
    """Which of Flyte's two protocols a call or a connector speaks; the value is its package."""

    FLYTE1 = "flyteidl"
    FLYTE2 = "flyteidl2"


class Messages(NamedTuple):
    """The classes that one protocol has for the same things."""

    inputs: type[Message]
    outputs: type[Message]
    task_template: type[Message]
    task_execution_metadata: type[Message]
    task_log: type[Message]
    resource: type[Message]
    logs: type[Message]
    metrics: type[Message]


MESSAGES: Mapping[str, Messages] = {
    FlyteProtocol.FLYTE1: Messages(
        inputs=literals_pb2.LiteralMap,
        outputs=literals_pb2.LiteralMap,
        task_template=tasks_pb2.TaskTemplate,
        task_execution_metadata=agent_pb2.TaskExecutionMetadata,
        task_log=execution_pb2.TaskLog,
        resource=agent_pb2.Resource,
        logs=agent_pb2.GetTaskLogsResponse,
        metrics=agent_pb2.GetTaskMetricsResponse,
    ),
    FlyteProtocol.FLYTE2: Messages(
        inputs=common_pb2.Inputs,
        outputs=common_pb2.Outputs,
        task_template=tasks2_pb2.TaskTemplate,
        task_execution_metadata=connector_pb2.TaskExecutionMetadata,
        task_log=execution2_pb2.TaskLog,
        resource=connector_pb2.Resource,
        logs=connector_pb2.GetTaskLogsResponse,
        metrics=connector_pb2.GetTaskMetricsResponse,
    ),
}


def reread(message: Message, kind: type[M]) -> M:
    """Return ``message`` as a ``kind``; itself when it is one already.

    Fields that only the other protocol has are left behind: Flyte 1's ``Resource.state``,
    ``agent_error`` and ``overrides``, Flyte 2's ``connection``.
    """
    if isinstance(message, kind):
        return message
    lingers = not _covers(kind, type(message))  # type: ignore[arg-type] # classes are hashable
    return read(message.SerializeToString(), kind, discard=lingers)


def read(data: bytes | memoryview, kind: type[M], *, discard: bool = True) -> M:
    """Return the bytes of a message of either protocol as a ``kind``.

    To ``discard`` what only the other protocol has takes as long as to parse: it goes through the
    whole message.

    Raises:
        DecodeError: They are no message.
    """
    message = kind.FromString(data)  # type: ignore[arg-type] # any buffer does
    if discard:
        message.DiscardUnknownFields()
    return message


@functools.cache
def _covers(kind: type[Message], other: type[Message]) -> bool:
    """Tell whether a ``kind`` has every field of another class, so that it leaves none behind."""
    return _has_all(kind.DESCRIPTOR, other.DESCRIPTOR, set())


def _has_all(kind: Any, other: Any, seen: set[tuple[str, str]]) -> bool:
    pair = kind.full_name, other.full_name
    if pair in seen:
        return True
    seen.add(pair)
    for number, theirs in other.fields_by_number.items():
        ours = kind.fields_by_number.get(number)
        if ours is None or ours.type != theirs.type:
            return False
        if theirs.message_type and not _has_all(ours.message_type, theirs.message_type, seen):
            return False
    return True


@functools.lru_cache(1024)
def begin_field(number: int, size: int) -> bytes:
    """Write what stands before a field of ``size`` bytes: its number, its kind and its length."""
    written = bytearray((number << 3 | _BYTES,))
    while size > 0x7F:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    written.append(size)
    return bytes(written)


def leading(data: bytes | memoryview, number: int) -> tuple[memoryview, memoryview] | None:
    """Take a message field that comes first out of an encoded message, where it does.

    Every library writes fields by their numbers, so the first is found at once. Returns views of
    the rest, which may hold the field again, and of the field.

    Raises:
        DecodeError: The bytes are no message.
    """
    if not data or data[0] != number << 3 | _BYTES:
        return None
    view = memoryview(data)
    try:
        length, position = _varint(view, 1)
    except IndexError:
        length, position = len(view), 0
    end = position + length
    if not position or end > len(view):
        raise DecodeError("The message is truncated.")
    return view[end:], view[position:end]


def split(data: bytes | memoryview, number: int) -> tuple[bytes | memoryview, bytes | memoryview]:
    """Take one message field out of an encoded message: the bytes of the rest, and the field's.

    The field's are a view of ``data``, or a copy in the rare case that it comes in parts; empty
    when it is not there.

    Raises:
        DecodeError: The bytes are no message.
    """
    view = memoryview(data)
    rest, parts = [], []
    position = depth = 0
    try:
        while position < len(view):
            start = position
            tag, position = _varint(view, position)
            kind = tag & 7
            length = _FIXED.get(kind, 0)
            if kind == _VARINT:
                _, position = _varint(view, position)
            elif kind == _BYTES:
                length, position = _varint(view, position)
            depth += _DEEPER.get(kind, 0)
            end = position + length
            if kind == _BYTES and tag >> 3 == number and not depth:
                parts.append(view[position:end])
            else:
                rest.append(view[start:end])
            position = end
    except IndexError:
        position = len(view) + 1
    if position != len(view):
        raise DecodeError("The message is truncated.")
    return b"".join(rest), parts[0] if len(parts) == 1 else b"".join(parts)


def variables(declared: Any) -> Mapping[str, Any]:
    """Return an interface's ``VariableMap`` by name; Flyte 2 lists it as entries."""
    entries = declared.variables
    if hasattr(entries, "items"):
        by_name: Mapping[str, Any] = entries
        return by_name
    return {entry.key: entry.value for entry in entries}


def named_literals(values: Any) -> Iterable[tuple[str, Any]]:
    """Yield the names and literals of a ``LiteralMap``, an ``Inputs`` or an ``Outputs``."""
    literals = values.literals
    if hasattr(literals, "items"):
        yield from literals.items()
    else:
        for entry in literals:
            yield entry.name, entry.value


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, lowest first, and where the next thing stands."""
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError(position)
