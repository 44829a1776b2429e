"""Inputs decoded by plans: always what ``from_literal_map`` returns, or raises.

Their bytes are read by ``codec.quick``, or left by it; the messages made of them by ``decode``.
"""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest
from flyteidl.core import interface_pb2, literals_pb2
from flyteidl2.core import interface_pb2 as interface2_pb2
from flyteidl2.task import common_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from connector_service.codec import (
    CodecError,
    from_literal_map,
    to_literal,
    to_literal_map,
    to_literal_type,
)
from connector_service.codec import plans as plans_module
from connector_service.codec.convert import reread
from connector_service.codec.plans import Plans

QUICK = settings(max_examples=300, deadline=None, derandomize=True)
KINDS: list[Any] = [int, float, str, bool, dt.datetime, dt.timedelta, None, int | None, dict]
TYPES = st.recursive(
    st.sampled_from(KINDS),
    lambda inner: inner.map(lambda kind: list[kind]) | inner.map(lambda kind: dict[str, kind]),  # type: ignore[valid-type]
    max_leaves=3,
)
MOMENTS = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30), timezones=st.just(dt.UTC))  # noqa: DTZ001
OF_KIND: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1) | st.just(0),
    float: st.floats(allow_nan=False) | st.just(0.0),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    bool: st.booleans(),
    dt.datetime: MOMENTS | st.just(dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
    dt.timedelta: st.timedeltas(dt.timedelta(-9_999), dt.timedelta(9_999)),
}
SIMPLE = st.none() | st.one_of(*OF_KIND.values())
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text("ab"), inner, max_size=4),
    max_leaves=20,
)
NAMES = st.text("abcdefgh", min_size=1, max_size=3)


def variables(kinds: dict[str, Any]) -> interface_pb2.VariableMap:
    """Declare variables of Python types."""
    return interface_pb2.VariableMap(
        variables={
            name: interface_pb2.Variable(type=to_literal_type(kind)) for name, kind in kinds.items()
        }
    )


def inputs(literal_map: literals_pb2.LiteralMap) -> common_pb2.Inputs:
    """Return Flyte 2's message of the same literals."""
    return reread(literal_map, common_pb2.Inputs)


def outcome(decode: Any) -> Any:
    """Return what comes out, with every type told apart, or the error's text."""
    try:
        values = decode()
    except CodecError as error:
        return str(error)
    return [(name, told(value)) for name, value in values.items()]


def told(value: Any) -> str:
    """Tell a value and its type; a map of Flyte's has no order."""
    if isinstance(value, dict):
        return str(sorted((name, told(one)) for name, one in value.items()))
    return str([told(one) for one in value]) if isinstance(value, list) else repr(value)


def same(literal_map: literals_pb2.LiteralMap, declared: interface_pb2.VariableMap) -> None:
    """Check that both ways to decode agree, with a new plan and with one that is known."""
    message, plans = inputs(literal_map), Plans()
    expected = outcome(lambda: from_literal_map(message, declared.variables))
    other = reread(declared, interface2_pb2.VariableMap)
    for known in (declared, declared, other):
        plan = plans.find(known)
        assert outcome(lambda plan=plan: plan.decode(message)) == expected
        values = plan.read(message.SerializeToString())
        assert values is None or outcome(lambda values=values: values) == expected


@QUICK
@given(
    kinds=st.dictionaries(NAMES, TYPES, max_size=6),
    values=st.dictionaries(NAMES, VALUES, max_size=6),
)
def test_any_inputs_of_any_interface_decode_alike(kinds: Any, values: Any) -> None:
    """Whatever comes where something else is declared is converted, or refused, by one rule."""
    same(to_literal_map(values), variables(kinds))


