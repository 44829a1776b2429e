"""The codec and the real SDKs read each other's literals as the same values.

Each SDK runs in its own locked environment as a peer process; ``make test-upstream`` builds the
environments and sets the two variables that name their interpreters.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from flyteidl.core import literals_pb2, types_pb2

from connector_service.codec import (
    Blob,
    LiteralError,
    StructuredDataset,
    to_literal,
    to_literal_type,
    to_python,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = pathlib.Path(__file__).parent
PEERS = {
    "flytekit": ("peer_flytekit.py", "CONNECTOR_SERVICE_FLYTEKIT_PYTHON", "1.16.31"),
    "flyte": ("peer_flyte.py", "CONNECTOR_SERVICE_FLYTE_PYTHON", "2.12.1"),
}

if not any(os.environ.get(variable) for _, variable, _ in PEERS.values()):
    pytest.skip(
        "THE CODEC IS NOT COMPARED WITH THE SDKS: run `make test-upstream`, which sets "
        "CONNECTOR_SERVICE_FLYTEKIT_PYTHON and CONNECTOR_SERVICE_FLYTE_PYTHON",
        allow_module_level=True,
    )

# From here on a missing package is an error: who asked for the comparison shall not miss it.
import hypothesis  # noqa: E402
import pydantic  # noqa: E402, F401 - the vocabulary's
from hypothesis import strategies  # noqa: E402


def _vocabulary() -> Any:
    # The tests are no package, and the peers import the same file by this name.
    spec = importlib.util.spec_from_file_location("vocabulary", HERE / "vocabulary.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vocabulary"] = module  # typing.get_type_hints looks there
    spec.loader.exec_module(module)
    return module


vocabulary = _vocabulary()

NAMES = {
    **vars(vocabulary),
    "File": Blob,
    "CsvFile": Blob,
    "Directory": Blob,
    "Dataset": StructuredDataset,
    "Failure": LiteralError,
    "file": Blob,
    "directory": lambda uri: Blob(uri, multipart=True),
    "dataset": StructuredDataset,
    "failure": LiteralError,
}


class Peer:
    """An SDK at the other end of a pipe."""

    def __init__(self, name: str) -> None:
        program, variable, version = PEERS[name]
        self.name = name
        python = os.environ.get(variable)
        if not python:
            pytest.skip(f"{variable} is not set: run `make test-upstream`")
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(HERE / program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # Nothing of this run's environment, such as FLYTE_* settings, reaches the SDK.
            env={"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/")},
        )
        assert self._read()["version"] == version

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the {self.name} peer ended"
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def ask(self, **request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def encode(self, kind: str, value: str, op: str = "encode") -> tuple[Any, Any]:
        answer = self.ask(op=op, type=kind, value=value)
        assert "error" not in answer, answer
        return (
            literals_pb2.Literal.FromString(base64.b64decode(answer["literal"])),
            types_pb2.LiteralType.FromString(base64.b64decode(answer["literal_type"])),
        )

    def decode(self, kind: str, value: str, literal: Any) -> dict[str, Any]:
        data = base64.b64encode(literal.SerializeToString()).decode()
        return self.ask(op="decode", type=kind, value=value, literal=data)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


@pytest.fixture(scope="module", params=sorted(PEERS))
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    peer = Peer(request.param)
    yield peer
    peer.close()


def ours(source: str) -> Any:
    return eval(source, NAMES)


def without_own_words(value: Any, name: str) -> Any:
    """Drop what an SDK's own value type cannot carry, so that the rest can be compared."""
    if isinstance(value, list):
        return [without_own_words(item, name) for item in value]
    if isinstance(value, StructuredDataset):
        return StructuredDataset(value.uri, value.format)
    return value


def cases() -> list[Any]:
    rows = [("both", *case) for case in vocabulary.COMMON]
    rows += [("flytekit", *case) for case in vocabulary.FLYTEKIT]
    rows += [("flyte", *case) for case in vocabulary.FLYTE]
    return [pytest.param(*row, id=f"{row[1]}-{row[2][:40]}") for row in rows]


def only(peer: Peer, who: str) -> None:
    if who not in ("both", peer.name):
        pytest.skip(f"{who} alone has this type")


