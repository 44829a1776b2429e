"""Inputs read from their bytes: what protobuf reads, or nothing, whatever the bytes are."""

from __future__ import annotations

import datetime as dt
import gc
import sys
import threading
import time
from typing import Any

import pytest
from flyteidl.core import interface_pb2, literals_pb2
from flyteidl2.task import common_pb2
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from connector_service.codec import (
    CodecError,
    from_literal_map,
    plans,
    to_literal_map,
    to_literal_type,
)
from connector_service.codec.convert import begin_field, reread
from connector_service.codec.plans import Plan

pytestmark = pytest.mark.skipif(
    not plans.COMPILED,
    reason="codec.quick is not built: install a C compiler and Python's headers, then again",
)

QUICK = settings(max_examples=500, deadline=None, derandomize=True)
MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=dt.UTC)
VALUES: dict[str, Any] = {
    "integer": 1 << 40,
    "negative": -1,
    "none": 0,
    "real": 0.1,
    "text": "löng" * 40,
    "empty": "",
    "yes": True,
    "no": False,
    "at": MOMENT,
    "before": dt.datetime(1815, 12, 10, tzinfo=dt.UTC),
    "span": dt.timedelta(days=3, microseconds=7),
    "list": ["a", "", "b"],
    "lists": [[1], [], [-(1 << 63)]],
    "map": {"a": 0.5, "": 0.0},
}
KINDS: dict[str, Any] = {
    name: type(value) for name, value in VALUES.items() if not isinstance(value, list | dict)
} | {"list": list[str], "lists": list[list[int]], "map": dict[str, float]}


def plan_of(kinds: dict[str, Any]) -> Plan:
    """Make the plan of an interface with variables of Python types."""
    return Plan(
        {name: interface_pb2.Variable(type=to_literal_type(kind)) for name, kind in kinds.items()}
    )


def encoded(values: dict[str, Any]) -> bytes:
    """Return Flyte 2's inputs, in the order of ``values``."""
    entries = [
        next(iter(reread(to_literal_map({name: value}), common_pb2.Inputs).literals))
        for name, value in values.items()
    ]
    return common_pb2.Inputs(literals=entries).SerializeToString()


PLAN = plan_of(KINDS)
DATA = encoded(VALUES)


def test_every_plain_value_is_read_from_its_bytes() -> None:
    """Each simple type, at its edges and without a value, in lists and maps, in its order."""
    for data in (DATA, bytearray(DATA), memoryview(b"-" + DATA)[1:]):
        values = PLAN.read(data)  # type: ignore[arg-type] # any buffer does
        assert values == VALUES
        assert list(values) == list(VALUES)
        assert [type(value) for value in values.values()] == [type(v) for v in VALUES.values()]
    assert PLAN.read(b"") == {}


def test_flyte_1s_map_is_read_alike() -> None:
    """Its entries are encoded as Flyte 2's named literals are."""
    assert PLAN.read(to_literal_map(VALUES).SerializeToString()) == VALUES


def test_names_that_are_not_declared_are_what_their_literals_are() -> None:
    """Simple values at once, lists and maps by the one who knows every form."""
    assert plan_of({}).read(DATA) == VALUES
    simple = {name: value for name, value in VALUES.items() if name != "map"}
    assert plan_of({"map": dict[str, float]}).read(encoded(simple)) == simple


@pytest.mark.parametrize("size", [63, 64, 1000])
def test_many_variables_of_one_type_are_read_alike(size: int) -> None:
    """Also where one is of another type, or one more is not declared: 1 under FLOAT is 1.0."""
    values: dict[str, Any] = {f"n{number}": number / 2 for number in range(size)}
    plan = plan_of(dict.fromkeys(values, float))
    assert plan.read(encoded(values)) == values
    mixed = values | {"n7": 7, "new": 8, "text": "x"}
    read = plan.read(encoded(mixed))
    assert read == mixed
    assert [type(read[name]) for name in ("n7", "new", "text")] == [float, int, str]
    assert plan.read(encoded(values | {"n7": "x"})) is None


def test_what_another_reader_knows_is_left_to_it_alone() -> None:
    """A value of a type that is not simple does not keep the others from being read quickly."""
    union = to_literal_type(int | None)
    entry = common_pb2.Inputs().literals.add(name="maybe")
    entry.value.scalar.union.value.scalar.primitive.integer = 5
    entry.value.scalar.union.type.MergeFromString(union.union_type.variants[0].SerializeToString())
    data = DATA + common_pb2.Inputs(literals=[entry]).SerializeToString()
    assert plan_of(KINDS | {"maybe": int | None}).read(data) == VALUES | {"maybe": 5}
    hashed = common_pb2.Inputs.FromString(encoded({"text": "x"}))
    hashed.literals[0].value.hash = "of a cached value"
    assert PLAN.read(hashed.SerializeToString()) == {"text": "x"}


