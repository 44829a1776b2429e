"""How calls are accepted: many at a time, large ones one by one, and nothing of them is left.

What happens is a coroutine here, which a process of its own runs: gRPC has one thread for all loops
of a process, and any of them takes the events of all.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest

from connector_service.hosts.child.connector_host import accepting, serve
from connector_service.hosts.child.connector_host.accepting import make_server
from connector_service.hosts.child.connector_host.table import Table
from connector_service.wire.binding import Methods

_CALLS = 20
_OPTIONS = (("grpc.so_reuseport", 0),)


class Loop(asyncio.SelectorEventLoop):
    """Knows the socket by which grpc's thread wakes it: one byte for each event of grpc-core."""

    woken: socket.socket

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        if isinstance(fd, socket.socket) and fd is not self._ssock:  # type: ignore[attr-defined]
            self.woken = fd
        super().add_reader(fd, callback, *args)

    def events(self) -> int:
        """Count the events that wait for the loop."""
        size = array.array("i", [0])
        fcntl.ioctl(self.woken, termios.FIONREAD, size)
        return size[0]


class Echo(grpc.GenericRpcHandler):
    """Answers any method with what it was sent."""

    def __init__(self) -> None:
        self.latest = 0
        self.answered: list[bytes] = []

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def answer(request: bytes, _context: Any) -> bytes:
            self.answered.append(request)
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.asynccontextmanager
async def serving(methods: Echo) -> AsyncIterator[tuple[Any, grpc.Channel]]:
    server = make_server(_OPTIONS, methods)
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:  # calls from threads of its own
        try:
            yield server, channel
        finally:
            await server.stop(0)


def call(channel: grpc.Channel, request: bytes) -> Any:
    return channel.unary_unary("/any/method").future(request, timeout=30)  # type: ignore[arg-type]


async def answers(calls: list[Any]) -> list[bytes]:
    return [await asyncio.to_thread(one.result) for one in calls]


async def ready(channel: grpc.Channel) -> None:
    """Wait until a first call was answered, so that the connection is there."""
    assert await answers([call(channel, b"first")]) == [b"first"]


def hold_until_handed_over(channel: grpc.Channel, number: int, patience: float = 10) -> list[Any]:
    """Keep the running loop busy until grpc-core has handed over that many new calls."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    calls = [call(channel, str(index).encode()) for index in range(number)]
    over = time.monotonic() + patience
    while loop.events() < number:
        assert time.monotonic() < over, f"{loop.events()} of {number} calls were handed over"
        time.sleep(0.001)
    return calls


def alone(scenario: Callable[[], Coroutine[Any, Any, None]]) -> str:
    """Have a process of its own run a scenario of this module, and return what it wrote."""
    command = [sys.executable, "-W", "error", __file__, scenario.__name__]
    quiet = {**os.environ, "GRPC_VERBOSITY": "ERROR"}  # newer releases tell of every GOAWAY
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=quiet)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr + ran.stdout


async def handed_over_together() -> None:
    async with serving(Echo()) as (_, channel):
        await ready(channel)
        calls = hold_until_handed_over(channel, _CALLS)
        assert await answers(calls) == [str(index).encode() for index in range(_CALLS)]


def test_calls_that_come_while_the_loop_is_busy_are_all_handed_over() -> None:
    """No call waits for the one before it to be taken up: grpc.aio alone would hand over one."""
    assert alone(handed_over_together) == ""


async def handed_over_in_a_host() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = await serve.open_server(serve.Service(Table([]), "token"), f"{folder}/socket")
        with grpc.insecure_channel(f"unix:{folder}/socket") as channel:
            await asyncio.to_thread(grpc.channel_ready_future(channel).result, 10)
            hold_until_handed_over(channel, _CALLS)
        await server.stop(0)


def test_a_process_of_a_host_takes_them_all_too() -> None:
    """What a process host's program serves the service with waits no more than the service."""
    alone(handed_over_in_a_host)


async def grpc_alone() -> None:
    accepting._INSIDE = ("another inside",)
    async with serving(Echo()) as (server, channel):
        assert type(server) is type(grpc.aio.server())
        await ready(channel)
        # Beside it at most what is left of the first call.
        with pytest.raises(AssertionError, match=r"^[1-4] of 20 calls were handed over"):
            hold_until_handed_over(channel, _CALLS, patience=0.5)


def test_grpc_alone_hands_over_one() -> None:
    """What this module is for: should grpc.aio ask for more one day, it can go."""
    alone(grpc_alone)


async def stopped_with_calls_waiting() -> None:
    methods = Echo()
    async with serving(methods) as (server, channel):
        await ready(channel)
        calls = hold_until_handed_over(channel, _CALLS)
        began = time.monotonic()
        await asyncio.gather(server.stop(20), server.stop(20))
        assert time.monotonic() - began < 10
        assert sorted(await answers(calls)) == sorted(str(i).encode() for i in range(_CALLS))
        assert len(methods.answered) == _CALLS + 1


def test_calls_handed_over_before_the_end_are_answered() -> None:
    """A stop loses none of the calls that the loop has not seen, and waits for no grace."""
    assert alone(stopped_with_calls_waiting) == ""


