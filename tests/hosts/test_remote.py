"""Remote hosts over real ports: what is discovered, kept, called and refused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from flyte_clients import SHAPES, make_connector
from flyteidl.admin import agent_pb2
from grpc import StatusCode
from hosts.remotes import (
    GET1,
    GET2,
    MESSAGES,
    Changes,
    Remotes,
    agent,
    agents,
    becomes,
    call,
    connectors,
    got,
    types,
)
from peers import JOBS, LISTS, answering, peer, refusing

from connector_service import Phase, Resource, SyncConnectorBase
from connector_service.config import ConnectorSection
from connector_service.errors import TransientError, UnavailableError
from connector_service.hosts.outer import HostKind, HostStatus
from connector_service.runtime.dispatcher import Dispatcher
from connector_service.runtime.hooks import Hooks
from connector_service.runtime.retry import retried
from connector_service.runtime.route import Served
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory
from connector_service.testing import serve
from connector_service.wire.status import classify

BARE = ConnectorSection(guarantees=False)
SPARK = TaskCategory("spark")


# --- discovery ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", MESSAGES)
@pytest.mark.parametrize("shape", SHAPES)
async def test_our_own_service_is_discovered_and_called(
    host: Remotes, shape: str, protocol: str
) -> None:
    """A service of ours is listed with its kinds, and answers calls of either protocol."""

    class Doing(SyncConnectorBase):
        name = "Doing"

        def do(self, task_template: Any, inputs: Any, **kwargs: Any) -> Any:
            return Resource(Phase.SUCCEEDED, message="done")

    sync = Doing(task_type_name="do", task_type_version=3)
    async with serve(make_connector(shape), sync, policy=BARE) as served:
        remote = await host(served.endpoint)
        assert remote.categories() == {
            TaskCategory("crossed"): Served("Crossed", is_sync=False),
            TaskCategory("do", 3): Served("Doing", is_sync=True),
        }
        assert [(each.name, each.is_sync) for each in remote.agents()] == [
            ("Crossed", False),
            ("Doing", True),
        ]
        state = remote.snapshot()
        assert (state.name, state.kind, state.status) == ("far", HostKind.REMOTE, HostStatus.UP)
        assert (state.where, state.error, state.healthy) == (served.endpoint, "", True)
        meta = await remote.run(call(Operation.CREATE, "crossed", protocol))
        assert meta == b'{"job": "1"}'
        resource = await remote.run(call(Operation.GET, "crossed", protocol))
        assert isinstance(resource, MESSAGES[protocol].Resource)
        assert resource.phase == Phase.SUCCEEDED


@pytest.mark.parametrize("spoken", MESSAGES)
@pytest.mark.parametrize("protocol", MESSAGES)
async def test_a_peer_of_one_protocol_serves_callers_of_both(
    host: Remotes, protocol: str, spoken: str
) -> None:
    """A peer without the other metadata service is called in the protocol that it has."""
    lists = {"flyteidl": agents(agent("spark")), "flyteidl2": connectors("spark")}
    answers = {
        LISTS[spoken]: answering(lists[spoken]),
        f"{JOBS[spoken]}/GetTask": answering(got()),
    }
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        assert types(remote) == {"spark"}
        resource = await remote.run(call(Operation.GET, "spark", protocol))
        assert isinstance(resource, MESSAGES[protocol].Resource)


async def test_a_type_is_called_in_the_protocols_that_list_it(host: Remotes) -> None:
    """Of a peer with both services, each type is called where it is listed; Flyte 1 tells sync."""
    answers = {
        LISTS["flyteidl"]: answering(agents(agent("one", "both"), agent("sync", sync=True))),
        LISTS["flyteidl2"]: answering(connectors("two", "both", "sync")),
        GET1: answering(got("first")),
        GET2: answering(got("second")),
    }
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        assert {c.name: served.is_sync for c, served in remote.categories().items()} == {
            "one": False,
            "two": False,
            "both": False,
            "sync": True,
        }
        told = {
            (task_type, protocol): (
                await remote.run(call(Operation.GET, task_type, protocol))
            ).message
            for task_type in ("one", "two", "both")
            for protocol in MESSAGES
        }
    assert {key for key, message in told.items() if message == "first"} == {
        ("one", "flyteidl"),
        ("one", "flyteidl2"),
        ("both", "flyteidl"),
    }


async def test_an_agent_of_old_lists_task_types_alone(host: Remotes) -> None:
    """Upstream's agents before task categories are served, as version 0."""
    old = agent_pb2.Agent(name="old", supported_task_types=["spark", "ray"])
    async with peer({LISTS["flyteidl"]: answering(agents(old))}) as other:
        remote = await host(other.endpoint)
        assert set(remote.categories()) == {SPARK, TaskCategory("ray")}
        (listed,) = remote.agents()
        assert [c.name for c in listed.supported_task_categories] == ["ray", "spark"]