def test_a_context_is_gone_past_and_must_be_one() -> None:
    """Flyte 2 sends words beside the inputs; no value comes of them."""
    message = common_pb2.Inputs.FromString(DATA)
    message.context.add(key="trace", value="öne")
    message.context.add(key="")
    data = message.SerializeToString()
    assert data != DATA
    assert PLAN.read(data) == VALUES
    for damaged in (b"\x12\x01\x0a", b"\x12\x02\x18\x01", b"\x12\x03\x0a\x01\xff", b"\x12\x05\x0a"):
        assert PLAN.read(DATA + damaged) is None


def field(number: int, data: bytes) -> bytes:
    """Encode a short field of bytes."""
    return bytes((number << 3 | 2, len(data))) + data


def entry_of(primitive: bytes) -> bytes:
    """Encode an entry around the bytes of a primitive."""
    return field(1, field(1, b"b") + field(2, field(1, field(1, primitive))))


@pytest.mark.parametrize(
    "data",
    [
        field(1, field(1, b"b")),
        field(1, field(2, field(1, field(1, b"\x08\x01")))),
        field(1, field(2, field(1, field(1, b"\x08\x01"))) + field(1, b"b")),
        field(1, field(1, b"a") + field(1, b"b") + field(2, field(1, field(1, b"\x08\x01")))),
        entry_of(b"\x08\x01") + field(3, b"more"),
        field(1, field(1, b"\xff") + field(2, field(1, field(1, b"\x08\x01")))),
        entry_of(field(3, b"\xff")),
        b"\x0a\x7f",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a" + b"\xff" * 20,
        field(1, field(1, b"b") + field(2, b"")),
        entry_of(b""),
        entry_of(b"\x08"),
        entry_of(b"\x11\x00"),
        entry_of(b"\x3a\x00"),
    ],
)
def test_what_is_damaged_or_unusual_is_left_whole(data: bytes) -> None:
    """The caller lets protobuf read it, which knows what it means or says that it is damaged."""
    assert PLAN.read(DATA + data) is None


@pytest.mark.parametrize(
    ("primitive", "value"),
    [
        (b"\x08\x81\x00", 1),  # a number in more bytes than it needs
        (b"\x08\x01\x08\x02", 2),  # the last one counts
        (b"\x08\x01\x1a\x01x", "x"),
        (b"\x1a\x01x\x08\x01", 1),
        (b"\x20\x02", True),
        (field(5, b"\x08\x01\x10\xe8\x07"), dt.datetime(1970, 1, 1, 0, 0, 1, 1, tzinfo=dt.UTC)),
        (field(5, b"\x10\xe8\x07\x08\x01"), dt.datetime(1970, 1, 1, 0, 0, 1, 1, tzinfo=dt.UTC)),
        (field(6, b""), dt.timedelta()),
        (b"\x08\x01\x48\x01", 1),  # with a field of a later Flyte
    ],
)
def test_other_forms_of_a_value_are_read_too(primitive: bytes, value: Any) -> None:
    """Whatever protobuf takes for a value is one, however it was written."""
    read = plan_of({}).read(entry_of(primitive))
    assert read == {"b": value}
    assert type(read["b"]) is type(value)


def protobuf_reads(data: bytes) -> dict[str, str]:
    """Return what protobuf reads, as texts: they tell 1 from 1.0 and from True."""
    variables = {n: interface_pb2.Variable(type=to_literal_type(k)) for n, k in KINDS.items()}
    values = from_literal_map(common_pb2.Inputs.FromString(data), variables)
    return {name: repr(value) for name, value in values.items()}


def test_each_byte_changed_is_read_as_protobuf_reads_it() -> None:
    """Or left to it; what changes only a value is read, which hundreds of these bytes do."""
    read = 0
    for at in range(len(DATA)):
        for change in (0x01, 0x08, 0x80, 0xFF):
            changed = DATA[:at] + bytes([DATA[at] ^ change]) + DATA[at + 1 :]
            values = PLAN.read(changed)
            if values is not None:
                read += 1
                told = {name: repr(value) for name, value in values.items()}
                assert told == protobuf_reads(changed), (at, change)
    assert read > 500


