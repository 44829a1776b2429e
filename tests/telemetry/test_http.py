"""Liveness, readiness and metrics over HTTP: early, late, busy, slow, and under a stuck loop."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from flyteidl.admin.agent_pb2 import (
    CreateRequestHeader,
    ExecuteTaskSyncRequest,
)
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.service.agent_pb2_grpc import SyncAgentServiceStub
from prometheus_client import CollectorRegistry, Gauge

from connector_service import Resource, SyncConnectorBase
from connector_service.errors import StartupError
from connector_service.telemetry.http import HttpServer
from connector_service.testing import serve, serve_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """Fetch a path; the time limit is the test's own."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.fixture
def server() -> Iterator[Callable[..., HttpServer]]:
    """Make servers that are closed with the test."""
    made: list[HttpServer] = []

    def make(
        host: str = "127.0.0.1", port: int = 0, ready: Callable[[], bool] = lambda: True
    ) -> HttpServer:
        registry = CollectorRegistry()
        Gauge("answer", "The answer.", registry=registry).set(42)
        made.append(HttpServer(host, port, registry, ready))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def taken() -> Iterator[int]:
    """Hold a port that nobody else can take."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_each_path_has_its_answer(server: Any) -> None:
    """Live is always 200, ready follows the service, and a wrong path says which there are."""
    ready = threading.Event()
    one = server(ready=ready.is_set)
    one.start()
    assert get(one.port, "/livez") == (200, "alive\n")
    assert get(one.port, "/readyz") == (503, "not ready: starting or draining\n")
    ready.set()
    assert get(one.port, "/readyz") == (200, "ready\n")
    ready.clear()
    assert get(one.port, "/readyz") == (503, "not ready: starting or draining\n")
    assert get(one.port, "/") == (404, "Try /metrics, /livez or /readyz.\n")
    status, text = get(one.port, "/metrics")
    assert status == 200
    assert "answer 42.0" in text


async def test_a_service_is_ready_from_startup_to_drain() -> None:
    """Ready means that calls are answered; a draining service is alive and not ready."""
    async with serve() as served:
        port = served.service.prometheus_port
        assert await asyncio.to_thread(get, port, "/readyz") == (200, "ready\n")
        await served.service.drain()
        assert (await asyncio.to_thread(get, port, "/readyz"))[0] == 503
        assert (await asyncio.to_thread(get, port, "/livez"))[0] == 200
    with pytest.raises(ConnectionRefusedError):
        get(port, "/livez")


def test_a_busy_port_is_a_sentence(server: Any, taken: int) -> None:
    """A port that is taken is known at once, by a sentence that says what to do."""
    with pytest.raises(StartupError) as refused:
        server(port=taken)
    assert str(refused.value) == (
        f"Cannot listen on 127.0.0.1:{taken} for metrics: Address already in use; choose another"
        f" with --prometheus-port or --host, or --prometheus-port 0 for a free one."
    )
    assert refused.value.exit_code == 3


def test_every_answer_has_its_own_length(server: Any) -> None:
    """A long answer after a short one is whole, and a short one after a long one ends."""
    one = server(ready=lambda: False)
    one.start()
    expected = {
        "/livez": "alive\n",
        "/readyz": "not ready: starting or draining\n",
        "/": "Try /metrics, /livez or /readyz.\n",
    }
    for path in (*expected, *reversed(expected)):
        assert get(one.port, path)[1] == expected[path]


def test_two_servers_cannot_share_a_port(server: Any) -> None:
    """The option that speeds up restarts does not let a second service in."""
    one = server()
    one.start()
    with pytest.raises(StartupError, match="Address already in use"):
        server(port=one.port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_a_sentence(server: Any, host: str) -> None:
    """An address that is not this machine's, or a name that nobody knows, is named."""
    with pytest.raises(StartupError, match=rf"^Cannot listen on {host}:0 for metrics: "):
        server(host=host)


async def test_a_service_that_cannot_start_frees_what_it_had(taken: int) -> None:
    """A taken metrics port or gRPC port is a StartupError, and leaves no port behind."""
    with pytest.raises(StartupError, match=f"127.0.0.1:{taken} for metrics"):
        async with serve(prometheus_port=taken):
            pass
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StartupError, match=f"127.0.0.1:{taken}: the port is taken"):
        async with serve(port=taken, prometheus_port=port):
            pass
    async with serve(prometheus_port=port) as served:
        assert served.service.prometheus_port == port


