"""Dataclasses, models, structs, tuples and enums: packed as the SDKs pack them, and rebuilt."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import subprocess
import sys
import typing
import uuid
from typing import Any, NamedTuple, TypedDict

import msgspec
import pytest
from flyteidl.core import literals_pb2, types_pb2

from connector_service.codec import (
    Blob,
    CodecError,
    StructuredDataset,
    to_literal,
    to_literal_type,
    to_python,
)


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Crossed(enum.Enum):
    A = "B"
    B = "A"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Everything:
    when: dt.datetime
    day: dt.date
    clock: dt.time
    took: dt.timedelta
    color: Color
    level: Level
    points: list[Point]
    sizes: dict[int, str]
    pair: tuple[int, str]
    many: tuple[float, ...]
    tags: frozenset[int]
    raw: bytes
    price: decimal.Decimal
    key: uuid.UUID
    where: pathlib.PurePosixPath
    file: Blob
    table: StructuredDataset
    choice: typing.Literal["a", "b"]
    anything: Any
    either: int | str | Point | None = None
    computed: int = dataclasses.field(init=False, default=1)


EVERYTHING = Everything(
    when=dt.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    day=dt.date(2024, 1, 2),
    clock=dt.time(1, 2, 3),
    took=dt.timedelta(days=1, microseconds=5),
    color=Color.GREEN,
    level=Level.HIGH,
    points=[Point(1), Point(2, 2.5)],
    sizes={1: "one"},
    pair=(1, "x"),
    many=(1.0, 2.5),
    tags=frozenset({3}),
    raw=b"\x00\xff",
    price=decimal.Decimal("1.10"),
    key=uuid.UUID(int=7),
    where=pathlib.PurePosixPath("/a/b"),
    file=Blob("s3://b/k", "csv"),
    table=StructuredDataset("s3://b/t", "parquet"),
    choice="b",
    anything={"a": [1, None]},
    either=Point(5),
)


class Struct(msgspec.Struct, rename="camel", tag_field="kind", tag="struct"):
    long_name: int
    point: Point
    color: Color = Color.RED


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str


class Named(NamedTuple):
    a: int
    b: list[Point]
    c: str = "c"


class Typed(TypedDict, total=False):
    a: typing.Required[int]
    b: list[Point]


@dataclasses.dataclass
class Node:
    name: str
    next: Node | None = None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (EVERYTHING, Everything),
        (Struct(1, Point(2)), Struct),
        (Named(1, [Point(2)]), Named),
        ({"a": 1, "b": [Point(2)]}, Typed),
        ({"a": 1}, Typed),
        (Node("a", Node("b")), Node),
        ([Point(1), None], list[Point | None]),
        ({"a": Point(1)}, dict[str, Point]),
        ((1, Color.RED), tuple[int, Color]),
        (Color.RED, Color),
        ([Crossed.A, Crossed.B], list[Crossed]),
        ({"a": Crossed.A}, dict[str, Crossed]),
        (Level.LOW, Level),
        (Level.LOW, Level | None),
        ({1: Point(1)}, dict[int, Point]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_records_survive(value: object, kind: Any) -> None:
    """A record comes back equal as its own class, through its declared type and the wire."""
    literal_type = to_literal_type(kind)
    literal = to_literal(value, literal_type)
    literal = literals_pb2.Literal.FromString(literal.SerializeToString())
    assert to_python(literal, literal_type, kind) == value


def test_a_records_bytes_are_the_sdks() -> None:
    """The fields of a dataclass are written in the forms of mashumaro, which both SDKs use."""
    literal = to_literal(EVERYTHING)
    assert literal.scalar.binary.tag == "msgpack"
    assert to_python(literal) == {
        "when": "2024-01-02T03:04:05.000006+00:00",
        "day": "2024-01-02",
        "clock": "01:02:03",
        "took": 86400.000005,
        "color": "green",
        "level": 2,
        "points": [{"x": 1, "y": 0.0}, {"x": 2, "y": 2.5}],
        "sizes": {1: "one"},
        "pair": [1, "x"],
        "many": [1.0, 2.5],
        "tags": [3],
        "raw": b"\x00\xff",
        "price": "1.10",
        "key": "00000000-0000-0000-0000-000000000007",
        "where": "/a/b",
        "file": {"path": "s3://b/k", "format": "csv"},
        "table": {"uri": "s3://b/t", "file_format": "parquet", "format": "parquet"},
        "choice": "b",
        "anything": {"a": [1, None]},
        "either": {"x": 5, "y": 0.0},
        "computed": 1,
    }


def test_an_array_like_struct_is_an_array_inside_a_record() -> None:
    """A msgspec Struct keeps its own layout, renamed and tagged as it says."""
    assert to_python(to_literal({"row": Row(1, "x")})) == {"row": [1, "x"]}
    plain = to_python(to_literal(Struct(1, Point(2))))
    assert plain == {
        "kind": "struct",
        "longName": 1,
        "point": {"x": 2, "y": 0.0},
        "color": "red",
    }


@pytest.mark.parametrize(
    ("literal", "kind", "value"),
    [
        (to_literal({"x": 1.0}), Point, Point(1)),
        (to_literal({"x": 1, "y": 2, "more": 3}), Point, Point(1, 2.0)),
        (to_literal({"name": "a"}), Node, Node("a")),
        (to_literal({"1": "a"}), dict[int, str], {1: "a"}),
        (to_literal("P1DT1S"), dt.timedelta, dt.timedelta(days=1, seconds=1)),
        (to_literal(1.5), dt.timedelta, dt.timedelta(seconds=1.5)),
        (to_literal("2024-01-01T00:00:00Z"), dt.datetime, dt.datetime(2024, 1, 1, tzinfo=dt.UTC)),
        (to_literal(dt.date(2024, 1, 1)), dt.date, dt.date(2024, 1, 1)),
        (to_literal("RED"), Color, Color.RED),
        (to_literal(2), Level, Level.HIGH),
        (to_literal("LOW"), Level, Level.LOW),
        (to_literal({"item_0": 1, "item_1": "x"}), tuple[int, str], (1, "x")),
        (to_literal([1, 2]), tuple[int, ...], (1, 2)),
        (to_literal([1, 1]), set[int], {1}),
        (to_literal({"path": "s3://b/k"}), Blob, Blob("s3://b/k")),
        (to_literal({"x": 1, "y": 2.0}), Node | Point, Point(1, 2.0)),
        (to_literal(1), typing.NewType("Id", int), 1),
        (to_literal(1), typing.Annotated[float, "unit"], 1.0),
        (to_literal({"a": 1}), Any, {"a": 1}),
    ],
    ids=lambda value: str(value)[:30].replace("\n", ""),
)
def test_every_form_that_an_sdk_writes_is_read(
    literal: literals_pb2.Literal, kind: Any, value: object
) -> None:
    """A wanted type is built from each form in which either SDK, or a console, writes it."""
    got = to_python(literal, python_type=kind)
    assert got == value
    assert type(got) is type(value)


class Picky(msgspec.Struct):
    a: list[int]


@dataclasses.dataclass
class Angry:
    a: int

    def __post_init__(self) -> None:
        raise RuntimeError("hunter2")


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        ({"y": 1.0}, Point, "lacks the field 'x' of {here}.Point"),
        ({"x": "hunter2"}, Point, "x: expected int, found str"),
        ({"x": 1.5}, Point, "x: expected int, found float"),
        ({"name": "a", "next": {"name": 1}}, Node, "expected {here}.Node | None, found dict"),
        ("hunter2", Color, "expected {here}.Color, found str"),
        ("hunter2", dt.datetime, "expected datetime.datetime, found str"),
        ("hunter2", dt.timedelta, "expected datetime.timedelta, found str"),
        ("hunter2", uuid.UUID, "expected uuid.UUID, found str"),
        ("c", typing.Literal["a", "b"], "expected typing.Literal['a', 'b'], found str"),
        ([1], tuple[int, str], "holds 1 elements where tuple[int, str] has 2"),
        ([1, "x"], list[int], "[1]: expected int, found str"),
        ([[1]], set[list[int]], "expected set[list[int]], found list"),
        ({"a": ["hunter2"]}, Picky, "does not fit {here}.Picky at a[0]"),
        ({"a": 1}, Angry, "{here}.Angry refused it (RuntimeError)"),
        (1, Point, "expected {here}.Point, found int"),
        (True, int, "expected int, found bool"),
        (10**15, dt.timedelta, "expected datetime.timedelta, found int"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_misfit_is_refused_with_its_place(value: object, kind: Any, problem: str) -> None:
    """What does not fit the wanted type is refused with the path and types, not the value."""
    with pytest.raises(CodecError) as caught:
        to_python(to_literal(value), python_type=kind, path="v")
    assert problem.replace("{here}", __name__) in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_record_under_a_map_or_list_type_is_refused() -> None:
    """A dataclass declared as a list is nobody's list."""
    with pytest.raises(CodecError, match="as list of INTEGER"):
        to_literal(Point(1), to_literal_type(list[int]))
    with pytest.raises(CodecError, match="as map of INTEGER"):
        to_literal(Point(1), to_literal_type(dict[str, int]))


