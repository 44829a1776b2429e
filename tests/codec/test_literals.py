"""What the codec does with simple values, containers and maps, whatever is declared."""

from __future__ import annotations

import datetime as dt
import enum
import math
import random
import subprocess
import sys

import pytest
from flyteidl.core import interface_pb2, literals_pb2, types_pb2
from google.protobuf.message import DecodeError

from connector_service.codec import (
    CodecError,
    from_literal_map,
    to_literal,
    to_literal_map,
    to_literal_type,
    to_python,
)
from connector_service.codec.values import a_type

Simple = types_pb2.SimpleType
EAST = dt.timezone(dt.timedelta(hours=5, minutes=30))


def declared(simple: int) -> types_pb2.LiteralType:
    return types_pb2.LiteralType(simple=simple)


def variable(kind: object) -> interface_pb2.Variable:
    return interface_pb2.Variable(type=to_literal_type(kind))


def reparsed(literal: literals_pb2.Literal) -> literals_pb2.Literal:
    return literals_pb2.Literal.FromString(literal.SerializeToString())


SAME_BACK = [
    (0, Simple.INTEGER),
    (-1, Simple.INTEGER),
    (2**63 - 1, Simple.INTEGER),
    (-(2**63), Simple.INTEGER),
    (0.0, Simple.FLOAT),
    (-2.5, Simple.FLOAT),
    (math.inf, Simple.FLOAT),
    (-math.inf, Simple.FLOAT),
    (5e-324, Simple.FLOAT),
    ("", Simple.STRING),
    ("naïve \U0001f642 \x00", Simple.STRING),
    (True, Simple.BOOLEAN),
    (False, Simple.BOOLEAN),
    (None, Simple.NONE),
    (dt.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=dt.UTC), Simple.DATETIME),
    (dt.datetime(1, 1, 1, tzinfo=dt.UTC), Simple.DATETIME),
    (dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=dt.UTC), Simple.DATETIME),
    (dt.timedelta(0), Simple.DURATION),
    (dt.timedelta(days=-3, microseconds=1), Simple.DURATION),
    (b"\x00\xff", Simple.BINARY),
]


@pytest.mark.parametrize(("value", "simple"), SAME_BACK, ids=lambda value: repr(value)[:30])
def test_simple_values_survive(value: object, simple: int) -> None:
    """A simple value comes back equal and of its type, declared or not, through the wire."""
    for kind in (None, declared(simple)):
        back = to_python(reparsed(to_literal(value, kind)), kind)
        assert back == value
        assert type(back) is type(value)


def test_nan_survives() -> None:
    """NaN is a FLOAT like any other."""
    assert math.isnan(to_python(to_literal(math.nan, declared(Simple.FLOAT))))


@pytest.mark.parametrize(
    ("value", "back"),
    [
        pytest.param(dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), id="naive"),  # noqa: DTZ001
        pytest.param(
            dt.datetime(2024, 1, 1, tzinfo=EAST),
            dt.datetime(2023, 12, 31, 18, 30, tzinfo=dt.UTC),
            id="zone",
        ),
        pytest.param(dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), id="date"),
    ],
)
def test_times_are_utc(value: object, back: dt.datetime) -> None:
    """A time without a zone is taken for UTC, and every time comes back in UTC."""
    for kind in (None, declared(Simple.DATETIME)):
        assert to_python(to_literal(value, kind), kind) == back


class Text(str):
    __slots__ = ()


class Number(enum.IntEnum):
    ONE = 1


class Index:
    """What numpy's integers look like from here."""

    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("value", "simple", "back"),
    [
        (3, Simple.FLOAT, 3.0),
        (Text("x"), Simple.STRING, "x"),
        (Number.ONE, Simple.INTEGER, 1),
        (Index(), Simple.INTEGER, 7),
        (bytearray(b"x"), Simple.BINARY, b"x"),
        (memoryview(b"x"), Simple.BINARY, b"x"),
    ],
    ids=repr,
)
def test_near_types_are_taken_where_nothing_is_lost(
    value: object, simple: int, back: object
) -> None:
    """A subclass, an index and an int for a FLOAT encode as what is declared."""
    assert to_python(to_literal(value, declared(simple))) == back


