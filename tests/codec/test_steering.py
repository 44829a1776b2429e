"""What a declared literal type decides: unions, references, Structs and fields cut from structs."""

from __future__ import annotations

import dataclasses
import datetime as dt
import pathlib
from typing import Any

import pytest
from flyteidl.core import interface_pb2, literals_pb2, types_pb2
from google.protobuf import struct_pb2

from connector_service.codec import (
    Blob,
    CodecError,
    LiteralError,
    Schema,
    StructuredDataset,
    from_literal_map,
    to_literal,
    to_literal_map,
    to_literal_type,
    to_python,
)

Simple = types_pb2.SimpleType


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Named:
    name: str


@dataclasses.dataclass
class Shape:
    points: list[Point]
    sizes: dict[str, int]
    by_id: dict[int, float]
    pair: tuple[int, float]
    maybe: int | None
    number: int | float
    point: Point | None


# --- unions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "tag"),
    [
        (int | str, 1, "int"),
        (int | str, "1", "str"),
        (float | int, 1, "int"),
        (float | str, 1, "float"),
        (str | bool | int, True, "bool"),
        (int | None, None, "none"),
        (int | list[str], ["a"], "Typed List"),
        (int | dict[str, int], {"a": 1}, "Typed Dict"),
        (list[int] | list[str], ["a"], "Typed List"),
        (dt.timedelta | dt.datetime, dt.timedelta(1), "timedelta"),
        (Named | Point, Point(1), "Object-Dataclass-Transformer"),
        (str | Blob, Blob("s3://b/k"), "FlyteFilePath"),
        (Blob | None, "s3://b/k", "FlyteFilePath"),
    ],
    ids=str,
)
def test_a_union_holds_the_nearest_variant(kind: Any, value: object, tag: str) -> None:
    """The variant of the value's own type is stored, wherever it stands in the declaration."""
    literal_type = to_literal_type(kind)
    union = to_literal(value, literal_type).scalar.union
    assert union.type.structure.tag == tag
    assert union.type in literal_type.union_type.variants


def test_a_union_of_records_goes_by_the_class_and_then_by_the_keys() -> None:
    """Of two dataclasses the value's own is stored, and of two fitting dicts the one by keys."""
    literal_type = to_literal_type(Named | Point)
    for value in (Point(1), Named("a")):
        literal = to_literal(value, literal_type)
        assert to_python(literal, literal_type, Named | Point) == value
    stored = to_literal({"x": 1, "y": 0.0}, literal_type).scalar.union.type
    assert stored.metadata["title"] == "Point"


def test_a_nested_union_survives() -> None:
    """A union within a union, which Python flattens and a literal type need not, goes both ways."""
    inner = to_literal_type(int | None)
    outer = types_pb2.LiteralType(union_type={"variants": [to_literal_type(str), inner]})
    for value in ("a", 1, None):
        literal = to_literal(value, outer)
        assert to_python(literal, outer) == value
    assert to_literal(1, outer).scalar.union.value.scalar.WhichOneof("value") == "union"


def test_a_value_of_no_variant_is_refused() -> None:
    """A union refuses what none of its variants takes, and names them all."""
    with pytest.raises(CodecError, match="cannot encode a float as INTEGER or list of STRING"):
        to_literal(1.5, to_literal_type(int | list[str]))
    with pytest.raises(CodecError, match="expected INTEGER or STRING, found float"):
        to_python(to_literal(1.5), to_literal_type(int | str))
    with pytest.raises(CodecError, match="expected INTEGER or STRING, found BOOLEAN"):
        to_python(to_literal(True, to_literal_type(bool | None)), to_literal_type(int | str))


def test_a_bare_literal_under_a_union_takes_the_fitting_variant() -> None:
    """A literal that propeller did not wrap is read as the variant it fits."""
    assert to_python(to_literal(3), to_literal_type(str | int)) == 3
    assert type(to_python(to_literal(3), to_literal_type(str | float))) is float
    assert to_python(to_literal([1]), to_literal_type(int | list[float])) == [1.0]
    assert to_python(to_literal(None), to_literal_type(int | None)) is None


