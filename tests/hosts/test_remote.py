"""Remote hosts over real ports: what is discovered, kept, refused, secured and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from flyte_clients import SHAPES, make_connector
from flyteidl.admin import agent_pb2
from flyteidl2.connector import connector_pb2
from grpc import StatusCode
from peers import JOBS, LISTS, answering, peer, refusing

from connector_service import Phase, Resource, SyncConnectorBase
from connector_service.config import ConnectorSection, HostSection
from connector_service.errors import (
    ConfigError,
    HostError,
    TransientError,
    UnavailableError,
)
from connector_service.hosts.outer import HostKind, HostStatus
from connector_service.hosts.remote import RemoteHost
from connector_service.runtime.call import Call
from connector_service.runtime.dispatcher import Dispatcher
from connector_service.runtime.hooks import Hooks
from connector_service.runtime.retry import retried
from connector_service.runtime.route import Served
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory
from connector_service.testing import serve
from connector_service.wire.status import classify

MESSAGES: dict[str, Any] = {"flyteidl": agent_pb2, "flyteidl2": connector_pb2}
BARE = ConnectorSection(guarantees=False)
SPARK = TaskCategory("spark")

Hosts = Callable[..., Any]


@pytest.fixture
async def host() -> AsyncIterator[Hosts]:
    """Make a remote host of an endpoint, started unless ``start=False``."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            endpoint: str,
            *,
            every: float = 0.05,
            start: bool = True,
            on_event: Any = lambda *_: None,
            **section: Any,
        ) -> RemoteHost:
            settings = HostSection(endpoint=endpoint, **{"start_timeout": 10.0, **section})
            remote = RemoteHost("far", settings, every=every, on_event=on_event)
            stack.push_async_callback(remote.close, 0)
            if start:
                await remote.start()
            return remote

        yield make


class Changes:
    """Waits until what a host serves is as wanted, woken by its callback."""

    def __init__(self, remote: RemoteHost) -> None:
        self.remote = remote
        self.changed = asyncio.Event()
        self.count = 0
        remote.on_change(self.note)

    def note(self) -> None:
        self.count += 1
        self.changed.set()

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not wanted():
                self.changed.clear()
                await self.changed.wait()


async def becomes(remote: RemoteHost, status: HostStatus) -> None:
    """Wait for a status, which nobody is called back for."""
    async with asyncio.timeout(20):
        while remote.snapshot().status is not status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def agents(*given: Any) -> bytes:
    listed: bytes = agent_pb2.ListAgentsResponse(agents=given).SerializeToString()
    return listed


def agent(*types: str, sync: bool = False, name: str = "a") -> agent_pb2.Agent:
    return agent_pb2.Agent(
        name=name,
        is_sync=sync,
        supported_task_categories=[agent_pb2.TaskCategory(name=each) for each in types],
    )


def connectors(*types: str) -> bytes:
    categories = [connector_pb2.TaskCategory(name=each) for each in types]
    listed: bytes = connector_pb2.ListConnectorsResponse(
        connectors=[connector_pb2.Connector(name="c", supported_task_categories=categories)]
    ).SerializeToString()
    return listed


def call(operation: Operation, task_type: str, protocol: str = "flyteidl", **more: Any) -> Call:
    messages = MESSAGES[protocol]
    names = {
        Operation.CREATE: "CreateTaskRequest",
        Operation.GET: "GetTaskRequest",
        Operation.GET_LOGS: "GetTaskLogsRequest",
    }
    request = getattr(messages, names[operation])()
    if operation is Operation.CREATE:
        request.template.type = task_type
        request.output_prefix = "mem://out"
    else:
        request.resource_meta = b'{"job": "1"}'
        request.task_category.name = task_type
    deadline = time.monotonic() + 20
    return Call(protocol, operation, TaskCategory(task_type), request, deadline=deadline, **more)


