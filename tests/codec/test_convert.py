"""A message of one protocol read as the other, and what both name differently read alike."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from flyteidl.admin import agent_pb2
from flyteidl.core import interface_pb2, literals_pb2, tasks_pb2
from flyteidl2.connector import connector_pb2
from flyteidl2.core import interface_pb2 as interface2_pb2
from flyteidl2.core import literals_pb2 as literals2_pb2
from flyteidl2.core import tasks_pb2 as tasks2_pb2
from flyteidl2.task import common_pb2
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from connector_service import (
    Blob,
    StructuredDataset,
    from_literal_map,
    to_literal,
    to_literal_map,
)
from connector_service.codec import to_literal_type
from connector_service.codec.convert import (
    MESSAGES,
    named_literals,
    read,
    reread,
    split,
    variables,
)

# A surrogate is no text on the wire; everything else is.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | TEXT
    | st.binary(max_size=8)
    | st.datetimes(timezones=st.just(dt.UTC))
    | st.timedeltas(dt.timedelta(days=-9_999), dt.timedelta(days=9_999)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
QUICK = settings(max_examples=100, deadline=None, derandomize=True)


def literal_maps() -> st.SearchStrategy[literals_pb2.LiteralMap]:
    """Make maps of literals with everything that surrounds their values."""

    def build(named: dict[str, tuple[Any, str, dict[str, str]]]) -> literals_pb2.LiteralMap:
        made = literals_pb2.LiteralMap()
        for name, (value, text_hash, metadata) in named.items():
            made.literals[name].CopyFrom(to_literal(value))
            made.literals[name].hash = text_hash
            made.literals[name].metadata.update(metadata)
        return made

    one = st.tuples(VALUES, TEXT, st.dictionaries(TEXT, TEXT, max_size=2))
    return st.dictionaries(TEXT, one, max_size=5).map(build)


@pytest.mark.parametrize("kind", [common_pb2.Inputs, common_pb2.Outputs])
@QUICK
@given(literal_map=literal_maps())
def test_any_literal_map_goes_there_and_back(kind: Any, literal_map: Any) -> None:
    """Flyte 1's map is Flyte 2's list of named literals and back, and means the same in both."""
    there = reread(literal_map, kind)
    assert type(there) is kind
    assert reread(there, literals_pb2.LiteralMap) == literal_map
    assert from_literal_map(there) == from_literal_map(literal_map)
    assert sorted(name for name, _ in named_literals(there)) == sorted(literal_map.literals)


@QUICK
@given(literal_map=literal_maps(), chosen=st.randoms(use_true_random=False))
def test_the_order_of_named_literals_means_nothing(literal_map: Any, chosen: Any) -> None:
    """However Flyte 2 lists its inputs, they are one map."""
    entries = list(reread(literal_map, common_pb2.Inputs).literals)
    chosen.shuffle(entries)
    shuffled = common_pb2.Inputs(literals=entries)
    assert reread(shuffled, literals_pb2.LiteralMap) == literal_map
    assert from_literal_map(shuffled) == from_literal_map(literal_map)


def test_a_name_listed_twice_has_its_last_literal_in_both_readings() -> None:
    """Protobuf keeps a map's last entry, and so does a dict: the two shapes agree."""
    twice = common_pb2.Inputs(
        literals=[
            common_pb2.NamedLiteral(name="a", value=literals2_pb2.Literal(hash=text))
            for text in ("first", "last")
        ]
    )
    assert reread(twice, literals_pb2.LiteralMap).literals["a"].hash == "last"
    assert dict(named_literals(twice))["a"].hash == "last"


@pytest.mark.parametrize("messages", MESSAGES.values(), ids=list(MESSAGES))
@pytest.mark.parametrize("field", MESSAGES["flyteidl"]._fields)
def test_a_message_of_the_wanted_class_is_itself(messages: Any, field: str) -> None:
    """Where nothing has to be converted nothing is copied either."""
    message = getattr(messages, field)()
    assert reread(message, type(message)) is message


