"""Many named strings decoded at once, by a schema that turns their messages into columns.

A literal that holds a string is four messages one in another, and protobuf makes a Python object
of each that is looked at. But a message that comes many times where a schema has one of it is
merged, and a field of it that repeats collects what all of them hold: so the same bytes, read by a
schema of ours, are one list of names and one of strings. Whether these are pairs, one of each in
every entry, is made sure by a second schema that requires both in each.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["strings"]

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "connector_service.columns"

# The messages around a string, outermost first: its name, and the field that holds the next. The
# numbers are those of ``Inputs`` and ``LiteralMap``, ``Literal``, ``Scalar`` and ``Primitive``.
_LEVELS = ("Inputs", 1), ("Entry", 2), ("Literal", 1), ("Scalar", 1)
_NAME, _STRING = 1, 3


def strings(data: bytes) -> dict[str, str] | None:
    """Return the values of encoded ``Inputs`` that are all strings; None if any is not.

    None is also returned for whatever is unusual or damaged, so that who knows every form reads it.
    """
    columns, pairs = _schemas()
    try:
        all_pairs = pairs.FromString(data)
        if not all_pairs.IsInitialized():
            return None
        count = len(all_pairs.inside)
        del all_pairs  # as large as the data
        message = columns.FromString(data)
        names: Any = ()
        while True:
            if len(UnknownFieldSet(message)):
                return None
            if message.DESCRIPTOR.name == "Entry":
                names = list(message.name)
            if message.DESCRIPTOR.name == "Primitive":
                break
            message = message.inside
        texts = list(message.text)
    except (DecodeError, UnicodeError):
        return None
    if not count == len(names) == len(texts):
        return None
    return dict(zip(names, texts, strict=True))


@functools.cache
def _schemas() -> tuple[type[Any], type[Any]]:
    """Make the schema of columns, and that of pairs, in a pool of their own."""
    pool = descriptor_pool.DescriptorPool()
    # In a schema of columns each message comes once, and what it holds comes many times; in that
    # of pairs an entry comes many times, and what it holds must be there.
    # (What is text must be text in proto3; only proto2 has fields that must be there.)
    once, many, must = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED, _Field.LABEL_REQUIRED
    columns = _schema(pool, "proto3", (once, once), many)
    pairs = _schema(pool, "proto2", (many, must), must)
    return columns, pairs


def _schema(pool: Any, syntax: str, inside: tuple[Any, Any], value: Any) -> type[Message]:
    """Make the messages, with the labels of entries and of what is in them, and of the values."""
    package = f"{_PACKAGE}.{syntax}"
    file = descriptor_pb2.FileDescriptorProto(name=package, package=package, syntax=syntax)
    names = [level for level, _ in _LEVELS] + ["Primitive"]
    for (level, number), following in zip(_LEVELS, names[1:], strict=True):
        message = file.message_type.add(name=level)
        message.field.add(
            name="inside",
            number=number,
            label=inside[level != "Inputs"],
            type=_Field.TYPE_MESSAGE,
            type_name=f".{package}.{following}",
        )
        if level == "Entry":
            message.field.add(name="name", number=_NAME, label=value, type=_Field.TYPE_STRING)
    last = file.message_type.add(name="Primitive")
    last.field.add(name="text", number=_STRING, label=value, type=_Field.TYPE_STRING)
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"{package}.Inputs"))