@pytest.mark.parametrize(("who", "kind", "value"), cases())
def test_their_literals_are_our_values(peer: Peer, who: str, kind: str, value: str) -> None:
    """What the SDK encodes decodes here to the same value, through the declared type or alone."""
    only(peer, who)
    literal, literal_type = peer.encode(kind, value)
    got = without_own_words(to_python(literal, literal_type, ours(kind)), peer.name)
    assert vocabulary.same(got, ours(value)), got
    to_python(literal, literal_type)  # and, without a wanted type, as something
    to_python(literal)


@pytest.mark.parametrize(("who", "kind", "value"), cases())
def test_our_literals_are_their_values(peer: Peer, who: str, kind: str, value: str) -> None:
    """What is encoded here decodes in the SDK to the same value, and is the literal it makes."""
    only(peer, who)
    theirs, literal_type = peer.encode(kind, value)
    literal = to_literal(ours(value), literal_type)
    answer = peer.decode(kind, value, literal)
    assert answer.get("same"), answer
    if peer.name == "flytekit" or not ("Model" in kind or "Color, " in kind):
        theirs.ClearField("hash")
        assert literal == theirs
    else:
        assert to_python(literal, literal_type, ours(kind)) == ours(value)


@pytest.mark.parametrize(("kind", "value"), vocabulary.OLD)
def test_the_older_struct_form_is_read(peer: Peer, kind: str, value: str) -> None:
    """What flytekit writes as a protobuf Struct decodes to the same value, its ints as ints."""
    only(peer, "flytekit")
    literal, literal_type = peer.encode(kind, value, op="encode_old")
    assert "generic {" in str(literal)
    assert vocabulary.same(to_python(literal, literal_type, ours(kind)), ours(value))
    assert vocabulary.same(to_python(literal, None, ours(kind)), ours(value))


@pytest.mark.parametrize(("kind", "value", "plain"), vocabulary.FRAGMENTS)
def test_a_field_of_a_record_is_read_alike(peer: Peer, kind: str, value: str, plain: str) -> None:
    """One field that propeller cut out of a dataclass is here what it is in the SDK."""
    if peer.name == "flyte" and kind == "Color":
        pytest.skip("Flyte 2 binds no fields, and flyte declares names where a field holds values")
    _, literal_type = peer.encode(kind, value)
    literal = literals_pb2.Literal()
    literal.scalar.binary.value = msgspec.msgpack.encode(ours(plain))
    literal.scalar.binary.tag = "msgpack"
    answer = peer.decode(kind, value, literal)
    assert answer.get("same"), answer
    assert vocabulary.same(to_python(literal, literal_type, ours(kind)), ours(value))


def essence(literal_type: Any) -> Any:
    """Strip what guides a user interface and a cache, as the SDKs do before they compare types."""
    bare = types_pb2.LiteralType()
    bare.CopyFrom(literal_type)
    for field in ("metadata", "annotation", "structure"):
        bare.ClearField(field)
    for variant in bare.union_type.variants:
        stripped = essence(variant)
        stripped.structure.tag = variant.structure.tag
        variant.CopyFrom(stripped)
    for arm in ("collection_type", "map_value_type"):
        if bare.HasField(arm):
            getattr(bare, arm).CopyFrom(essence(getattr(bare, arm)))
    return bare


TYPES = sorted({kind for kind, _ in vocabulary.COMMON + vocabulary.FLYTEKIT})
BY_NAME_IN_FLYTE = ("Color", "Crossed")
OWN_WORDS = ("File", "CsvFile", "Directory", "Dataset", "Failure", "Optional[File]", "List[File]")


@pytest.mark.parametrize("kind", TYPES)
def test_our_literal_types_are_theirs(peer: Peer, kind: str) -> None:
    """A Python type has the same literal type here and there, down to a union's tags."""
    value = next(v for k, v in vocabulary.COMMON + vocabulary.FLYTEKIT if k == kind)
    if (kind, value) in vocabulary.FLYTEKIT:
        only(peer, "flytekit")
    if peer.name == "flyte" and any(name in kind for name in BY_NAME_IN_FLYTE):
        pytest.skip("flyte lists an enum's names, flytekit and the codec its values")
    if any(name in kind for name in ("CsvFile", "Directory")):
        pytest.skip("a Blob's format and dimensionality belong to the value, not to its class")
    if peer.name == "flyte" and kind in ("Optional[File]", "Optional[Dataset]"):
        pytest.skip("the SDKs call the transformers of files and tables by different names")
    _, theirs = peer.encode(kind, value)
    assert essence(to_literal_type(ours(kind))) == essence(theirs)