def test_a_union_literal_under_a_plain_type_is_unwrapped() -> None:
    """The stored value of a union is what a plainly declared variable gets."""
    literal = to_literal(3, to_literal_type(int | None))
    assert to_python(literal, to_literal_type(float)) == 3.0
    assert to_python(literal) == 3


# --- fields that propeller cut out of a record -----------------------------------------------


@pytest.mark.parametrize(
    ("plain", "kind", "value"),
    [
        (1, int, 1),
        (1.0, int, 1),
        (1, float, 1.0),
        ("x", str, "x"),
        (True, bool, True),
        (None, int | None, None),
        ("2024-01-01T00:00:00", dt.datetime, dt.datetime(2024, 1, 1)),  # noqa: DTZ001
        (1.5, dt.timedelta, dt.timedelta(seconds=1.5)),
        ("PT2S", dt.timedelta, dt.timedelta(seconds=2)),
        ([1, 2], list[float], [1.0, 2.0]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"x": 1}, Point, {"x": 1}),
        ({"path": "s3://b/k"}, Blob, Blob("s3://b/k")),
        (
            {"uri": "s3://b/t", "file_format": "csv"},
            StructuredDataset,
            StructuredDataset("s3://b/t", "csv"),
        ),
        ({"remote_path": "s3://b/t"}, Schema, Schema("s3://b/t")),
        ({"message": "m", "failed_node_id": "n"}, LiteralError, LiteralError("m", "n")),
        ("x", int | str, "x"),
    ],
    ids=str,
)
def test_a_binary_scalar_is_what_its_variable_declares(
    plain: object, kind: Any, value: object
) -> None:
    """One field of a dataclass arrives as MessagePack and is read by the declared type."""
    literal = to_literal({"field": plain})
    literal.scalar.binary.value = literal.scalar.binary.value[len(b"\x81\xa5field") :]
    got = to_python(literal, to_literal_type(kind))
    assert got == value
    assert type(got) is type(value)


def test_a_binary_scalar_of_another_type_is_refused() -> None:
    """A field that is not what the variable declares is refused, with the place inside it."""
    literal = to_literal({"a": [1, "x"]})
    with pytest.raises(CodecError, match=r"value\.a\[1\]: expected INTEGER, found str"):
        to_python(literal, to_literal_type(dict[str, list[int]]))
    with pytest.raises(CodecError, match="expected INTEGER, found dict"):
        to_python(literal, to_literal_type(int))


# --- the older protobuf Struct ---------------------------------------------------------------


def generic(content: dict[str, Any]) -> literals_pb2.Literal:
    struct = struct_pb2.Struct()
    struct.update(content)
    return literals_pb2.Literal(scalar={"generic": struct})


SHAPE = {
    "points": [{"x": 1, "y": 2}],
    "sizes": {"a": 1},
    "by_id": {"7": 1},
    "pair": [1, 2],
    "maybe": 3,
    "number": 4,
    "point": {"x": 5, "y": 6},
}


def test_a_struct_has_floats_until_a_declaration_says_otherwise() -> None:
    """A Struct holds doubles: undeclared they stay, declared by a JSON schema they are ints."""
    assert to_python(generic({"a": 1, "b": [None, True, "x"]})) == {
        "a": 1.0,
        "b": [None, True, "x"],
    }
    got = to_python(generic(SHAPE), to_literal_type(Shape))
    (point,) = got["points"]
    assert {key: repr(number) for key, number in point.items()} == {"x": "1", "y": "2.0"}
    kinds = {key: type(got[key]).__name__ for key in ("maybe", "number")}
    assert kinds == {"maybe": "int", "number": "float"}
    assert got["by_id"] == {7: 1.0}
    assert [type(item) for item in got["pair"]] == [int, float]
    assert type(got["sizes"]["a"]) is int
    assert type(got["point"]["x"]) is int
    assert type(got["point"]["y"]) is float