def test_an_enum_is_written_as_its_declaration_lists_it() -> None:
    """A member goes by value under flytekit's list and by name under flyte's, and comes back."""
    by_value = types_pb2.LiteralType(enum_type={"values": ["B", "A"]})
    by_name = types_pb2.LiteralType(enum_type={"values": ["A", "B"]})
    for literal_type, text in ((by_value, "B"), (by_name, "A")):
        literal = to_literal(Crossed.A, literal_type)
        assert literal.scalar.primitive.string_value == text
        assert to_python(literal, literal_type) == text
        assert to_python(literal, literal_type, Crossed) is Crossed.A
    assert to_literal("A", by_name).scalar.primitive.string_value == "A"
    for bad in ("C", Color.RED):
        with pytest.raises(CodecError, match="that the declared enum does not list"):
            to_literal(bad, by_name)
    with pytest.raises(CodecError, match="that the declared enum does not list"):
        to_python(to_literal("C"), by_name)


def test_pydantic_models_survive_and_are_written_as_json() -> None:
    """A pydantic model is dumped by its own rules and rebuilt, with enums by value or by name."""
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        color: Color
        took: dt.timedelta
        by_name: dict[str, list[Color]]
        point: Point | None = None

    value = Model(
        color=Color.RED, took=dt.timedelta(1), by_name={"a": [Color.GREEN]}, point=Point(1)
    )
    literal_type = to_literal_type(Model)
    literal = to_literal(value, literal_type)
    plain = to_python(literal, literal_type)
    assert plain["took"] == "P1D"
    assert to_python(literal, literal_type, Model) == value
    named = plain | {"color": "RED", "by_name": {"a": ["GREEN"]}}
    assert to_python(to_literal(named), python_type=Model) == value
    assert to_python(to_literal({"m": value}))["m"] == plain
    with pytest.raises(CodecError, match=r"does not fit .*Model at took") as caught:
        to_python(to_literal(plain | {"took": "hunter2"}), python_type=Model)
    assert "hunter2" not in str(caught.value)