@pytest.mark.parametrize(
    ("kind", "seconds", "nanos"),
    [
        *((dt.timedelta, *pair) for pair in [(-1, -1500), (0, -1500), (1, -1500), (1, 1999)]),
        *((dt.timedelta, *pair) for pair in [(0, 0), (1 << 62, 0), (1, 2_000_000_000)]),
        *((dt.datetime, *pair) for pair in [(-1, 1500), (1, -1), (1, 1_000_000_000), (1 << 40, 0)]),
    ],
)
def test_times_are_cut_and_refused_alike(kind: Any, seconds: int, nanos: int) -> None:
    """What is finer than a microsecond is cut toward zero; what Python cannot hold is refused."""
    literal_map = literals_pb2.LiteralMap()
    primitive = literal_map.literals["a"].scalar.primitive
    time = primitive.duration if kind is dt.timedelta else primitive.datetime
    time.seconds, time.nanos = seconds, nanos
    time.SetInParent()
    same(literal_map, variables({"a": kind}))


@QUICK
@given(kind=st.sampled_from(list(OF_KIND)), data=st.data())
def test_many_inputs_of_one_type_decode_alike(kind: Any, data: st.DataObject) -> None:
    """So many that they are read as a whole; one may be a default, of another type, or unnamed."""
    values: dict[str, Any] = {f"n{i}": data.draw(OF_KIND[kind]) for i in range(20)}
    kinds = dict.fromkeys(values, kind)
    change = data.draw(st.sampled_from(["nothing", "type", "name", "list", "map"]))
    if change == "type":
        values["n7"] = data.draw(SIMPLE)
    elif change == "name":
        del kinds["n7"]
    elif change == "list":
        values, kinds = {"all": [*values.values(), data.draw(SIMPLE)]}, {"all": list[kind]}
    elif change == "map":
        values = {"all": values | {"odd": data.draw(SIMPLE)}}
        kinds = {"all": dict[str, kind]}
    declared = variables(kinds)
    literal_map = literals_pb2.LiteralMap()
    for name, value in values.items():
        kind_of = None if change == "type" and name == "n7" else declared.variables.get(name)
        try:
            literal = to_literal(value, None if kind_of is None else kind_of.type)
        except CodecError:  # one of many is of another type
            is_map = isinstance(value, dict)
            literal = (
                literals_pb2.Literal(map=to_literal_map(value)) if is_map else to_literal(value)
            )
        literal_map.literals[name].CopyFrom(literal)
    same(literal_map, declared)


@pytest.mark.parametrize("kind", [int, str, dt.datetime, list[int], dict[str, str]])
def test_an_empty_literal_is_told_by_its_name(kind: Any) -> None:
    """A literal without a value is no default of its declared type."""
    literal_map = to_literal_map({f"n{i}": "x" for i in range(20)})
    literal_map.literals["n3"].Clear()
    same(literal_map, variables(dict.fromkeys(literal_map.literals, kind)))
    only = literals_pb2.LiteralMap(literals={"n3": literals_pb2.Literal()})
    with pytest.raises(CodecError, match=r"^inputs\.n3: is a literal that holds no value\.$"):
        Plans().find(variables({"n3": kind})).decode(inputs(only))


def test_a_name_listed_twice_has_its_last_literal_and_both_are_read() -> None:
    """As in ``from_literal_map``, also where all are read as a whole."""
    declared = variables({f"n{i}": str for i in range(20)})
    entries = list(inputs(to_literal_map({f"n{i}": f"{i}" for i in range(20)})).literals)
    again = common_pb2.Inputs(literals=[*entries, entries[0]])
    again.literals[-1].value.scalar.primitive.string_value = "last"
    assert Plans().find(declared).decode(again)[entries[0].name] == "last"
    again.literals[0].value.Clear()
    with pytest.raises(CodecError, match="holds no value"):
        Plans().find(declared).decode(again)