def test_a_structs_ints_are_found_without_a_schema_too() -> None:
    """The map of field types that flytekit adds steers alone, and so does the wanted class."""
    literal_type = to_literal_type(Point)
    literal_type.ClearField("metadata")
    got = to_python(generic({"x": 1, "y": 2}), literal_type)
    assert type(got["x"]) is int
    assert type(got["y"]) is float
    assert to_python(generic(SHAPE), python_type=Shape) == Shape(
        [Point(1, 2.0)], {"a": 1}, {7: 1.0}, (1, 2.0), 3, 4, Point(5, 6.0)
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": {"type": "number", "format": "integer"}}},
        {
            "$ref": "#/definitions/P",
            "definitions": {"P": {"properties": {"x": {"type": "integer"}}}},
        },
        {"properties": {"x": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}},
        {"properties": {"x": {"$ref": "#/$defs/I"}}, "$defs": {"I": {"type": "integer"}}},
        {
            "anyOf": [{"$ref": "#/$defs/P"}],
            "$defs": {"P": {"additionalProperties": {"type": "integer"}}},
        },
    ],
    ids=["marshmallow", "definitions", "anyOf", "$defs", "variant"],
)
def test_every_dialect_of_schema_steers(schema: dict[str, Any]) -> None:
    """Ints are found in the schemas of marshmallow, mashumaro and pydantic."""
    literal_type = types_pb2.LiteralType(simple=Simple.STRUCT)
    literal_type.metadata.update(schema)
    assert type(to_python(generic({"x": 1}), literal_type)["x"]) is int


def test_a_fraction_stays_where_an_integer_is_declared_in_a_schema() -> None:
    """A schema steers and does not judge: 1.5 is not cut to 1."""
    assert to_python(generic({"x": 1.5}), to_literal_type(Point)) == {"x": 1.5}


def test_a_protobuf_variable_is_written_as_the_struct_that_sdks_read() -> None:
    """Under flytekit's protobuf type, and for a Struct itself, the older form is written."""
    literal_type = types_pb2.LiteralType(simple=Simple.STRUCT)
    literal_type.metadata.update({"pb_type": "x.Y"})
    assert to_literal({"a": "b"}, literal_type).scalar.generic["a"] == "b"
    assert to_literal(generic({"a": "b"}).scalar.generic).scalar.generic["a"] == "b"


# --- references ------------------------------------------------------------------------------


def blob_type(**words: Any) -> types_pb2.LiteralType:
    return types_pb2.LiteralType(blob=types_pb2.BlobType(**words))


MULTIPART = types_pb2.BlobType.MULTIPART


@pytest.mark.parametrize(
    ("value", "literal_type", "back"),
    [
        (Blob("s3://b/k", "csv"), None, Blob("s3://b/k", "csv")),
        (Blob("s3://b/d", multipart=True), None, Blob("s3://b/d", multipart=True)),
        (Blob("s3://b/k"), blob_type(format="csv"), Blob("s3://b/k", "csv")),
        ("s3://b/k", blob_type(format="csv"), Blob("s3://b/k", "csv")),
        ("s3://b/d", blob_type(dimensionality=MULTIPART), Blob("s3://b/d", multipart=True)),
        (pathlib.PurePosixPath("/a/b"), blob_type(), Blob("/a/b")),
        (
            Blob("s3://b/p", "PythonPickle"),
            blob_type(format="PythonPickle"),
            Blob("s3://b/p", "PythonPickle"),
        ),
        (LiteralError("m", "n"), None, LiteralError("m", "n")),
        (LiteralError(""), to_literal_type(LiteralError), LiteralError("")),
        (Schema("s3://b/t", {"a": "integer"}), None, Schema("s3://b/t", {"a": "integer"})),
        ("s3://b/t", to_literal_type(Schema), Schema("s3://b/t")),
        ("bq://p:d.t", to_literal_type(StructuredDataset), StructuredDataset("bq://p:d.t")),
        (
            StructuredDataset("bq://p:d.t", "bq", {"a": int}),
            None,
            StructuredDataset("bq://p:d.t", "bq", {"a": to_literal_type(int)}),
        ),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:40],
)
def test_references_survive(value: object, literal_type: Any, back: object) -> None:
    """Files, tables and errors come back equal, filled in from their declaration."""
    assert to_python(to_literal(value, literal_type), literal_type) == back