@pytest.mark.parametrize(
    ("section", "served"),
    [
        ({}, {"spark", "ray"}),
        ({"enable": ("*",)}, {"spark", "ray", "webhook", "sensor"}),
        ({"enable": ("s*",)}, {"spark", "sensor"}),
        ({"disable": ("s?ark",)}, {"ray"}),
        ({"enable": ("spark", "webhook"), "disable": ("spark",)}, {"webhook"}),
    ],
)
async def test_patterns_choose_what_is_served(
    host: Remotes, section: dict[str, Any], served: set[str]
) -> None:
    """``enable`` and ``disable`` match task types; webhook and sensor are served on request."""
    listed = agents(agent("spark", "ray"), agent("webhook", "sensor", sync=True, name="b"))
    async with peer({LISTS["flyteidl"]: answering(listed)}) as other:
        remote = await host(other.endpoint, **section)
        assert types(remote) == served


async def test_prefer_names_task_types(host: Remotes) -> None:
    """``prefers`` is true for what ``prefer`` matches, as it stands in the settings."""
    remote = await host("127.0.0.1:1", start=False, prefer=("spa*",))
    assert remote.prefers(SPARK)
    assert not remote.prefers(TaskCategory("ray"))


# --- a peer that comes and goes ----------------------------------------------------------------


async def test_a_peer_that_is_away_at_start_is_found_when_it_comes(host: Remotes) -> None:
    """Starting waits for one answer and never fails for it; the types come with the peer."""
    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: answering(got())}
    async with peer({}) as other:
        port = other.port
    async with asyncio.timeout(5):
        remote = await host(f"127.0.0.1:{port}")
    state = remote.snapshot()
    assert (state.status, state.healthy) == (HostStatus.DOWN, False)
    assert state.error.startswith(f"127.0.0.1:{port} does not tell what it serves (UNAVAILABLE")
    assert (dict(remote.categories()), list(remote.agents())) == ({}, [])
    changes = Changes(remote)
    async with peer(answers, port=port):
        await changes.until(lambda: types(remote) == {"spark"})
        assert remote.snapshot().status is HostStatus.UP
        assert (await remote.run(call(Operation.GET, "spark"))).message == "m"


async def test_a_peer_that_is_slow_to_list_holds_the_start_no_longer_than_told(
    host: Remotes,
) -> None:
    """A peer that never answers ListAgents costs ``start_timeout``, and is down then."""

    async def hang(_request: bytes, _context: Any) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async with peer({LISTS["flyteidl"]: hang}) as other:
        began = time.monotonic()
        remote = await host(other.endpoint, start_timeout=0.5)
        assert 0.4 < time.monotonic() - began < 5
        assert "DEADLINE_EXCEEDED" in remote.snapshot().error
        assert remote.snapshot().status is HostStatus.DOWN