@pytest.mark.parametrize("field", MESSAGES["flyteidl"]._fields)
def test_both_protocols_have_a_class_of_their_own_for_each_thing(field: str) -> None:
    """The two columns of the table are different classes, and an empty one is empty in both."""
    first, second = (getattr(messages, field) for messages in MESSAGES.values())
    assert first is not second
    assert reread(first(), second) == second()
    assert reread(second(), first) == first()


def test_what_only_one_protocol_has_is_left_behind() -> None:
    """No field of the other protocol lingers unknown in what was read, to surprise its client."""
    resource = agent_pb2.Resource(
        state=agent_pb2.SUCCEEDED, message="m", agent_error=agent_pb2.AgentError(code="C")
    )
    there = reread(resource, connector_pb2.Resource)
    assert there == connector_pb2.Resource(message="m")
    assert there.SerializeToString() == connector_pb2.Resource(message="m").SerializeToString()


def test_a_template_keeps_every_field() -> None:
    """A task template of either protocol reads as the other's, nested messages and maps too."""
    template = tasks_pb2.TaskTemplate(
        type="t",
        task_type_version=3,
        interface=interface_pb2.TypedInterface(
            inputs=interface_pb2.VariableMap(
                variables={"n": interface_pb2.Variable(description="d")}
            )
        ),
        custom={"a": {"b": [1, None, "c"]}},
        container=tasks_pb2.Container(image="i", env=[{"key": "k", "value": "v"}]),
        config={"k": "v"},
        security_context={"run_as": {"iam_role": "r"}},
    )
    there = reread(template, tasks2_pb2.TaskTemplate)
    assert there.custom["a"]["b"][2] == "c"
    assert there.config["k"] == "v"
    assert there.container.env[0].value == "v"
    assert reread(there, tasks_pb2.TaskTemplate) == template


def test_variables_are_by_name_in_either_protocol() -> None:
    """Flyte 1 has a map of them, Flyte 2 a list of entries; an undeclared interface has none."""
    first = interface_pb2.VariableMap(
        variables={name: interface_pb2.Variable(description=name) for name in ("a", "b")}
    )
    second = reread(first, interface2_pb2.VariableMap)
    assert {name: one.description for name, one in variables(first).items()} == {"a": "a", "b": "b"}
    assert {name: one.description for name, one in variables(second).items()} == {
        "a": "a",
        "b": "b",
    }
    assert dict(variables(interface_pb2.VariableMap())) == {}
    assert dict(variables(interface2_pb2.VariableMap())) == {}


def test_named_literals_of_every_class() -> None:
    """A map, inputs and outputs give the same names and literals."""
    literal_map = to_literal_map({"a": 1, "b": "x"})
    for kind in (literals_pb2.LiteralMap, common_pb2.Inputs, common_pb2.Outputs):
        found = dict(named_literals(reread(literal_map, kind)))
        assert {name: reread(one, literals_pb2.Literal) for name, one in found.items()} == dict(
            literal_map.literals
        )


def test_declared_types_may_be_of_either_protocol() -> None:
    """A connector in Flyte 2's shape encodes by its template's own types, down to the columns."""
    table = StructuredDataset("s3://b/t", "parquet", {"a": int, "b": list[str]})
    values = {"table": table, "either": 3, "names": ["x"], "file": Blob("s3://b/f")}
    kinds = {"table": StructuredDataset, "either": int | str, "names": list[str], "file": Blob}
    first = interface_pb2.VariableMap(
        variables={
            name: interface_pb2.Variable(type=to_literal_type(kind)) for name, kind in kinds.items()
        }
    )
    second = variables(reread(first, interface2_pb2.VariableMap))
    encoded = to_literal_map(values, first.variables)
    assert to_literal_map(values, second) == encoded
    assert to_literal(3, second["either"].type) == to_literal(3, first.variables["either"].type)