def got(message: str = "m", phase: int = 2) -> bytes:
    response: bytes = agent_pb2.GetTaskResponse(
        resource=agent_pb2.Resource(phase=phase, message=message)  # type: ignore[arg-type]
    ).SerializeToString()
    return response


def types(remote: RemoteHost) -> set[str]:
    return {category.name for category in remote.categories()}


GET1 = f"{JOBS['flyteidl']}/GetTask"
GET2 = f"{JOBS['flyteidl2']}/GetTask"


# --- discovery ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", MESSAGES)
@pytest.mark.parametrize("shape", SHAPES)
async def test_our_own_service_is_discovered_and_called(
    host: Hosts, shape: str, protocol: str
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
    host: Hosts, protocol: str, spoken: str
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


async def test_a_type_is_called_in_the_protocols_that_list_it(host: Hosts) -> None:
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


async def test_an_agent_of_old_lists_task_types_alone(host: Hosts) -> None:
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
    host: Hosts, section: dict[str, Any], served: set[str]
) -> None:
    """``enable`` and ``disable`` match task types; webhook and sensor are served on request."""
    listed = agents(agent("spark", "ray"), agent("webhook", "sensor", sync=True, name="b"))
    async with peer({LISTS["flyteidl"]: answering(listed)}) as other:
        remote = await host(other.endpoint, **section)
        assert types(remote) == served


async def test_prefer_names_task_types(host: Hosts) -> None:
    """``prefers`` is true for what ``prefer`` matches, as it stands in the settings."""
    remote = await host("127.0.0.1:1", start=False, prefer=("spa*",))
    assert remote.prefers(SPARK)
    assert not remote.prefers(TaskCategory("ray"))


# --- a peer that comes and goes ----------------------------------------------------------------


async def test_a_peer_that_is_away_at_start_is_found_when_it_comes(host: Hosts) -> None:
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
    host: Hosts,
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


async def test_types_stay_listed_while_the_peer_is_away(host: Hosts) -> None:
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
async def test_no_answer_that_is_none_changes_the_list(host: Hosts, answer: Any) -> None:
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


async def test_half_an_answer_is_none(host: Hosts) -> None:
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


async def test_a_type_is_gone_when_three_answers_in_a_row_lack_it(host: Hosts) -> None:
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


async def test_a_create_waits_for_a_peer_that_restarts(host: Hosts) -> None:
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
    host: Hosts, caplog: pytest.LogCaptureFixture
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


async def test_concurrency_bounds_the_calls_and_logs_take_none_of_them(host: Hosts) -> None:
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


# --- reload, close -----------------------------------------------------------------------------


async def test_a_reload_loses_no_call(host: Hosts) -> None:
    """Calls on the old connection end there, new ones take the new; the old is closed then."""
    peers: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def get(_request: bytes, context: Any) -> bytes:
        peers.append(context.peer())
        if len(peers) == 1:
            begun.set()
            await go.wait()
        return got(f"call {len(peers)}")

    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: get}
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        old = remote._open()
        first = asyncio.create_task(remote.run(call(Operation.GET, "spark")))
        await asyncio.wait_for(begun.wait(), 10)
        await remote.reload()
        assert remote._open() is not old
        await remote.run(call(Operation.GET, "spark"))
        assert not first.done()
        assert peers[0] != peers[1]  # another connection, not the old one under a new name
        (leaving,) = remote._leaving.values()
        go.set()
        assert (await first).message == "call 2"
        await asyncio.wait_for(leaving, 10)
        assert old.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_reload_under_load_fails_nothing(host: Hosts) -> None:
    """Five reloads under four busy callers: every call is answered."""
    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: answering(got())}
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        stop, answered = asyncio.Event(), []

        async def caller() -> None:
            while not stop.is_set() and len(answered) < 20_000:
                answered.append((await remote.run(call(Operation.GET, "spark"))).message)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(caller())
            for _ in range(5):
                before = len(answered)
                await remote.reload()
                async with asyncio.timeout(10):
                    while len(answered) < before + 20:  # noqa: ASYNC110
                        await asyncio.sleep(0)
            stop.set()
    assert set(answered) == {"m"}


