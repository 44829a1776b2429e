"""What identifies a job and what is known of it: the bytes, the messages and the phases."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Literal

import pytest
from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution, TaskLog
from flyteidl.core.literals_pb2 import LiteralMap
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from connector_service import (
    Phase,
    Resource,
    ResourceMeta,
    TaskCategory,
    convert_to_flyte_phase,
    is_terminal_phase,
    to_literal_map,
)
from connector_service.codec.literals import from_literal_map
from connector_service.errors import AuthorError, InvalidInputError, InvalidMetaError

SECRET = "s3cret-value"


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Place:
    region: str
    rack: int = 0


@dataclass
class JobMeta(ResourceMeta):
    job_id: str
    attempt: int = 0
    price: float = 0.0
    place: Place | None = None
    places: list[Place] = field(default_factory=list)
    size: Size = Size.SMALL
    level: Level = Level.LOW
    mode: Literal["fast", "cheap"] = "cheap"
    labels: dict[str, str] = field(default_factory=dict)
    pair: tuple[int, str] = (0, "")
    anything: Any = None


class JobId(str):
    """A class of the author's own that JSON writes as a plain string."""

    __slots__ = ()


@dataclass
class OwnClassMeta(ResourceMeta):
    job: JobId
    price: float = 0.0


@dataclass
class FlatMeta(ResourceMeta):
    job: str
    number: int
    região: str  # noqa: PLC2401 - an author's own language


@dataclass
class SloppyMeta(ResourceMeta):
    job: str = None  # type: ignore[assignment] # what many authors write
    place: Place | None = None


@dataclass
class CheckedMeta(ResourceMeta):
    number: int = 0

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("number is not negative")


@dataclass
class OwnBytesMeta(ResourceMeta):
    job: str

    def encode(self) -> bytes:
        return b"own:" + self.job.encode()

    @classmethod
    def decode(cls, data: bytes) -> OwnBytesMeta:
        return cls(data.removeprefix(b"own:").decode())


FULL = JobMeta(
    "j-1",
    2,
    1.5,
    Place("eu", 4),
    [Place("us"), Place("ü")],
    Size.LARGE,
    Level.HIGH,
    "fast",
    {"k": "v"},
    (3, "x"),
    {"deep": [1, None, True]},
)


@pytest.mark.parametrize(
    "meta",
    [
        ResourceMeta(),
        JobMeta("j"),
        FULL,
        JobMeta("é\u2028\U0001f600"),
        JobMeta("nan", price=1e300),
        FlatMeta("j-1", 10**40, "us"),
        FlatMeta('"\\\n\x00 é\ud800', -1, ""),
        FlatMeta("j", True, "us"),
        FlatMeta(JobId("j"), 1, "us"),
    ],
    ids=[
        "empty",
        "defaults",
        "full",
        "unicode",
        "large",
        "flat",
        "odd texts",
        "truth for a number",
        "a text of its own class",
    ],
)
def test_meta_encodes_as_upstream_byte_for_byte(meta: ResourceMeta) -> None:
    """The bytes are those of `json.dumps(asdict(...))`, which flytekit writes."""
    assert meta.encode() == json.dumps(dataclasses.asdict(meta)).encode("utf-8")


@pytest.mark.parametrize("meta", [ResourceMeta(), JobMeta("j"), FULL, OwnClassMeta(JobId("j"))])
def test_meta_survives_the_round_trip(meta: ResourceMeta) -> None:
    """Nested dataclasses, lists of them, enumerations and tuples come back as what they were."""
    again = type(meta).decode(meta.encode())
    assert again == meta
    assert again.encode() == meta.encode()