def test_plans_are_kept_up_to_a_number_of_bytes() -> None:
    """The oldest goes first, one that is too large is not kept, and each still decodes."""
    plans = Plans(most=100, largest=50)
    message = inputs(to_literal_map({"a": 1}))
    small = [variables({"a": int, "b" * length: str}) for length in range(1, 11)]
    for declared in small:
        assert plans.find(declared).decode(message) == {"a": 1}
    assert plans.find(small[-1]) is plans.find(small[-1])
    first = plans.find(small[0])
    assert plans.find(small[0]) is first
    for declared in small[1:]:
        plans.find(declared)
    assert plans.find(small[0]) is not first
    large = variables({"a": int, "b" * 100: str})
    assert plans.find(large) is not plans.find(large)
    assert plans.find(large).decode(message) == {"a": 1}


def test_plans_may_be_found_on_many_threads() -> None:
    """Threads that meet in one table keep its count right, and all decode."""
    plans = Plans(most=300)
    declared = [variables({"a": int, "b" * length: str}) for length in range(1, 30)]
    message = inputs(to_literal_map({"a": 1}))
    decoded: list[Any] = []

    def find() -> None:
        decoded.extend(plans.find(one).decode(message) for one in declared * 10)

    threads = [threading.Thread(target=find) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decoded == [{"a": 1}] * 4 * 10 * len(declared)
    assert plans._bytes == sum(map(len, plans._plans)) <= 300


# --- and back ----------------------------------------------------------------------------------

LENGTHS = st.sampled_from([0, 1, 100, 110, 111, 112, 117, 118, 120, 121, 127, 128, 200, 20_000])
TEXTS = st.tuples(st.sampled_from("xé\U0001f600"), LENGTHS).map(lambda pair: pair[0] * pair[1])


# Where a number takes a byte more, and where its sign decides.
EDGES = st.sampled_from([-(1 << 63), -129, -1, 0, 1, 127, 128, 16_383, 16_384, (1 << 63) - 1])


@QUICK
@given(values=st.dictionaries(TEXTS, TEXTS | EDGES | VALUES, max_size=5))
def test_a_map_written_as_bytes_is_the_map_of_its_literals(values: Any) -> None:
    """However long names and values are, each entry is the literal that its value makes."""
    expected = literals_pb2.LiteralMap()
    for name, value in values.items():
        expected.literals[name].CopyFrom(to_literal(value))
    made = to_literal_map(values)
    assert made == expected
    assert made.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"a": "\ud800"}, "outputs.a: cannot encode a str with lone surrogates."),
        ({"a": 1 << 63}, "outputs.a: cannot encode an integer beyond 64 bits."),
        ({"a": -(1 << 63) - 1}, "outputs.a: cannot encode an integer beyond 64 bits."),
        ({"\ud800": 1}, "outputs: has a name that is not text."),
        ({1: 1}, "outputs[1]: expected a str for a name, found int."),
    ],
    ids=ascii,
)
def test_what_cannot_be_written_is_named(values: Any, text: str) -> None:
    """The quick way knows nothing of errors: the other one tells them."""
    with pytest.raises(CodecError) as caught:
        to_literal_map(values, path="outputs")
    assert str(caught.value) == text


# --- the table of plans ------------------------------------------------------------------------


def test_a_plan_is_found_by_what_declares_it_too() -> None:
    """By bytes that stand for an interface, which are never taken for an interface itself."""
    plans = Plans()
    floats, ints = variables({"a": float}), variables({"a": int})
    message = inputs(to_literal_map({"a": 1}))
    within = ints.SerializeToString()
    assert repr(plans.find(floats, within).decode(message)) == "{'a': 1.0}"
    assert plans.find(floats, memoryview(within)) is plans.find(floats, within)
    assert repr(plans.find(ints).decode(message)) == "{'a': 1}"


def test_without_the_compiled_reader_all_is_decoded_by_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is installed where there is no C compiler."""
    monkeypatch.setattr(plans_module, "quick", None)
    values = {"a": [1, 2], "b": "x", "c": {"d": 0.5}}
    declared = variables({"a": list[int], "b": str, "c": dict[str, float]})
    plan, message = Plans().find(declared), inputs(to_literal_map(values))
    assert plan.read(message.SerializeToString()) is None
    assert plan.decode(message) == values