async def test_a_reload_that_finds_nobody_keeps_what_was(host: Hosts) -> None:
    """The new connection is used only when the peer answered on it; the sentence says so."""
    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: answering(got())}
    async with peer(answers) as other:
        remote = await host(other.endpoint, every=3_600)
        old = remote._open()
        other.answers[LISTS["flyteidl"]] = refusing(StatusCode.UNAVAILABLE, "no")
        with pytest.raises(HostError, match=r"UNAVAILABLE: no\).*stays in use\."):
            await remote.reload()
        assert remote._open() is old
        assert (await remote.run(call(Operation.GET, "spark"))).message == "m"
        assert remote.snapshot().status is HostStatus.UP


async def test_its_ups_and_downs_are_events(host: Hosts) -> None:
    """Whoever counts hears of each change once, and of reloads, taken or refused."""
    events: list[str] = []
    answers = {LISTS["flyteidl"]: answering(agents(agent("spark")))}
    async with peer(answers) as other:
        remote = await host(
            other.endpoint, every=3_600, on_event=lambda kind, _detail: events.append(kind)
        )
        await remote.reload()
        await remote._ask(remote._open(), 5)
        other.answers.clear()
        for _ in range(2):
            await remote._ask(remote._open(), 5)
        with pytest.raises(HostError):
            await remote.reload()
    assert events == ["up", "reloaded", "down", "reload_refused"]


async def test_closing_gives_calls_their_grace_and_then_ends_them(host: Hosts) -> None:
    """A call that outlives the grace fails as transient; closing again is fine."""
    begun = asyncio.Event()

    async def get(_request: bytes, _context: Any) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    answers = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: get}
    async with peer(answers) as other:
        remote = await host(other.endpoint)
        task = asyncio.create_task(remote.run(call(Operation.GET, "spark")))
        await asyncio.wait_for(begun.wait(), 10)
        await remote.reload()  # the call is on a connection that is being left
        async with asyncio.timeout(8):
            await remote.close(0.2)
        with pytest.raises(TransientError):
            await task
        await remote.close(0.2)
        with pytest.raises(TransientError):
            await remote.run(call(Operation.GET, "spark"))


# --- TLS ---------------------------------------------------------------------------------------


class Certificates:
    """An authority, and certificates that it signed; all made by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = self._run(
            "ca", "req", "-x509", "-subj", "/CN=authority", "-addext", "basicConstraints=CA:TRUE"
        )

    def _run(self, name: str, *arguments: str) -> Path:
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        command = ["openssl", *arguments, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        command += ["-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"]
        subprocess.run(command, check=True, capture_output=True)
        return cert

    def lock(self, key: Path, file: Path) -> None:
        command = ["openssl", "ec", "-in", str(key), "-aes256", "-passout", "pass:geheim"]
        subprocess.run([*command, "-out", str(file)], check=True, capture_output=True)

    def sign(self, name: str, *names: str) -> tuple[Path, Path]:
        cert = self._run(
            name,
            *("req", "-x509", "-CA", str(self.ca), "-CAkey", str(self.folder / "ca.key")),
            *("-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={','.join(names or (f'DNS:{name}',))}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        return cert, self.folder / f"{name}.key"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def credentials(pair: Sequence[Path], ca: Path | None = None) -> grpc.ServerCredentials:
    cert, key = (file.read_bytes() for file in pair)
    return grpc.ssl_server_credentials(
        [(key, cert)],
        root_certificates=None if ca is None else ca.read_bytes(),
        require_client_auth=ca is not None,
    )


TLS_ANSWERS = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: answering(got())}


async def test_tls_is_spoken_and_the_name_is_checked(
    host: Hosts, certificates: Certificates
) -> None:
    """The endpoint's certificate must be of its name, or of ``server_name``, and of our ``ca``."""
    pair = certificates.sign("far.example")
    ca = str(certificates.ca)
    async with peer(TLS_ANSWERS, credentials=credentials(pair)) as other:
        good = await host(other.endpoint, tls=True, ca=ca, server_name="far.example")
        assert (await good.run(call(Operation.GET, "spark"))).message == "m"
        for section in (
            {"tls": True, "ca": ca},  # 127.0.0.1 is not its name
            {"tls": True, "server_name": "far.example"},  # nobody's authority
            {"tls": True, "ca": str(certificates.sign("other")[0]), "server_name": "far.example"},
            {},  # no TLS
        ):
            bad = await host(other.endpoint, **section)
            assert bad.snapshot().status is HostStatus.DOWN
            assert dict(bad.categories()) == {}