def test_what_was_decoded_from_flyte_2_encodes_again() -> None:
    """A table's columns are Flyte 1's types whichever protocol brought it."""
    table = StructuredDataset("s3://b/t", "parquet", {"a": int})
    literal_map = to_literal_map({"table": table, "tables": [table]})
    decoded = from_literal_map(reread(literal_map, common_pb2.Inputs))
    assert decoded == from_literal_map(literal_map)
    assert to_literal_map(decoded) == literal_map


# --- split -------------------------------------------------------------------------------------


@QUICK
@given(literal_map=literal_maps(), prefix=TEXT, namespace=TEXT)
def test_a_request_is_split_into_its_inputs_and_the_rest(
    literal_map: Any, prefix: str, namespace: str
) -> None:
    """The two parts are the whole: inputs to decode once, and a request without them."""
    rest_only = agent_pb2.CreateTaskRequest(
        output_prefix=prefix,
        template=tasks_pb2.TaskTemplate(type="t", custom={"a": 1}),
        task_execution_metadata=agent_pb2.TaskExecutionMetadata(namespace=namespace),
    )
    whole = agent_pb2.CreateTaskRequest(inputs=literal_map)
    whole.MergeFrom(rest_only)
    rest, inputs = split(whole.SerializeToString(), 1)
    assert agent_pb2.CreateTaskRequest.FromString(bytes(rest)) == rest_only
    assert read(inputs, literals_pb2.LiteralMap) == literal_map


@st.composite
def damaged_requests(draw: st.DrawFn) -> bytes:
    """Take the bytes of a request and change, drop or add a few."""
    request = agent_pb2.CreateTaskRequest(inputs=draw(literal_maps()), output_prefix="prefix")
    data = bytearray(request.SerializeToString())
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(data)))
        data[position : position + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data)


# Longer numbers, a group around field 1, a length beyond the end, numbers that are too long.
ODD = [b"\x8a\x00\x00", b"\x1b\x0a\x00\x1c", b"\x0a\x7f", b"\x0a" + b"\x80" * 11 + b"\x00", b"\x1c"]


def joined(data: bytes) -> agent_pb2.CreateTaskRequest:
    """Read a request in its two parts and put them together again."""
    rest, inputs = split(data, 1)
    request = agent_pb2.CreateTaskRequest.FromString(bytes(rest))
    request.inputs.CopyFrom(read(inputs, literals_pb2.LiteralMap))
    return request


@settings(QUICK, max_examples=300)
@given(data=st.sampled_from(ODD) | st.binary(max_size=64) | damaged_requests())
def test_bytes_that_split_parse_as_before_and_others_are_refused(data: bytes) -> None:
    """Whatever protobuf refuses is refused, whole or in its parts, and with its own error."""
    try:
        whole = agent_pb2.CreateTaskRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            joined(data)
        return
    parts = joined(data)
    parts.DiscardUnknownFields()
    whole.DiscardUnknownFields()
    if not whole.HasField("inputs"):
        parts.ClearField("inputs")
    assert parts == whole


def test_a_field_that_is_not_there_is_empty_and_one_in_parts_is_joined() -> None:
    """A view of the request where that is enough, so that large inputs are never copied."""
    request = agent_pb2.CreateTaskRequest(output_prefix="p")
    data = request.SerializeToString()
    assert split(data, 1) == (data, b"")
    one = agent_pb2.CreateTaskRequest(inputs=to_literal_map({"a": 1})).SerializeToString()
    two = agent_pb2.CreateTaskRequest(inputs=to_literal_map({"b": 2})).SerializeToString()
    rest, inputs = split(one, 1)
    assert (rest, type(inputs)) == (b"", memoryview)
    rest, inputs = split(one + data + two, 1)
    assert rest == data
    assert read(inputs, literals_pb2.LiteralMap) == to_literal_map({"a": 1, "b": 2})