def test_a_declared_table_wins() -> None:
    """The declared format and columns are the table's, as in both SDKs."""
    literal_type = types_pb2.LiteralType()
    literal_type.structured_dataset_type.format = "parquet"
    literal_type.structured_dataset_type.columns.add(name="a", literal_type=to_literal_type(int))
    literal = to_literal(StructuredDataset("s3://b/t", "csv", {"b": str}), literal_type)
    back = to_python(literal, literal_type)
    assert back == StructuredDataset("s3://b/t", "parquet", {"a": to_literal_type(int)})


@pytest.mark.parametrize(
    ("value", "literal_type", "problem"),
    [
        ({"a": 1}, blob_type(format="PythonPickle"), "where a pickle is declared"),
        ("s3://b/k", blob_type(format="PythonPickle"), "where a pickle is declared"),
        (
            b"x",
            types_pb2.LiteralType(simple=Simple.BINARY, structure={"tag": "FlytePickle"}),
            "pickle",
        ),
        (Blob("u", multipart=True), blob_type(), "a directory where a file is declared"),
        (Blob("u"), blob_type(dimensionality=MULTIPART), "a file where a directory is declared"),
        (1, blob_type(), "cannot encode an int as blob"),
        (1, to_literal_type(StructuredDataset), "cannot encode an int as structured dataset"),
        (1, to_literal_type(Schema), "cannot encode an int as schema"),
        (Schema("u", {"a": "money"}), None, "value.a: has a column of no schema column type"),
        (StructuredDataset("u", columns={"a": Any}), None, "no literal type other than a pickle"),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:40],
)
def test_a_wrong_reference_is_refused(value: object, literal_type: Any, problem: str) -> None:
    """A pickle is never made, and a file is no directory."""
    with pytest.raises(CodecError, match=problem):
        to_literal(value, literal_type)


def test_a_directory_for_a_declared_file_is_refused_on_the_way_in_too() -> None:
    """Decoding checks the dimensionality that is declared."""
    with pytest.raises(CodecError, match="is a directory, not what is declared"):
        to_python(to_literal(Blob("u", multipart=True)), blob_type())


# --- messages as values ----------------------------------------------------------------------