@pytest.mark.parametrize(
    ("value", "simple"),
    [
        (True, Simple.INTEGER),
        (True, Simple.FLOAT),
        (1, Simple.BOOLEAN),
        (1.0, Simple.INTEGER),
        ("1", Simple.INTEGER),
        (1, Simple.STRING),
        (None, Simple.STRING),
        ("", Simple.NONE),
        ("2024-01-01", Simple.DATETIME),
        (1.5, Simple.DURATION),
        ([1], Simple.INTEGER),
        ("x", Simple.BINARY),
        ({}, Simple.ERROR),
        ([1], Simple.STRUCT),
    ],
    ids=repr,
)
def test_a_value_of_another_type_is_refused(value: object, simple: int) -> None:
    """A value that is not what is declared is refused with both types in the text."""
    with pytest.raises(CodecError) as caught:
        to_literal(value, declared(simple), path="outputs.x")
    name = types_pb2.SimpleType.Name(simple)
    assert str(caught.value) == f"outputs.x: cannot encode {a_type(type(value))} as {name}."


@pytest.mark.parametrize(
    ("literal", "simple", "back"),
    [
        (to_literal(3), Simple.FLOAT, 3.0),
        (to_literal(3.0), Simple.INTEGER, 3),
        (to_literal({"a": 1}), Simple.STRUCT, {"a": 1}),
    ],
    ids=["integer as FLOAT", "float as INTEGER", "struct"],
)
def test_the_declared_type_steers_decoding(
    literal: literals_pb2.Literal, simple: int, back: object
) -> None:
    """An integer under FLOAT is a float, and a whole float under INTEGER an int."""
    got = to_python(literal, declared(simple))
    assert got == back
    assert type(got) is type(back)