async def test_types_stay_listed_while_the_peer_is_away(host: Remotes) -> None:
    """A peer that stops keeps its types and fails its calls as transient, until it is back."""
    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: answering(got())}
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        changes = Changes(remote)
    await becomes(remote, HostStatus.DOWN)
    assert types(remote) == {"spark"}
    with pytest.raises(TransientError, match="'far'"):
        await remote.run(call(Operation.GET, "spark"))
    async with peer(answers, port=other.port):
        await becomes(remote, HostStatus.UP)
        assert remote.snapshot().error == ""
        assert (await remote.run(call(Operation.GET, "spark"))).message == "m"
    assert changes.count == 0


@pytest.mark.parametrize(
    "answer",
    [
        refusing(StatusCode.INTERNAL, "Traceback: token=abcdef123456"),
        refusing(StatusCode.UNIMPLEMENTED),
        answering(b"\xff\xff"),
    ],
    ids=["internal", "unimplemented", "garbage"],
)
async def test_no_answer_that_is_none_changes_the_list(host: Remotes, answer: Any) -> None:
    """A failing or foreign listing leaves the types, and its words come redacted."""
    answers = {LISTS["flyteidl"]: answering(agents(agent("spark")))}
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        other.answers[LISTS["flyteidl"]] = answer
        await becomes(remote, HostStatus.DOWN)
        for _ in range(6):
            await remote._ask(remote._open(), 5)
        assert types(remote) == {"spark"}
        assert "abcdef123456" not in remote.snapshot().error


async def test_half_an_answer_is_none(host: Remotes) -> None:
    """With Flyte 1's listing out of reach nothing is listed: a sync type would pass for async."""
    answers = {
        LISTS["flyteidl"]: refusing(StatusCode.UNAVAILABLE),
        LISTS["flyteidl2"]: answering(connectors("sync")),
    }
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        assert (types(remote), remote.snapshot().status) == (set(), HostStatus.DOWN)
        changes = Changes(remote)
        other.answers[LISTS["flyteidl"]] = answering(agents(agent("sync", sync=True)))
        await changes.until(lambda: types(remote) == {"sync"})
        assert [served.is_sync for served in remote.categories().values()] == [True]


async def test_a_type_is_gone_when_three_answers_in_a_row_lack_it(host: Remotes) -> None:
    """Replicas that differ do not flap; a type that is really gone goes, with one call back."""
    full, less = agents(agent("spark", "ray")), agents(agent("spark"))
    pattern = [full, less, less, full, less, less, full, less, less, less]
    answers = {LISTS["flyteidl"]: answering(pattern[0])}
    async with peer(answers) as other:
        remote = await host(other.endpoint, every=3_600)
        changes = Changes(remote)
        seen = []
        for listed in pattern[1:]:
            other.answers[LISTS["flyteidl"]] = answering(listed)
            await remote._ask(remote._open(), 5)
            seen.append("ray" in types(remote))
    assert seen == [True] * 8 + [False]
    assert changes.count == 1


async def test_a_create_waits_for_a_peer_that_restarts(host: Remotes) -> None:
    """Tried again as the policies do, a create finds the peer when it is back, and runs once."""
    created = []

    async def create(request: bytes, _context: Any) -> bytes:
        created.append(request)
        return agent_pb2.CreateTaskResponse(resource_meta=b"{}").SerializeToString()

    answers = {
        LISTS["flyteidl"]: answering(agents(agent("spark"))),
        f"{JOBS['flyteidl']}/CreateTask": create,
    }
    async with peer(answers) as other:
        remote = await host(other.endpoint)
    await becomes(remote, HostStatus.DOWN)
    assert types(remote) == {"spark"}
    failed = asyncio.Event()

    asked = call(Operation.CREATE, "spark")
    task = asyncio.create_task(
        retried(lambda: remote.run(asked), asked.deadline, on_retry=lambda *_: failed.set())
    )
    await asyncio.wait_for(failed.wait(), 10)
    async with peer(answers, port=other.port):
        assert await task == b"{}"
    assert len(created) == 1