@pytest.mark.parametrize("kind", ["Point", "Report", "List[Point]", "Optional[Point]", "dict"])
def test_they_guess_a_type_from_ours(peer: Peer, kind: str) -> None:
    """Each SDK builds a usable class from the JSON schema of a literal type made here."""
    if peer.name == "flytekit" and kind == "Report":
        pytest.skip("flytekit cannot guess a class with a tuple from its own literal type either")
    data = base64.b64encode(to_literal_type(ours(kind)).SerializeToString()).decode()
    answer = peer.ask(op="guess", literal_type=data)
    assert "guess" in answer, answer
    assert "dict" in answer["guess"] or kind.strip("]").rpartition("[")[2] in answer["guess"]


# --- values that nobody chose ----------------------------------------------------------------

TEXT = strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=20)
LEAVES = {
    "int": strategies.integers(-(2**63), 2**63 - 1).map(repr),
    "float": strategies.floats().map(repr),
    "str": TEXT.map(repr),
    "bool": strategies.booleans().map(repr),
    "datetime.datetime": strategies.datetimes().map(lambda moment: f"{moment!r}"),
    "datetime.timedelta": strategies.timedeltas(
        *(vocabulary.datetime.timedelta(days=days) for days in (-3_650_000, 3_650_000))
    ).map(repr),
    "Color": strategies.sampled_from(["Color.RED", "Color.GREEN"]),
    "dict": strategies.recursive(
        strategies.none()
        | strategies.booleans()
        | strategies.integers(-(2**63), 2**64 - 1)
        | strategies.floats(allow_nan=False)
        | TEXT
        | strategies.binary(max_size=8),
        lambda inner: (
            strategies.lists(inner, max_size=4) | strategies.dictionaries(TEXT, inner, max_size=4)
        ),
        max_leaves=12,
    ).map(lambda value: repr({"value": value})),
    "Point": strategies.tuples(
        strategies.integers(-(2**63), 2**63 - 1), strategies.floats(allow_nan=False)
    ).map(lambda fields: f"Point{fields!r}"),
}


def leaf() -> Any:
    return strategies.sampled_from(sorted(LEAVES)).flatmap(
        lambda kind: strategies.tuples(strategies.just(kind), strategies.just(LEAVES[kind]))
    )


def wrap(inner: Any) -> Any:
    """Make a list, map or optional of a (type, values) pair."""

    def optional(pair: tuple[str, Any]) -> tuple[str, Any]:
        kind, values = pair
        # typing flattens Optional[Optional[T]], so wrapping twice is harmless
        return f"Optional[{kind}]", strategies.just("None") | values

    def listed(pair: tuple[str, Any]) -> tuple[str, Any]:
        kind, values = pair
        return f"List[{kind}]", strategies.lists(values, max_size=4).map(
            lambda items: f"[{', '.join(items)}]"
        )

    def mapped(pair: tuple[str, Any]) -> tuple[str, Any]:
        kind, values = pair
        return f"Dict[str, {kind}]", strategies.dictionaries(TEXT, values, max_size=4).map(
            lambda items: "{" + ", ".join(f"{key!r}: {item}" for key, item in items.items()) + "}"
        )

    return inner.map(optional) | inner.map(listed) | inner.map(mapped)


ANYTHING = strategies.recursive(leaf(), wrap, max_leaves=3).flatmap(
    lambda pair: strategies.tuples(strategies.just(pair[0]), pair[1])
)


@hypothesis.settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(case=ANYTHING)
def test_any_value_goes_both_ways(peer: Peer, case: tuple[str, str]) -> None:
    """A value that nobody chose is the same on both sides, whoever encodes it."""
    kind, value = case
    theirs, literal_type = peer.encode(kind, value)
    assert vocabulary.same(to_python(theirs, literal_type, ours(kind)), ours(value))
    literal = to_literal(ours(value), literal_type)
    answer = peer.decode(kind, value, literal)
    assert answer.get("same"), answer