async def called_too_late() -> None:
    async with serving(Echo()) as (server, channel):
        await ready(channel)
        await server.stop(5)
        with pytest.raises(grpc.RpcError) as refused:
            await answers([call(channel, b"late")])
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_call_after_the_end_is_refused() -> None:
    """A client that comes too late learns that it may go elsewhere."""
    assert alone(called_too_late) == ""


async def stopped_thrice() -> None:
    async with serving(Echo()) as (server, channel):
        await ready(channel)
        async with asyncio.timeout(10):
            await asyncio.gather(server.stop(20), server.stop(20), server.stop(None))
            await server.wait_for_termination()
    del server
    gc.collect()


def test_stops_beside_each_other_end_together_and_leave_nothing() -> None:
    """Stops at once are one, and what was asked for in vain is not logged as an error."""
    assert alone(stopped_thrice) == ""


async def never_started() -> None:
    async with asyncio.timeout(10):
        await make_server(_OPTIONS, Echo()).stop(5)


def test_a_server_that_never_started_stops() -> None:
    """A start that fails leaves nothing to wait for."""
    assert alone(never_started) == ""


async def large_and_small() -> None:
    methods = Echo()
    async with serving(methods) as (server, channel):
        asked = server._server._asked
        await ready(channel)
        assert len(asked) == accepting._ASKED - 1  # and the one that is waited for
        methods.latest = 1_000_000
        for index in range(accepting._ASKED + 5):
            await answers([call(channel, str(index).encode())])
        assert len(asked) == 0
        methods.latest = 1_000
        await answers([call(channel, b"small")])
        assert len(asked) == accepting._ASKED - 1


def test_large_requests_are_accepted_one_at_a_time() -> None:
    """Sixteen of 1 MB beside each other cost more than one after the other; small ones do not."""
    assert alone(large_and_small) == ""


async def failing() -> None:
    async with serving(Echo()) as (server, channel):
        await ready(channel)

        async def fail() -> None:
            raise RuntimeError("no more calls")

        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        server._server._asked.appendleft((fail(), done))
        # One more, which is waited for already; the end may come before its answer.
        with contextlib.suppress(grpc.RpcError):
            await answers([call(channel, b"one more")])
        async with asyncio.timeout(10):
            with pytest.raises(RuntimeError, match="no more calls"):
                await server.wait_for_termination()


def test_what_goes_wrong_within_ends_the_server() -> None:
    """An accept that fails is not passed over in silence: nobody would be served, and none know."""
    assert "no more calls" in alone(failing)


def count_garbage() -> int:
    """Count the calls whose details are among what only the collector frees."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    kinds = [type(left).__name__ for left in gc.garbage]
    gc.garbage.clear()
    return kinds.count("_HandlerCallDetails")


async def counted_garbage() -> None:
    async with serving(Echo()) as (_, channel):
        await ready(channel)
        gc.collect()
        gc.disable()
        await answers([call(channel, b"one of many") for _ in range(_CALLS)])
        sys.stdout.write(f"{count_garbage()}\n")


async def counted_garbage_of_grpc() -> None:
    accepting._find_with_garbage = None
    await counted_garbage()


def test_calls_leave_nothing_for_the_garbage_collector() -> None:
    """No call stops for what those before it left: grpc.aio alone leaves five objects of each."""
    assert alone(counted_garbage) == "0\n"
    assert alone(counted_garbage_of_grpc) == f"{_CALLS}\n"


class Interceptor(grpc.aio.ServerInterceptor):
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def intercept_service(
        self, continuation: Any, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        self.seen.append(handler_call_details.method)
        return await continuation(handler_call_details)


async def intercepted() -> None:
    make_server(_OPTIONS, Echo())  # not started
    interceptor = Interceptor()
    server = grpc.aio.server(interceptors=[interceptor])
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await answers([call(channel, b"seen")]) == [b"seen"]
    await server.stop(0)
    assert interceptor.seen == ["/any/method"]


def test_other_servers_of_the_process_serve_as_before() -> None:
    """A connector may have a server of its own here, with interceptors."""
    assert alone(intercepted) == ""


def test_the_size_of_the_last_request_is_known() -> None:
    """What tells large requests from small ones is what was read from the wire."""
    from flyteidl.admin import agent_pb2  # noqa: PLC0415 - two packages have this name

    class Servicer:
        def __getattr__(self, _name: str) -> Any:
            return print

    from flyteidl.service import agent_pb2 as service_pb2  # noqa: PLC0415

    methods = Methods()
    methods.add(service_pb2.DESCRIPTOR.services_by_name["AsyncAgentService"], Servicer())
    for path, request in (
        ("GetTask", agent_pb2.GetTaskRequest(resource_meta=b"x" * 2_000)),
        ("CreateTask", agent_pb2.CreateTaskRequest(output_prefix="x" * 600_000)),
    ):
        handler = methods._handlers[f"/flyteidl.service.AsyncAgentService/{path}"]
        data = request.SerializeToString()
        assert handler.request_deserializer is not None
        handler.request_deserializer(data)
        assert methods.latest == len(data)
        host = serve.Service(Table([]), "token")
        host._decoded(type(request), data)
        assert host.latest == len(data)


if __name__ == "__main__":
    logging.basicConfig()  # gRPC says nothing to a program that has no log
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(globals()[sys.argv[1]]())