def test_decoded_fields_have_their_declared_types() -> None:
    """`from __future__ import annotations` or not, fields are rebuilt, not left as dicts."""
    meta = JobMeta.decode(FULL.encode())
    assert isinstance(meta.place, Place)
    assert [type(place) for place in meta.places] == [Place, Place]
    assert meta.size is Size.LARGE
    assert meta.level is Level.HIGH
    assert meta.pair == (3, "x")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_lacks_survive_as_upstream_writes_them(value: float) -> None:
    """NaN and the infinities are written and read as Python's JSON has them."""
    meta = JobMeta("j", price=value)
    again = JobMeta.decode(meta.encode())
    assert again.price == value or (math.isnan(again.price) and math.isnan(value))
    assert OwnClassMeta.decode(OwnClassMeta(JobId("j"), value).encode()).job == "j"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"job_id": "j"}', JobMeta("j")),
        (b'{"job_id": "j", "of_a_newer_release": {"x": [1]}}', JobMeta("j")),
        (
            b'{"job_id": "j", "place": {"region": "eu", "newer": 1}}',
            JobMeta("j", place=Place("eu")),
        ),
        (b'{"job_id": "j", "place": null}', JobMeta("j")),
        (b'{"job_id": "j", "price": 3}', JobMeta("j", price=3.0)),
        (b' {"job_id" :"j"}\n', JobMeta("j")),
        (b'{"job_id": "a", "job_id": "j"}', JobMeta("j")),
    ],
    ids=["missing", "unknown", "unknown nested", "null", "int for float", "spaces", "twice"],
)
def test_decoding_bridges_releases(data: bytes, expected: JobMeta) -> None:
    """Unknown fields are ignored and missing ones take their default, at every depth."""
    assert JobMeta.decode(data) == expected


def test_a_default_of_none_is_accepted_whatever_the_annotation() -> None:
    """`job: str = None` is what many authors write; such a job is not stranded."""
    assert SloppyMeta.decode(SloppyMeta().encode()) == SloppyMeta()
    assert SloppyMeta.decode(b'{"job": "j"}') == SloppyMeta("j")


def test_an_annotation_that_does_not_resolve_is_read_as_upstream_does() -> None:
    """A class whose annotations nobody can evaluate still decodes, its values left as JSON."""

    @dataclass
    class Local(ResourceMeta):
        job: NameOfNothing  # type: ignore[name-defined] # noqa: F821 - the point of the test
        more: int = 7

    assert Local.decode(b'{"job": {"a": 1}, "unknown": 2}') == Local({"a": 1})
    with pytest.raises(InvalidMetaError, match=r"missing required field job\.$"):
        Local.decode(b"{}")
    with pytest.raises(InvalidMetaError, match=r"Expected object, got list\.$"):
        Local.decode(b"[]")


def test_a_class_with_its_own_bytes_keeps_them() -> None:
    """A subclass's own encode and decode are used as they are."""
    assert OwnBytesMeta("j").encode() == b"own:j"
    assert OwnBytesMeta.decode(b"own:j") == OwnBytesMeta("j")


@pytest.mark.parametrize(
    ("data", "field_name"),
    [
        ({"job_id": 5}, "job_id"),
        ({"job_id": "j", "attempt": SECRET}, "attempt"),
        ({"job_id": "j", "attempt": 1.5}, "attempt"),
        ({"job_id": "j", "attempt": True}, "attempt"),
        ({"job_id": "j", "attempt": None}, "attempt"),
        ({"job_id": "j", "place": {"region": "eu", "rack": SECRET}}, "place.rack"),
        ({"job_id": "j", "place": {}}, "region"),
        ({"job_id": "j", "places": [{"region": "eu"}, {"region": [SECRET]}]}, "places[1].region"),
        ({"job_id": "j", "size": SECRET}, "size"),
        ({"job_id": "j", "level": 77}, "level"),
        ({"job_id": "j", "mode": f"{SECRET} - at $.x"}, "mode"),
        ({"job_id": "j", "labels": {SECRET: 5}}, "labels"),
        ({"job_id": "j", "pair": [1]}, "pair"),
        ({"job_id": "j", "price": math.nan, "mode": SECRET}, "mode"),
        ({}, "job_id"),
    ],
)
def test_a_wrong_value_names_its_field_and_never_itself(data: Any, field_name: str) -> None:
    """The caller learns which field is wrong; what stood in it stays out of errors and logs."""
    with pytest.raises(InvalidMetaError) as caught:
        JobMeta.decode(json.dumps(data).encode())
    sentence = str(caught.value)
    assert sentence.startswith("The resource meta is not a JobMeta: ")
    assert field_name in sentence
    assert SECRET not in sentence
    assert "77" not in sentence
    assert sentence.endswith(".")


