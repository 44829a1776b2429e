"""Calls of our own connectors in a child, over its socket, in both of Flyte's protocols."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from child_program import PATIENCE, Child, Wire, facts, running

PLUGINS = Path(__file__).parent / "plugins"
PROTOCOLS = ["flyteidl", "flyteidl2"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Child, Wire]]:
    folder = tmp_path_factory.mktemp("child")
    with running(folder, ["module:odd"], path=[PLUGINS]) as (child, wire, _):
        yield child, wire


@pytest.fixture
def wire(served: tuple[Child, Wire]) -> Wire:
    return served[1]


def word(text: str) -> bytes:
    return f'{{"word": "{text}"}}'.encode()


def raised(wire: Wire, name: str) -> dict[str, Any]:
    with pytest.raises(grpc.RpcError) as caught:
        wire.get("odd", word(f"raise:{name}"))
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    told = facts(caught.value)
    assert caught.value.details() == told["mro"][0].rpartition(".")[2]
    return told


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_job_lives_in_either_protocol(wire: Wire, protocol: str) -> None:
    """Create, get, delete and logs answer with the messages of the protocol that asked."""
    call = wire.method(protocol, "CreateTask")
    from child_program import SERVICES  # noqa: PLC0415 - only here

    request = SERVICES[protocol][1].CreateTaskRequest()
    request.template.type = "odd"
    request.template.id.name = "job"
    key = ("connector-idempotency-key", "k-1")
    created = call(request, metadata=wire.metadata(key), timeout=PATIENCE)
    assert created.resource_meta == word("job|k-1|0")
    assert wire.get("odd", created.resource_meta, protocol).resource.phase == 3
    wire.delete("odd", created.resource_meta, protocol)
    logs = list(wire.logs("odd", created.resource_meta, protocol))
    assert len(logs) == 3


def test_a_sync_task_gets_one_answer(wire: Wire) -> None:
    """Header, inputs and half-close give one message."""
    assert wire.do("quick").message == "quick"


def test_refusals_have_their_codes(wire: Wire) -> None:
    """What cannot be answered as asked has a code and a sentence of its own, and no facts."""
    cases = [
        (lambda: wire.get("nobody"), "NOT_FOUND", "'nobody' version 0"),
        (lambda: wire.get("quick"), "FAILED_PRECONDITION", "synchronously"),
        (lambda: wire.do("odd"), "FAILED_PRECONDITION", "asynchronously"),
        (lambda: wire.metrics("odd"), "UNIMPLEMENTED", "get_metrics"),
    ]
    for call, code, text in cases:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code().name == code
        assert text in caught.value.details()
        assert not [m for m in caught.value.trailing_metadata() if m[0].startswith("connector-")]
    raw = wire.channel.unary_unary("/flyteidl.service.AsyncAgentService/GetTask")
    with pytest.raises(grpc.RpcError) as caught:
        raw(b"\xff\xff", metadata=wire.metadata(), timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "http",
            {
                "attrs": {"status_code": 429, "retry_after": 7},
                "response": {"status_code": 503, "headers": {"retry-after": "3"}},
                "text": "busy",
            },
        ),
        ("rpc", {"grpc_code": "UNAVAILABLE", "attrs": {}}),
        ("unspeakable", {"text": "", "attrs": {}}),
        ("refused", {"permanent": True}),
        (
            "transient",
            {"attrs": {"code": "Transient", "origin": "system", "retry_after": 2.5}},
        ),
        ("permanent", {"attrs": {"code": "Quota", "origin": "system"}, "permanent": False}),
        ("input", {"attrs": {"code": "InvalidInput", "origin": "user"}}),
        ("secret", {"attrs": {"key": "token"}}),
        ("unmapped", {"text": "Unrecognized state: napping"}),
    ],
)
def test_an_exception_crosses_as_facts(wire: Wire, name: str, expected: dict[str, Any]) -> None:
    """What the parent judges by is told: classes, text, attributes, response, permanence."""
    told = raised(wire, name)
    assert {key: told.get(key) for key in expected} == expected
    assert told["mro"][-1] == "builtins.BaseException"
    assert "odd.py" in told["traceback"]


def test_wrapped_and_grouped_exceptions_are_told_too(wire: Wire) -> None:
    """An error's reason and a group's members are described likewise."""
    reason = raised(wire, "wrapped")["reason"]
    assert reason["mro"][0] == "builtins.ConnectionResetError"
    assert reason["attrs"] == {"errno": 104}
    members = raised(wire, "group")["group"]
    assert [member["mro"][0] for member in members] == [
        "builtins.TimeoutError",
        "builtins.ConnectionError",
    ]


def test_a_long_exception_is_cut_to_what_metadata_takes(wire: Wire) -> None:
    """However long its text, the description arrives; ``facts`` holds it to 6,000 bytes."""
    told = raised(wire, "long")
    assert told["text"].startswith("é" * 100)


def test_what_would_end_the_process_ends_the_call(served: tuple[Child, Wire]) -> None:
    """SystemExit and its like, in a coroutine or on a thread, fail one call; the child lives on."""
    child, wire = served
    before = wire.get("odd").resource.message.partition(" ")[0]
    for name in ("exit", "interrupt", "stop"):
        raised(wire, name)
    with pytest.raises(grpc.RpcError):
        wire.delete("odd", word("exit"))
    wire.get("odd", word("spawn:"))
    child.hear("tried to end the process")
    assert wire.get("odd").resource.message.partition(" ")[0] == before == "1"


def test_each_connector_has_one_loop_for_life(wire: Wire) -> None:
    """All calls of a connector object run on one loop, on a thread that is no other's."""
    threads = {wire.get("odd").resource.message for _ in range(20)}
    others = {wire.get("other").resource.message for _ in range(20)}
    assert len(threads) == len(others) == 1
    assert all(name.startswith("1 ") for name in threads | others)