@QUICK
@given(data=st.data())
def test_whatever_the_bytes_are_protobuf_reads_the_same(data: st.DataObject) -> None:
    """Bytes changed, cut out, put in or repeated: the same values, or left to protobuf."""
    changed = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        length = data.draw(st.integers(0, 12))
        piece = data.draw(st.binary(max_size=4) | st.just(bytes(changed[at : at + length])))
        changed[at : at + data.draw(st.sampled_from([0, 1, length]))] = piece
    values = PLAN.read(bytes(changed))
    if values is None:
        return
    told = {name: repr(value) for name, value in values.items()}
    assert told == protobuf_reads(bytes(changed))


@pytest.mark.parametrize("cut", range(1, 60))
def test_what_ends_too_soon_is_never_read(cut: int) -> None:
    """Nor is a byte behind it looked at: the buffer ends where the bytes do."""
    short = memoryview(DATA)[:-cut]
    values = PLAN.read(short)
    try:
        message = common_pb2.Inputs.FromString(bytes(short))
    except DecodeError:
        assert values is None
    else:  # cut between two entries
        assert values is not None
        assert len(values) == len(message.literals)


def test_a_wrong_value_is_told_by_protobufs_way() -> None:
    """Read quickly it is nothing; what is wrong is said by who knows every form."""
    data = encoded(VALUES | {"integer": "x"})
    assert PLAN.read(data) is None
    with pytest.raises(CodecError, match=r"^inputs\.integer: expected INTEGER, found str"):
        PLAN.decode(common_pb2.Inputs.FromString(data))


def test_more_values_than_wanted_are_not_read() -> None:
    """Those in lists count too, and what others read counts by its size."""
    numbers = plan_of({"numbers": list[int]})
    data = encoded({"numbers": [1] * 99})
    assert numbers.read(data, 100) == {"numbers": [1] * 99}
    assert numbers.read(data, 99) is None
    record = plan_of({"record": dict})
    data = encoded({"record": {"text": "x" * 6400}})
    assert record.read(data, 50) is None
    assert record.read(data, 200) == {"record": {"text": "x" * 6400}}


def many(number: int) -> bytes:
    """Return inputs of one list that has so many sevens; protobuf would take a GB to write them."""
    seven = literals_pb2.Literal(
        scalar=literals_pb2.Scalar(primitive=literals_pb2.Primitive(integer=7))
    ).SerializeToString()
    items = (begin_field(1, len(seven)) + seven) * number
    value = begin_field(2, len(items)) + items  # a collection
    entry = begin_field(1, 7) + b"numbers" + begin_field(2, len(value)) + value
    return begin_field(1, len(entry)) + entry


def longest_wait(plan: Plan, data: bytes, number: int) -> float:
    """Return the largest share of a reading in which this thread did not get on meanwhile.

    It is one of the processor time that the reading takes: a busy machine takes time from both.
    """
    taken: list[float] = []
    begin, end = threading.Event(), threading.Event()

    def read() -> None:
        begin.wait()
        before = time.thread_time()
        values = plan.read(data)
        taken.append(time.thread_time() - before)
        assert values is not None
        assert len(values["numbers"]) == number
        end.wait()  # a thread that has ended has no clock

    thread = threading.Thread(target=read)
    thread.start()
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    longest, last = 0.0, time.clock_gettime(clock)
    begin.set()
    while thread.is_alive() and not taken:
        time.sleep(0)
        now = time.clock_gettime(clock)
        longest, last = max(longest, now - last), now
    end.set()
    thread.join()
    return longest / taken[0]


def test_other_threads_go_on_while_many_values_are_read() -> None:
    """None waits while a third of six million numbers are read, which takes some 60 ms."""
    plan, data = plan_of({"numbers": list[int]}), many(6_000_000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    try:
        shares = [longest_wait(plan, data, 6_000_000) for _ in range(3)]
    finally:
        sys.setswitchinterval(interval)
    assert min(shares) < 0.3, shares


def test_nothing_is_kept_of_what_was_read() -> None:
    """Neither of what is read nor of what is refused: the buffer, names, values and kinds."""
    wrong = encoded(VALUES | {"list": [1]})

    def counts() -> tuple[int, list[int]]:
        """Return the blocks of memory in use, and how often what is passed in is referred to."""
        for data in (DATA, wrong, DATA[:-1], DATA + b"\x0a"):
            for _ in range(200):
                PLAN.read(data)
        gc.collect()
        passed = [DATA, wrong, PLAN, *PLAN._ways[0][0].values()]
        return sys.getallocatedblocks(), [sys.getrefcount(one) for one in passed]

    counts()
    blocks, references = counts()
    more_blocks, more_references = counts()
    assert more_references == references
    assert more_blocks < blocks + 100  # 800 were read: one that is kept each time would be 800
    buffer = bytearray(DATA)
    PLAN.read(buffer)  # type: ignore[arg-type] # any buffer does
    buffer.append(0)  # would be refused while anybody held it