def test_what_the_class_itself_refuses_is_the_callers_error() -> None:
    """A ValueError of the author's own check becomes InvalidMetaError with its words."""
    with pytest.raises(InvalidMetaError, match="number is not negative"):
        CheckedMeta.decode(b'{"number": -1}')


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b'{"job_id": "\xff"}',
        '{"job_id": "\ud800"}'.encode("utf-8", "surrogatepass"),
        b"null",
        b"[]",
        b'"text"',
        b"12",
        b"{",
        b'{"job_id": "j"} more',
        b"[" * 200_000,
        b'{"anything":' * 100_000,
        b'{"job_id": "j", "anything": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"job_id": "j", "attempt": ' + b"9" * 10_000 + b"}",
        b'{"job_id": "j", "attempt": 1e999}',
        bytes(range(256)),
        b"not json" * 1_250_000,
    ],
    ids=range(17),
)
def test_hostile_bytes_are_refused_in_one_short_sentence(data: bytes) -> None:
    """Broken, nested, huge or binary input is the caller's error: quick, short, nothing else."""
    started = time.perf_counter()
    with pytest.raises(InvalidMetaError) as caught:
        JobMeta.decode(data)
    assert time.perf_counter() - started < 5
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_ten_megabytes_of_valid_json_are_read_in_time() -> None:
    """Large is not wrong: 10 MB decode within seconds, known field or not."""
    started = time.perf_counter()
    large = "x" * 10_000_000
    assert JobMeta.decode(json.dumps({"job_id": large}).encode()).job_id == large
    assert JobMeta.decode(json.dumps({"job_id": "j", "unknown": [0] * 3_000_000}).encode())
    assert time.perf_counter() - started < 10


# Surrogates cannot be written as UTF-8 by anybody.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_PLACES = st.builds(Place, _TEXT, st.integers(-(2**63), 2**63 - 1))
_METAS = st.builds(
    JobMeta,
    job_id=_TEXT,
    attempt=st.integers(-(2**63), 2**63 - 1),
    price=st.floats(allow_nan=False),
    place=st.none() | _PLACES,
    places=st.lists(_PLACES, max_size=3),
    size=st.sampled_from(Size),
    level=st.sampled_from(Level),
    mode=st.sampled_from(["fast", "cheap"]),
    labels=st.dictionaries(_TEXT, _TEXT, max_size=3),
    pair=st.tuples(st.integers(-1000, 1000), _TEXT),
)


@settings(max_examples=150, deadline=None)
@given(_METAS)
def test_any_meta_round_trips(meta: JobMeta) -> None:
    """Whatever its fields hold, a meta's bytes are upstream's and decode to the same meta."""
    assert meta.encode() == json.dumps(dataclasses.asdict(meta)).encode()
    assert JobMeta.decode(meta.encode()) == meta


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | _TEXT.map(str.encode))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    """No input raises anything but InvalidMetaError."""
    with contextlib.suppress(InvalidMetaError):
        JobMeta.decode(data)


def test_resource_becomes_the_whole_message() -> None:
    """Every field that is set arrives in the message under its own name."""
    link = TaskLog(uri="http://logs/1", name="logs")
    info = Struct()
    info.update({"job": "j-1"})
    resource = Resource(TaskExecution.SUCCEEDED, "done", [link], {"n": 3, "s": "x"}, {"job": "j-1"})
    assert resource.to_flyte_idl() == agent_pb2.Resource(
        phase=TaskExecution.SUCCEEDED,
        message="done",
        log_links=[link],
        outputs=to_literal_map({"n": 3, "s": "x"}),
        custom_info=info,
    )


def test_no_outputs_and_empty_outputs_differ() -> None:
    """None leaves outputs unset, so the client reads the file; {} is set and empty."""
    unset = Resource(TaskExecution.SUCCEEDED).to_flyte_idl()
    empty = Resource(TaskExecution.SUCCEEDED, outputs={}).to_flyte_idl()
    literal = Resource(TaskExecution.SUCCEEDED, outputs=LiteralMap()).to_flyte_idl()
    assert not unset.HasField("outputs")
    assert empty.HasField("outputs")
    assert literal.HasField("outputs")
    assert Resource.from_flyte_idl(unset).outputs is None
    assert Resource.from_flyte_idl(empty).outputs == LiteralMap()


def test_a_literal_map_goes_through_unchanged() -> None:
    """Outputs that are literals already are not touched."""
    outputs = to_literal_map({"n": 3})
    assert Resource(TaskExecution.SUCCEEDED, outputs=outputs).to_flyte_idl().outputs == outputs