def test_a_blocking_coroutine_stalls_nobody_else(wire: Wire) -> None:
    """While one connector blocks its loop, the heartbeat and another connector answer."""
    blocked = wire.method("flyteidl", "GetTask").future(
        wire.about("flyteidl", "GetTask", "odd", word("block:3")), metadata=wire.metadata()
    )
    end = time.monotonic() + PATIENCE
    while not wire.ping()["calls"]:
        assert time.monotonic() < end
    for _ in range(20):
        wire.ping()
        wire.get("other")
    assert not blocked.done()
    assert blocked.result(timeout=PATIENCE).resource.phase


def test_who_leaves_cancels_the_coroutine(wire: Wire) -> None:
    """Cancelling a call, and letting its deadline pass, cancel what runs for it."""
    for cancel in (True, False):
        call = wire.method("flyteidl", "GetTask").future(
            wire.about("flyteidl", "GetTask", "other", word("wait:")),
            metadata=wire.metadata(),
            timeout=None if cancel else 0.5,
        )
        if cancel:
            end = time.monotonic() + PATIENCE
            while not wire.ping()["calls"]:
                assert time.monotonic() < end
            call.cancel()
        end = time.monotonic() + PATIENCE
        while wire.ping()["calls"]:
            assert time.monotonic() < end
        assert wire.get("other", word("left:")).resource.message == "True"


def test_who_leaves_a_stream_closes_the_generator(served: tuple[Child, Wire]) -> None:
    """An endless log is sent as it is read, and closed when its reader leaves."""
    _, wire = served
    stream = wire.logs("odd", word("endless"))
    next(stream)
    stream.cancel()
    end = time.monotonic() + PATIENCE
    while wire.ping()["calls"]:
        assert time.monotonic() < end
    assert wire.get("odd", word("left:")).resource.message == "True"


def test_a_huge_message_passes(wire: Wire) -> None:
    """A request of 40 MB is served: sizes are the front's to limit."""
    size = 40_000_000
    from flyteidl.core.literals_pb2 import LiteralMap  # noqa: PLC0415 - only here

    inputs = LiteralMap()
    inputs.literals["large"].scalar.primitive.string_value = "x" * size
    meta = wire.create("odd", inputs=inputs).resource_meta
    assert meta.endswith(f'|{size}"}}'.encode())


def test_many_calls_at_once(wire: Wire) -> None:
    """Two hundred calls of several threads all get their answers."""
    answers: list[Any] = []

    def ask() -> None:
        answers.extend(wire.do("quick").message for _ in range(25))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == ["quick"] * 200


def test_a_connector_may_fork(wire: Wire) -> None:
    """Programs that a connector starts by a fork, beside the threads of gRPC, come to run."""
    assert wire.get("odd", word("fork:150")).resource.message == "[0]"
