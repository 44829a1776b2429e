"""Python types as literal types."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import typing
from typing import Any, NamedTuple, TypedDict

import msgspec
import pytest
from flyteidl.core import types_pb2
from google.protobuf import json_format

from connector_service.codec import (
    Blob,
    CodecError,
    LiteralError,
    Schema,
    StructuredDataset,
    to_literal_type,
)

Simple = types_pb2.SimpleType


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1


class Flags(enum.Flag):
    A = 1


class Empty(enum.Enum):
    pass


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
    z: Any = None


@dataclasses.dataclass
class Node:
    name: str
    children: list[Node] = dataclasses.field(default_factory=list)
    colors: dict[str, Color] = dataclasses.field(default_factory=dict)


class Struct(msgspec.Struct):
    a: int
    b: str | None = None


class Named(NamedTuple):
    a: int
    b: frozenset[str] = frozenset()


class Typed(TypedDict, total=False):
    a: typing.Required[int]
    b: tuple[int, str]


def as_dict(kind: Any) -> dict[str, Any]:
    return json_format.MessageToDict(to_literal_type(kind))


@pytest.mark.parametrize(
    ("kind", "literal_type"),
    [
        (int, {"simple": "INTEGER"}),
        (float, {"simple": "FLOAT"}),
        (str, {"simple": "STRING"}),
        (bool, {"simple": "BOOLEAN"}),
        (dt.datetime, {"simple": "DATETIME"}),
        (dt.date, {"simple": "DATETIME"}),
        (dt.timedelta, {"simple": "DURATION"}),
        (None, {"simple": "NONE"}),
        (type(None), {"simple": "NONE"}),
        (bytes, {"simple": "BINARY"}),
        (LiteralError, {"simple": "ERROR"}),
        (Blob, {"blob": {}}),
        (StructuredDataset, {"structuredDatasetType": {}}),
        (Schema, {"schema": {}}),
        (list[int], {"collectionType": {"simple": "INTEGER"}}),
        (typing.List[int], {"collectionType": {"simple": "INTEGER"}}),  # noqa: UP006
        (tuple[int, ...], {"collectionType": {"simple": "INTEGER"}}),
        (dict[str, float], {"mapValueType": {"simple": "FLOAT"}}),
        (typing.Annotated[int, "unit"], {"simple": "INTEGER"}),
        (typing.NewType("Id", str), {"simple": "STRING"}),
        (Color, {"enumType": {"values": ["red", "green"]}}),
        (Level, {"enumType": {"values": ["LOW"]}}),
        (
            int | None,
            {
                "unionType": {
                    "variants": [
                        {"simple": "INTEGER", "structure": {"tag": "int"}},
                        {"simple": "NONE", "structure": {"tag": "none"}},
                    ]
                }
            },
        ),
        (
            typing.Literal["a", "b"],
            {"simple": "STRING", "annotation": {"annotations": {"literal_values": ["a", "b"]}}},
        ),
    ],
    ids=str,
)
def test_a_type_has_its_literal_type(kind: Any, literal_type: dict[str, Any]) -> None:
    """A Python type has exactly the literal type that flytekit gives it."""
    assert as_dict(kind) == literal_type


def test_an_untyped_dict_is_a_struct_marked_as_messagepack() -> None:
    """A dict, and one whose keys are not text, is a struct whose cache key propeller can make."""
    expected = {
        "simple": "STRUCT",
        "annotation": {"annotations": {"cache-key-metadata": {"serialization-format": "msgpack"}}},
    }
    assert as_dict(dict) == expected
    assert as_dict(dict[int, str]) == expected


def test_a_dataclass_carries_its_schema_and_field_types() -> None:
    """A dataclass tells a console its schema, propeller its fields, and flyte its transformer."""
    made = as_dict(Point)
    assert made["metadata"] == {
        "type": "object",
        "title": "Point",
        "properties": {"x": {"type": "integer"}, "y": {"type": "number"}, "z": {}},
        "required": ["x"],
        "additionalProperties": False,
    }
    assert made["structure"] == {
        "tag": "Object-Dataclass-Transformer",
        "dataclassType": {"x": {"simple": "INTEGER"}, "y": {"simple": "FLOAT"}},
    }


@pytest.mark.parametrize(
    ("kind", "required"),
    [(Struct, ["a"]), (Named, ["a"]), (Typed, ["a"]), (Node, ["name"])],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_record_has_a_schema(kind: type, required: list[str]) -> None:
    """Structs, named tuples, typed dicts and recursive classes have a finite, titled schema."""
    metadata = as_dict(kind)["metadata"]
    assert metadata["title"] == kind.__name__
    assert metadata["required"] == required


def test_a_tuple_is_flytes_wrapper() -> None:
    """A tuple of fixed length is the struct that flyte wraps it in."""
    metadata = as_dict(tuple[int, str])["metadata"]
    assert metadata["title"] == "TupleWrapper_tuple"
    assert metadata["required"] == ["item_0", "item_1"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (list, "type: list has no literal type other than a pickle."),
        (Any, "type: typing.Any has no literal type other than a pickle."),
        (set[int], "type: set[int] has no literal type other than a pickle."),
        (object, "type: object has no literal type other than a pickle."),
        (complex, "type: complex has no literal type other than a pickle."),
        (list[complex], "type.element: complex has no literal type other than a pickle."),
        (dict[str, Any], "type.value: typing.Any has no literal type other than a pickle."),
        (
            Flags,
            f"type: {__name__}.Flags has no members that a literal can name.",
        ),
        (
            Empty,
            f"type: {__name__}.Empty has no members that a literal can name.",
        ),
        (
            typing.Literal["a", 1],
            "type: Literal[...] has a literal type only for choices of one simple type.",
        ),
    ],
    ids=str,
)
def test_what_would_be_a_pickle_is_refused(kind: Any, text: str) -> None:
    """A type that the SDKs would pickle has no literal type here."""
    with pytest.raises(CodecError) as caught:
        to_literal_type(kind)
    assert str(caught.value) == text