def test_resource_reads_its_message_back() -> None:
    """`from_flyte_idl` of `to_flyte_idl` is the same resource, its outputs as literals."""
    link = TaskLog(uri="http://logs/1", name="logs")
    custom = {"n": 1.0, "s": "x", "l": [1.0, None], "d": {"b": True}}
    resource = Resource(TaskExecution.RUNNING, "going", [link], {"n": 3}, custom)
    again = Resource.from_flyte_idl(resource.to_flyte_idl())
    assert isinstance(again.outputs, LiteralMap)
    assert from_literal_map(again.outputs) == {"n": 3}
    assert dataclasses.replace(again, outputs={"n": 3}) == resource


@pytest.mark.parametrize(
    ("given_info", "arrives"),
    [
        ({"x": math.nan, "y": [math.inf, -math.inf]}, {"x": "nan", "y": ["inf", "-inf"]}),
        ({"t": (1, 2), "d": {"k": {"e": None}}}, {"t": [1.0, 2.0], "d": {"k": {"e": None}}}),
        ({1: "a number for a key"}, {"1": "a number for a key"}),
    ],
)
def test_custom_info_carries_what_json_lacks(given_info: Any, arrives: Any) -> None:
    """Numbers that a Struct cannot hold arrive by name; tuples and odd keys arrive too."""
    resource = Resource(TaskExecution.RUNNING, custom_info=given_info)
    assert Resource.from_flyte_idl(resource.to_flyte_idl()).custom_info == arrives


def test_custom_info_that_is_not_json_is_the_authors_error() -> None:
    """An object in custom_info is refused in one sentence, whose the fault is."""
    resource = Resource(TaskExecution.RUNNING, custom_info={"x": object()})
    with pytest.raises(AuthorError, match="custom_info is not JSON"):
        resource.to_flyte_idl()


def test_an_output_without_a_literal_form_is_named() -> None:
    """The path of the output that cannot be sent stands in the error."""
    with pytest.raises(InvalidInputError, match="outputs"):
        Resource(TaskExecution.SUCCEEDED, outputs={"bad": object()}).to_flyte_idl()


PHASES = {
    "failed": "FAILED",
    "timeout": "FAILED",
    "timedout": "FAILED",
    "canceled": "FAILED",
    "cancelled": "FAILED",
    "skipped": "FAILED",
    "internal_error": "RETRYABLE_FAILED",
    "done": "SUCCEEDED",
    "succeeded": "SUCCEEDED",
    "success": "SUCCEEDED",
    "completed": "SUCCEEDED",
    "running": "RUNNING",
    "terminating": "RUNNING",
    "pending": "INITIALIZING",
}


@pytest.mark.parametrize(("word", "phase"), PHASES.items())
def test_a_backends_word_becomes_its_phase(word: str, phase: str) -> None:
    """The words are upstream's, in any case."""
    for spelled in (word, word.upper(), word.title()):
        assert TaskExecution.Phase.Name(convert_to_flyte_phase(spelled)) == phase


def test_an_unknown_word_is_named_with_the_known_ones() -> None:
    """As upstream, it is a ValueError; beyond upstream, it says what there is."""
    with pytest.raises(ValueError, match=r"^Unrecognized state: bizarre; known: .*running.*\.$"):
        convert_to_flyte_phase("bizarre")


def test_terminal_phases_are_the_four_that_end_a_job() -> None:
    """Every phase of the protocol is either one of the four or goes on."""
    terminal = {name for name, phase in TaskExecution.Phase.items() if is_terminal_phase(phase)}
    assert terminal == {"SUCCEEDED", "FAILED", "ABORTED", "RETRYABLE_FAILED"}


def test_phases_are_protobufs_own_and_at_hand() -> None:
    """They have protobuf's names, numbers and methods, and no function of its runs at each use."""
    enum = TaskExecution.Phase
    assert {name: vars(Phase)[name] for name, _ in enum.items()} == dict(enum.items())
    assert Phase.items() == enum.items()
    assert (Phase.Name(Phase.FAILED), Phase.Value("FAILED")) == ("FAILED", enum.Value("FAILED"))
    with pytest.raises(AttributeError, match="no value defined for name 'LOST'"):
        Phase.LOST  # type: ignore[attr-defined] # noqa: B018 - it is to raise


def test_a_category_is_spelled_for_keys_sentences_and_lists() -> None:
    """One category has three spellings, and is the pair that upstream's is."""
    category = TaskCategory("spark", 1)
    assert (str(category), category.spoken, category.listed) == (
        "spark_v1",
        "'spark' version 1",
        "spark v1",
    )
    assert category == ("spark", 1)
    assert TaskCategory("spark").version == 0