SEVEN = to_literal(7)


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (SEVEN, 7),
        (SEVEN.scalar, 7),
        (SEVEN.scalar.primitive, 7),
        (literals_pb2.LiteralCollection(literals=[SEVEN]), [7]),
        (literals_pb2.LiteralCollection(), []),
        (literals_pb2.LiteralMap(literals={"a": SEVEN}), {"a": 7}),
        (literals_pb2.LiteralMap(), {}),
        (literals_pb2.Void(), None),
        (literals_pb2.Blob(uri="u"), Blob("u")),
        (literals_pb2.StructuredDataset(uri="u"), StructuredDataset("u")),
        (literals_pb2.Schema(uri="u"), Schema("u")),
        (types_pb2.Error(message="m"), LiteralError("m")),
        (to_literal(1, to_literal_type(int | None)).scalar.union, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_message_passes_through(message: Any, value: object) -> None:
    """A literal, or a part of one, is used as it is: alone, declared otherwise, in containers."""
    wrong = types_pb2.LiteralType(simple=Simple.STRING)
    assert to_python(to_literal(message)) == value
    assert to_python(to_literal(message, wrong)) == value
    assert to_python(to_literal([message])) == [value]
    assert to_python(to_literal({"k": message}, to_literal_type(dict[str, str]))) == {"k": value}


def test_a_literal_map_passes_through_as_outputs() -> None:
    """A connector may hand over the finished map."""
    finished = literals_pb2.LiteralMap(literals={"a": SEVEN})
    assert to_literal_map(finished) == finished
    with pytest.raises(CodecError, match="expected a mapping of names"):
        to_literal_map(SEVEN)


def test_flytekits_models_pass_through() -> None:
    """An object that knows its own message, as flytekit's models do, is asked for it."""

    class Model:
        def to_flyte_idl(self) -> literals_pb2.Literal:
            return SEVEN

    class Broken:
        def to_flyte_idl(self) -> str:
            return "nothing"

    assert to_python(to_literal(Model())) == 7
    assert to_python(to_literal([Model()], to_literal_type(list[int]))) == [7]
    with pytest.raises(CodecError, match="Broken"):
        to_literal(Broken())


def test_the_other_protocols_literals_pass_through() -> None:
    """A literal of flyteidl2, whose messages are other classes, is re-read."""
    literals2 = pytest.importorskip("flyteidl2.core.literals_pb2")
    literal = literals2.Literal.FromString(SEVEN.SerializeToString())
    assert to_python(to_literal(literal)) == 7
    assert isinstance(to_literal(literal), literals_pb2.Literal)


def test_a_self_made_deep_literal_is_an_error() -> None:
    """A literal nested past every limit, which no parser lets in, is no RecursionError."""
    literal = literals_pb2.Literal()
    inner = literal
    for _ in range(3000):
        inner = inner.collection.literals.add()
    with pytest.raises(CodecError, match="is nested too deeply"):
        to_python(literal)
    wrapped = literals_pb2.LiteralMap()
    wrapped.literals["a"].collection.literals.append(literals_pb2.Literal())
    with pytest.raises(CodecError, match=r"inputs\.a\[0\]: is a literal that holds no value"):
        from_literal_map(wrapped, {"a": interface_pb2.Variable()})


def test_what_a_later_flyte_adds_is_an_error_and_no_crash() -> None:
    """Enum numbers that this flyteidl cannot name are refused or called unknown."""
    newer = types_pb2.LiteralType.FromString(b"\x08\x63")  # simple: 99
    with pytest.raises(CodecError, match="cannot encode an int as simple type 99"):
        to_literal(1, newer)
    with pytest.raises(CodecError, match="expected simple type 99, found int"):
        to_python(SEVEN, newer)
    schema = literals_pb2.Literal()
    column = schema.scalar.schema.type.columns.add(name="a")
    column.MergeFromString(b"\x10\x63")
    assert to_python(schema) == Schema("", {"a": "unknown"})


def test_a_class_is_no_integer() -> None:
    """The class ``int`` has an ``__index__`` too, and is refused like any other class."""
    with pytest.raises(CodecError, match="cannot encode a type as INTEGER"):
        to_literal(int, to_literal_type(int))


def test_a_model_that_cannot_give_its_message_is_refused() -> None:
    """An exception of foreign code ends as a CodecError without its text."""

    class Failing:
        def to_flyte_idl(self) -> None:
            raise RuntimeError("hunter2")

    with pytest.raises(CodecError, match=r"Failing could not give its message \(RuntimeError\)"):
        to_literal(Failing())


def test_absurd_keys_stay_text() -> None:
    """A key of thousands of digits is not read as an int, which Python would refuse."""
    literal_type = to_literal_type(Shape)
    key = "9" * 5000
    got = to_python(generic({"by_id": {key: 1}}), literal_type)
    assert got["by_id"] == {key: 1.0}