async def test_a_certificate_of_ours_is_shown_and_taken_up_anew_by_a_reload(
    host: Hosts, certificates: Certificates, tmp_path: Path
) -> None:
    """Mutual TLS works; ``reload`` reads files that were replaced; bad ones change nothing."""
    pair = certificates.sign("mutual", "IP:127.0.0.1")
    ours = certificates.sign("client")
    names: list[Any] = []

    async def get(_request: bytes, context: Any) -> bytes:
        names.append(context.auth_context()["x509_common_name"])
        return got()

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for file, made in ((cert, ours[0]), (key, ours[1])):
        file.write_bytes(made.read_bytes())
    server = credentials(pair, certificates.ca)
    async with peer({**TLS_ANSWERS, GET1: get}, credentials=server) as other:
        section = {"tls": True, "ca": str(certificates.ca), "cert": str(cert), "key": str(key)}
        remote = await host(other.endpoint, **section)
        await remote.run(call(Operation.GET, "spark"))
        cert.write_text("no certificate")
        with pytest.raises(HostError, match=r"hosts\.far\.cert: .*stays in use\."):
            await remote.reload()
        renewed = certificates.sign("renewed")
        for file, made in ((cert, renewed[0]), (key, renewed[1])):
            file.write_bytes(made.read_bytes())
        await remote.run(call(Operation.GET, "spark"))
        await remote.reload()
        await remote.run(call(Operation.GET, "spark"))
        without = await host(other.endpoint, tls=True, ca=str(certificates.ca))
        assert without.snapshot().status is HostStatus.DOWN
    assert names == [[b"client"], [b"client"], [b"renewed"]]


@pytest.mark.parametrize(
    ("field", "content", "sentence"),
    [
        ("ca", None, "cannot be read"),
        ("ca", "", "holds no PEM certificate"),
        ("ca", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "no PEM certificate"),
        ("cert", None, "cannot be read"),
        ("key", None, "cannot be read"),
        ("key", "other", "give a pair that belongs together"),
        ("key", "locked", "without a password"),
    ],
)
async def test_files_that_cannot_be_used_stop_the_start(
    host: Hosts,
    certificates: Certificates,
    tmp_path: Path,
    field: str,
    content: str | None,
    sentence: str,
) -> None:
    """One sentence names the setting and the file, before any connection is tried."""
    pair = certificates.sign("mine")
    files = {"ca": certificates.ca, "cert": pair[0], "key": pair[1]}
    files[field] = tmp_path / "file.pem"
    if content == "other":
        files[field].write_bytes(certificates.sign("another")[1].read_bytes())
    elif content == "locked":
        certificates.lock(pair[1], files[field])
    elif content is not None:
        files[field].write_text(content)
    section = {name: str(file) for name, file in files.items()}
    remote = await host("127.0.0.1:1", start=False, tls=True, **section)
    with pytest.raises(ConfigError, match=rf"hosts\.far\.{field}|hosts\.far\.cert") as caught:
        await remote.start()
    assert sentence in str(caught.value)
    assert str(files[field]) in str(caught.value)


# --- targets -----------------------------------------------------------------------------------


async def test_calls_go_round_the_addresses_of_a_name(host: Hosts) -> None:
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


async def test_a_unix_socket_is_a_target(host: Hosts, tmp_path: Path) -> None:
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