def test_models_work_although_pydantic_is_never_imported_here() -> None:
    """Without pydantic a dataclass works, and the codec does not look for pydantic on disk."""
    program = (
        "import sys; sys.modules['pydantic'] = None\n"
        "import dataclasses\n"
        "from connector_service.codec import to_literal, to_python\n"
        "A = dataclasses.make_dataclass('A', [('x', int)])\n"
        "assert to_python(to_literal(A(1)), python_type=A) == A(1)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_sdks_own_classes_are_refused() -> None:
    """A flytekit file would have to be uploaded: it is refused rather than written as a struct."""
    kind = dataclasses.make_dataclass("FlyteFile", [("path", str)])
    kind.__module__ = "flytekit.types.file.file"
    for value in (kind("s3://b/k"), {"file": kind("s3://b/k")}):
        with pytest.raises(CodecError, match="FlyteFile, pass the literal its own SDK makes"):
            to_literal(value)


def test_a_recursive_record_that_holds_itself_is_refused() -> None:
    """A cycle through a dataclass is named like any other."""
    node = Node("a")
    node.next = node
    with pytest.raises(
        CodecError, match=r"^value\.next: cannot encode .*Node that contains itself"
    ):
        to_literal(node)


def test_an_authors_own_exception_stays_an_error_of_the_codec() -> None:
    """What a class raises while it is built or dumped ends as a CodecError that names the class."""
    pydantic = pytest.importorskip("pydantic")

    class Bomb(msgspec.Struct):
        a: int

        def __post_init__(self) -> None:
            raise RuntimeError("hunter2")

    class Mine(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        a: int

        @pydantic.field_validator("a")  # type: ignore[untyped-decorator, unused-ignore]
        @classmethod
        def explode(cls, a: int) -> int:
            raise RuntimeError("hunter2")

        @pydantic.model_serializer  # type: ignore[untyped-decorator, unused-ignore]
        def burst(self) -> dict[str, int]:
            raise RuntimeError("hunter2")

    for kind in (Bomb, Mine):
        with pytest.raises(CodecError, match=rf"{kind.__name__} refused it \(RuntimeError\)"):
            to_python(to_literal({"a": 1}), python_type=kind)
    with pytest.raises(CodecError, match=r"cannot dump a .*Mine as JSON") as caught:
        to_literal(Mine.model_construct(a=1))
    assert "hunter2" not in str(caught.value)


def test_annotations_that_cannot_be_resolved_do_not_stop_a_record() -> None:
    """A dataclass whose annotations name what is not there still travels, field by field."""
    kind = dataclasses.make_dataclass("Odd", [("a", "NoSuchType"), ("b", "int")])
    value = kind(a=[1], b=2)
    assert to_python(to_literal(value), python_type=kind) == value
    with pytest.raises(CodecError, match="Odd has annotations that cannot be resolved"):
        to_literal_type(kind)


@pytest.mark.parametrize(
    ("value", "kind", "back"),
    [
        ("2024-01-02T03:04:05", dt.date, dt.date(2024, 1, 2)),
        ([1, 2], list, [1, 2]),
        ({"a": 1}, dict, {"a": 1}),
        ([1], tuple, (1,)),
        ([1], set, {1}),
        ([1], frozenset, frozenset({1})),
        ("é", bytes, "é".encode()),
        (b"x", bytearray, bytearray(b"x")),
        (1, Level | str, Level.LOW),
        ([1, [Point(1)]], Named, Named(1, [Point(1)])),
        ({"1.5": 1}, dict[float, int], {1.5: 1}),
        (1.0, Level, Level.LOW),
    ],
    ids=str,
)
def test_bare_containers_and_near_forms_are_built(value: object, kind: Any, back: object) -> None:
    """A container type without elements, and text of a near form, are read as what is wanted."""
    got = to_python(to_literal(value), python_type=kind)
    assert got == back
    assert type(got) is type(back)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("hunter2", dt.date),
        ("hunter2", dt.time),
        (1, dt.time),
        (1, dt.date),
        (1, dt.datetime),
        (1, bytes),
        (None, float),
        (1, type(None)),
        ("a", dict[str, int]),
        (1, list[int]),
        (1, tuple[int]),
        (1, Named),
        ({"a": 1}, Named),
        ({"hunter2": 1}, dict[int, int]),
        ({"path": 1}, Blob),
        ({}, Typed),
        (1, typing.Callable[[int], int]),
    ],
    ids=str,
)
def test_every_builder_refuses_alike(value: object, kind: Any) -> None:
    """No builder raises anything but a CodecError, nor quotes what it was given."""
    with pytest.raises(CodecError) as caught:
        to_python(to_literal(value), python_type=kind)
    if not isinstance(value, dict):
        assert "hunter2" not in str(caught.value)