@pytest.mark.parametrize(
    ("literal", "simple", "problem"),
    [
        (to_literal(2.5), Simple.INTEGER, "expected INTEGER, found float"),
        (to_literal(math.inf), Simple.INTEGER, "expected INTEGER, found float"),
        (to_literal(1), Simple.STRING, "expected STRING, found int"),
        (to_literal("1"), Simple.INTEGER, "expected INTEGER, found str"),
        (to_literal(True), Simple.INTEGER, "expected INTEGER, found bool"),
        (to_literal(None), Simple.INTEGER, "expected INTEGER, found NoneType"),
        (to_literal([1]), Simple.INTEGER, "expected INTEGER, found a list"),
        (to_literal(1), Simple.STRUCT, "expected STRUCT, found int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_literal_of_another_type_is_refused(
    literal: literals_pb2.Literal, simple: int, problem: str
) -> None:
    """A literal that contradicts its declaration is refused rather than handed on."""
    with pytest.raises(CodecError, match=problem):
        to_python(literal, declared(simple))


SECRET = "hunter2-do-not-print"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**63, "v: cannot encode an integer beyond 64 bits."),
        ({"a": [2**64]}, "v.a[0]: cannot encode an integer beyond 64 bits."),
        (
            dt.datetime(1, 1, 1, tzinfo=EAST),
            "v: cannot encode a datetime outside the years 1 to 9999 in UTC.",
        ),
        (dt.timedelta.max, "v: cannot encode a timedelta beyond 10 000 years."),
        ("\ud800" + SECRET, "v: cannot encode a str with lone surrogates."),
        ({"rows": "\ud800" + SECRET}, "v: cannot encode this dict as MessagePack."),
        ({SECRET}, "v: cannot encode a set."),
        (object(), "v: cannot encode an object."),
        ([1, [object()]], "v[1][0]: cannot encode an object."),
        (
            {"rows": [0, 1, 2, {"odd key": object()}]},
            "v.rows[3]['odd key']: cannot encode an object.",
        ),
        ({(1, 2): SECRET}, "v['<tuple>']: cannot encode a mapping key of type tuple."),
        (lambda: SECRET, "v: cannot encode a function."),
        (type(SECRET), "v: cannot encode a type."),
        (complex(1, 2), "v: cannot encode a complex."),
        (iter([SECRET]), "v: cannot encode a list_iterator."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_names_the_path_and_never_the_value(value: object, text: str) -> None:
    """What has no literal form is refused in one sentence with the path and the type only."""
    with pytest.raises(CodecError) as caught:
        to_literal(value, path="v")
    assert str(caught.value) == text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_large_int_is_no_float() -> None:
    """An int too large for a double is refused, not rounded to infinity."""
    with pytest.raises(CodecError, match="this large as a FLOAT"):
        to_literal(10**400, declared(Simple.FLOAT))


@pytest.mark.parametrize(
    "value",
    [
        [],
        [[], []],
        [1, None, "x", [2.5]],
        {},
        {"a": {}, "b": [], "c": None},
        {"a": [{"b": [1, 2.5, True, None, b"x", "y"]}]},
        {1: "int", None: 0, False: 1, 2.5: "float", b"k": 2},
        {"max": 2**64 - 1, "min": -(2**63)},
        {"nan-free": math.inf},
    ],
    ids=repr,
)
def test_containers_survive(value: object) -> None:
    """Lists and dicts come back equal, empty ones included, with keys of their own type."""
    assert to_python(reparsed(to_literal(value))) == value


def test_an_undeclared_dict_is_messagepack_and_a_list_a_collection() -> None:
    """Without a declared type a dict takes flytekit's form and a list the form it refuses."""
    assert to_literal({"a": 1}).scalar.binary.tag == "msgpack"
    assert to_literal({"a": 1}).scalar.binary.value == b"\x81\xa1a\x01"
    assert len(to_literal([1, 2]).collection.literals) == 2
    assert to_literal([]).WhichOneof("value") == "collection"


def test_a_tuple_is_a_collection_and_a_set_within_a_struct_a_list() -> None:
    """A tuple encodes as a list does; a set has a form only inside MessagePack."""
    assert to_python(to_literal((1, "x"))) == [1, "x"]
    assert to_python(to_literal((1, 2), to_literal_type(list[int]))) == [1, 2]
    assert to_python(to_literal({"s": {1}})) == {"s": [1]}


MAPS = [
    (dict[str, int], {"a": 1}),
    (dict[str, int], {}),
    (dict[str, list[float]], {"a": [1.5], "": []}),
    (list[dict[str, str]], [{}, {"a": "b"}]),
    (list[dict], [{}, {"a": 1}]),
    (dict[int, str], {1: "a"}),
    (dict, {"a": {1: [None]}}),
    (list[int | None], [1, None]),
    (dict[str, int | str | None], {"a": 1, "b": "x", "c": None}),
]


@pytest.mark.parametrize(("kind", "value"), MAPS, ids=str)
def test_declared_containers_survive(kind: object, value: object) -> None:
    """A declared container comes back equal and says its own shape on the wire."""
    literal_type = to_literal_type(kind)
    literal = to_literal(value, literal_type)
    assert to_python(reparsed(literal), literal_type) == value
    assert to_python(reparsed(literal)) == value


def test_a_map_takes_only_text_keys() -> None:
    """A literal map's keys are text, and an int key is refused rather than rewritten."""
    with pytest.raises(CodecError, match="cannot encode a map key of type int, only str"):
        to_literal({1: 2}, to_literal_type(dict[str, int]))


def test_none_needs_a_place_that_admits_it() -> None:
    """None inside a collection is refused unless the element type is a union with none."""
    with pytest.raises(CodecError, match=r"outputs\.xs\[1\]: cannot encode a NoneType as INTEGER"):
        to_literal_map({"xs": [1, None]}, {"xs": variable(list[int])}, path="outputs")


def test_a_value_that_holds_itself_is_refused() -> None:
    """Self-reference ends in one clear sentence and no RecursionError."""
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(CodecError, match="or contains itself"):
        to_literal(loop)
    knot: dict[str, object] = {}
    knot["me"] = [knot]
    with pytest.raises(CodecError, match=r"^value\.me\[0\]: .*a dict that contains itself"):
        to_literal(knot)


def test_the_same_object_twice_is_no_loop() -> None:
    """Sharing is not self-reference: the value is written twice."""
    shared = {"a": [1]}
    assert to_python(to_literal({"x": shared, "y": [shared, shared]})) == {
        "x": shared,
        "y": [shared, shared],
    }


def test_nesting_has_a_limit_that_receivers_share() -> None:
    """What encodes can be parsed inside a request, and what could not be is refused."""

    def nested(levels: int, leaf: object) -> object:
        for _ in range(levels):
            leaf = [leaf]
        return leaf

    fits = nested(42, 1)
    outer = literals_pb2.LiteralMap(literals={"a": to_literal(fits)})
    assert from_literal_map(literals_pb2.LiteralMap.FromString(outer.SerializeToString()))
    with pytest.raises(CodecError, match="nested deeper than protobuf parsers read"):
        to_literal(nested(43, 1))
    assert to_python(to_literal({"a": nested(199, 1)}))
    for levels in (200, 100_000):
        with pytest.raises(CodecError, match="is nested deeper than 200 levels"):
            to_literal({"a": nested(levels, 1)})


def test_hostile_messagepack_is_an_error_and_no_crash() -> None:
    """Malformed, truncated and absurdly nested MessagePack each end in a CodecError."""
    for data in (b"\xc1", b"\x91", b"", b"\x91" * 100_000 + b"\xc0", b"\x81\x80\x01", b"\xa1\xff"):
        literal = literals_pb2.Literal()
        literal.scalar.binary.value = data
        literal.scalar.binary.tag = "msgpack"
        with pytest.raises(CodecError, match="malformed or too deeply nested MessagePack"):
            to_python(literal)


@pytest.mark.parametrize(
    ("literal", "problem"),
    [
        (literals_pb2.Literal(), "is a literal that holds no value"),
        (literals_pb2.Literal(scalar={}), "is a literal that holds no value"),
        (literals_pb2.Literal(scalar={"primitive": {}}), "is a literal that holds no value"),
        (
            literals_pb2.Literal(offloaded_metadata={"uri": "s3://b/k", "size_bytes": 9}),
            "was offloaded to storage, which this service does not read",
        ),
        (
            literals_pb2.Literal(scalar={"binary": {"value": b"x", "tag": "cbor"}}),
            "is a binary of an unknown format",
        ),
        (
            literals_pb2.Literal(scalar={"generic": {}}, metadata={"format": "pickle"}),
            "is a pickle, which this service never opens",
        ),
        (
            literals_pb2.Literal(scalar={"primitive": {"datetime": {"seconds": 10**14}}}),
            "is a datetime outside the years 1 to 9999",
        ),
        (
            literals_pb2.Literal(scalar={"primitive": {"duration": {"seconds": 10**18}}}),
            "is a duration longer than a timedelta holds",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_literal_without_a_value_here_is_refused(
    literal: literals_pb2.Literal, problem: str
) -> None:
    """An empty, offloaded, pickled or impossible literal is refused by name, wherever it is."""
    with pytest.raises(CodecError) as caught:
        to_python(literals_pb2.Literal(collection={"literals": [literal]}), path="inputs.x")
    assert str(caught.value) == f"inputs.x[0]: {problem}."


def test_an_untagged_binary_is_bytes_that_nobody_opens() -> None:
    """A pickle of flyte's arrives untagged and is handed on as bytes."""
    literal = literals_pb2.Literal(scalar={"binary": {"value": b"\x80\x05."}})
    assert to_python(literal) == b"\x80\x05."


def test_maps_go_by_the_variables() -> None:
    """Each named value is steered by its own variable, and unknown names by their own type."""
    variables = {"n": variable(float), "m": variable(dict[str, int]), "absent": variable(str)}
    literals = to_literal_map({"n": 1, "m": {"a": 1}, "more": {"a": 1}}, variables)
    assert literals.literals["n"].scalar.primitive.float_value == 1.0
    assert literals.literals["m"].WhichOneof("value") == "map"
    assert literals.literals["more"].scalar.binary.tag == "msgpack"
    assert from_literal_map(literals, variables) == {"n": 1.0, "m": {"a": 1}, "more": {"a": 1}}


def test_maps_work_with_a_templates_own_variables() -> None:
    """A protobuf map of variables steers too, and is not changed by being asked for a name."""
    interface = interface_pb2.VariableMap(variables={"n": variable(float)})
    to_literal_map({"n": 1, "other": 2}, interface.variables)
    assert list(interface.variables) == ["n"]


def test_empty_outputs_are_an_empty_map() -> None:
    """``outputs={}`` is a map that is set and empty, which Flyte writes as such."""
    empty = to_literal_map({}, {"x": variable(int)}, path="outputs")
    assert isinstance(empty, literals_pb2.LiteralMap)
    assert from_literal_map(empty, {"x": variable(int)}) == {}


def test_python_types_steer_a_map() -> None:
    """A wanted Python type applies to the name it is given for."""
    literals = to_literal_map({"d": dt.date(2024, 1, 1), "n": 1})
    assert from_literal_map(literals, python_types={"d": dt.date}) == {
        "d": dt.date(2024, 1, 1),
        "n": 1,
    }


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({1: 2}, "outputs[1]: expected a str for a name, found int."),
        ([1], "outputs: expected a mapping of names, found list."),
        (None, "outputs: expected a mapping of names, found NoneType."),
        (
            {"report": {"rows": [0, 1, 2, {3j}]}},
            "outputs.report.rows[3][0]: cannot encode a complex.",
        ),
        ({"\ud800": 1}, "outputs: has a name that is not text."),
    ],
    ids=str,
)
def test_a_bad_map_is_refused_with_the_path(values: object, text: str) -> None:
    """A map's error starts with its path and leads to the value."""
    with pytest.raises(CodecError) as caught:
        to_literal_map(values, path="outputs")  # type: ignore[arg-type]
    assert str(caught.value).encode("utf-8", "replace") == text.encode("utf-8", "replace")


def test_damaged_literals_end_in_a_value_or_a_codec_error() -> None:
    """Literals with random bytes changed, under right and wrong types, raise nothing else."""
    dice = random.Random(7)
    kinds = [kind for kind, _ in MAPS] + [int, str, dt.datetime, dt.timedelta, list[int | None]]
    types = [to_literal_type(kind) for kind in kinds]
    written = [to_literal(v, declared(simple)) for v, simple in SAME_BACK]
    written += [to_literal(value, to_literal_type(kind)) for kind, value in MAPS]
    outcomes = {"value": 0, "error": 0}
    for _ in range(3000):
        data = bytearray(dice.choice(written).SerializeToString())
        for _ in range(dice.randrange(4)):
            if data:
                data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            literal = literals_pb2.Literal.FromString(bytes(data))
        except DecodeError:
            continue
        index = dice.randrange(len(kinds))
        for literal_type, kind in (
            (None, None),
            (types[index], None),
            (types[index], kinds[index]),
        ):
            try:
                to_python(literal, literal_type, kind)
            except CodecError:
                outcomes["error"] += 1
            else:
                outcomes["value"] += 1
    assert min(outcomes.values()) > 100


def test_the_codec_imports_no_sdk() -> None:
    """Importing and using the codec loads no flytekit, flyte, pandas, pyarrow or pydantic."""
    program = (
        "import sys; from connector_service.codec import to_literal, to_python;"
        "to_python(to_literal([{'a': 1}]));"
        "print(*sorted({n.partition('.')[0] for n in sys.modules}"
        " & {'flytekit', 'flyte', 'pandas', 'pyarrow', 'pydantic', 'numpy', 'mashumaro'}))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout.strip() == b""