@pytest.mark.parametrize("host", ["::", "::1"])
def test_it_listens_on_ipv6(server: Any, host: str) -> None:
    """An IPv6 address works; :: is every interface, of IPv4 too, as a pod needs."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    try:
        one = server(host=host)
    except StartupError as error:
        pytest.skip(str(error))
    one.start()
    assert get(one.port, "/livez", "::1")[0] == 200
    if host == "::":
        assert get(one.port, "/livez", "127.0.0.1")[0] == 200


def test_every_interface_works_without_ipv6(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no IPv6, :: means every interface of IPv4."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    one = server(host="::")
    one.start()
    assert get(one.port, "/livez")[0] == 200


def test_no_name_server_is_asked(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start-up does no reverse look-up of its own address, which may take seconds to fail."""

    def asked(_host: str = "") -> str:
        raise AssertionError("a name server was asked")

    monkeypatch.setattr(socket, "getfqdn", asked)
    one = server()
    one.start()
    assert get(one.port, "/livez")[0] == 200


def test_slow_clients_delay_nobody(server: Any) -> None:
    """20 clients that dawdle over their request do not hold up a probe, or the end."""
    one = server()
    one.start()
    with contextlib.ExitStack() as open_:
        for half in (b"", b"GET /metrics HT", b"GET /livez HTTP/1.1\r\nHost:") * 7:
            slow = open_.enter_context(socket.create_connection(("127.0.0.1", one.port)))
            slow.sendall(half)
        assert get(one.port, "/livez") == (200, "alive\n")
        assert get(one.port, "/metrics")[0] == 200
        one.close()


NONSENSE = (
    b"\r\n",
    b"BOGUS\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\xff" * 70_000,
)


@pytest.mark.parametrize("request_", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_refused_and_forgotten(
    server: Any, capfd: pytest.CaptureFixture[str], request_: bytes
) -> None:
    """What is no HTTP ends its own connection, without a traceback on standard error."""
    one = server()
    one.start()
    with socket.create_connection(("127.0.0.1", one.port), timeout=5) as client:
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65_536):
                pass
    assert get(one.port, "/livez")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_hangs_up_leaves_no_traceback(
    server: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A scraper that times out and resets its connection is no news on standard error."""
    one = server()
    one.start()
    for _ in range(5):
        client = socket.create_connection(("127.0.0.1", one.port))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()  # with a reset
    assert get(one.port, "/livez")[0] == 200
    one.close()
    assert "Traceback" not in capfd.readouterr().err


def test_it_answers_while_the_event_loop_is_stuck() -> None:
    """A connector that blocks the loop blocks neither scrapes nor probes."""
    entered, release = threading.Event(), threading.Event()

    class Blocks(SyncConnectorBase):
        def __init__(self) -> None:
            super().__init__(task_type_name="blocks")

        async def do(self) -> Resource:
            entered.set()
            release.wait(10)  # what an author must not do, and some do
            return Resource(TaskExecution.SUCCEEDED)

    header = CreateRequestHeader(template=TaskTemplate(type="blocks"))
    messages = (ExecuteTaskSyncRequest(header=header), ExecuteTaskSyncRequest(inputs=LiteralMap()))
    with serve_in_thread(Blocks()) as served, grpc.insecure_channel(served.endpoint) as channel:
        stub: Any = SyncAgentServiceStub(channel)
        replies = stub.ExecuteTaskSync(iter(messages))
        assert entered.wait(10)
        port = served.service.prometheus_port
        assert get(port, "/livez") == (200, "alive\n")
        assert get(port, "/readyz") == (200, "ready\n")
        status, text = get(port, "/metrics")
        assert status == 200
        gauge = 'connector_service_requests_in_flight{operation="do",protocol="flyteidl"} 1.0'
        assert gauge in text
        release.set()
        assert len(list(replies)) == 1


def test_closing_is_quick_and_may_come_at_any_time(server: Any) -> None:
    """Close before start, twice, and after serving; the port is free again at once."""
    never_started = server()
    never_started.close()
    never_started.close()
    one = server()
    one.start()
    assert get(one.port, "/livez")[0] == 200
    began = time.monotonic()
    one.close()
    assert time.monotonic() - began < 0.4  # the standard library's poll alone takes 0.5 s
    one.close()
    again = server(port=one.port)
    again.start()
    assert get(again.port, "/livez")[0] == 200