async def test_a_front_answers_for_a_remote_host_and_tells_no_traceback(
    host: Remotes, caplog: pytest.LogCaptureFixture
) -> None:
    """A traceback in a status never reaches callers; the log has it, redacted, once a minute."""
    trace = "Traceback (most recent call last):\n  x\nValueError: password=hunter2secret"
    answers = {
        LISTS["flyteidl"]: answering(agents(agent("spark"))),
        GET1: refusing(StatusCode.INTERNAL, trace),
    }
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        dispatcher = Dispatcher([remote], classify, Hooks(()), policies={"spark": BARE})
        with caplog.at_level(logging.WARNING, "connector_service.hosts.remote"):
            for _ in range(3):
                outcome = await dispatcher.dispatch(call(Operation.GET, "spark"))
    assert outcome.status is not None
    assert "Traceback" not in outcome.status.details
    assert "hunter2secret" not in outcome.status.details
    (record,) = [r for r in caplog.records if r.message == "remote host refused a call"]
    error = vars(record)["error"]
    assert "ValueError" in error
    assert "hunter2secret" not in error


# --- bulkhead ----------------------------------------------------------------------------------


async def test_concurrency_bounds_the_calls_and_logs_take_none_of_them(host: Remotes) -> None:
    """So many calls run and so many wait; one more is told to come back; a log is beside them."""
    begun, go, running = asyncio.Event(), asyncio.Event(), 0

    async def get(_request: bytes, _context: Any) -> bytes:
        nonlocal running
        running += 1
        begun.set()
        await go.wait()
        return got()

    async def logs(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield b""

    answers = {
        LISTS["flyteidl"]: answering(agents(agent("spark"))),
        GET1: get,
        f"{JOBS['flyteidl']}/GetTaskLogs": logs,
    }
    async with peer(answers) as other:
        remote = await host(other.endpoint, concurrency=1)
        first = asyncio.create_task(remote.run(call(Operation.GET, "spark")))
        await asyncio.wait_for(begun.wait(), 10)
        second = asyncio.create_task(remote.run(call(Operation.GET, "spark")))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="'far' is busy"):
            await remote.run(call(Operation.GET, "spark"))
        lines: list[Any] = []

        async def send(message: Any) -> None:
            lines.append(message)

        await remote.stream(call(Operation.GET_LOGS, "spark"), send)
        assert (len(lines), running) == (1, 1)
        go.set()
        assert {(await each).message for each in (first, second)} == {"m"}
        assert running == 2


# --- targets -----------------------------------------------------------------------------------


async def test_calls_go_round_the_addresses_of_a_name(host: Remotes) -> None:
    """Every replica behind the endpoint takes calls, and one that dies takes none with it."""
    seen: list[int] = []

    def get(number: int) -> Any:
        async def answer(_request: bytes, _context: Any) -> bytes:
            seen.append(number)
            return got()

        return answer

    listing = {LISTS["flyteidl"]: answering(agents(agent("spark")))}
    async with peer({**listing, GET1: get(1)}) as first:
        async with peer({**listing, GET1: get(2)}) as second:
            remote = await host(f"ipv4:{first.endpoint},{second.endpoint}", every=3_600)
            async with asyncio.timeout(10):
                while set(seen) != {1, 2}:
                    await remote.run(call(Operation.GET, "spark"))
        seen.clear()
        # The first call may still meet the connection that has just gone.
        with contextlib.suppress(TransientError):
            await remote.run(call(Operation.GET, "spark"))
        for _ in range(10):
            await remote.run(call(Operation.GET, "spark"))
    assert set(seen) == {1}


async def test_a_unix_socket_is_a_target(host: Remotes, tmp_path: Path) -> None:
    """Any gRPC target will do, as one on this machine's file system."""
    server = grpc.aio.server()
    socket = tmp_path / "s"
    server.add_insecure_port(f"unix:{socket}")

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if details.method != f"/{LISTS['flyteidl2']}":
                return None
            return grpc.unary_unary_rpc_method_handler(answering(connectors("spark")))

    server.add_generic_rpc_handlers((Handlers(),))
    await server.start()
    try:
        remote = await host(f"unix:{socket}")
        assert types(remote) == {"spark"}
    finally:
        await server.stop(None)
