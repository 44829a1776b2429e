"""Forwarding over real ports: deadlines, callers and peers that leave, and back-pressure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from flyteidl.admin import agent_pb2
from hosts.forwards import KINDS, Makes, ask, call, fails, resource_of
from peers import JOBS, SYNC, answering, peer

from connector_service.errors import DeadlineError, GoneError, TransientError
from connector_service.runtime.faults import Fault, judge
from connector_service.runtime.retry import retried
from connector_service.sdk.method import Operation


class Hanging:
    """A peer's method that never answers and tells what becomes of it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.left = asyncio.Event()
        self.seconds: float | None = None

    async def answer(self, _request: bytes, context: Any) -> bytes:
        self.seconds = context.time_remaining()
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        raise AssertionError

    async def stream(self, _request: Any, context: Any) -> AsyncIterator[bytes]:
        yield await self.answer(b"", context)


def hanging(operation: Operation) -> tuple[Hanging, dict[str, Any]]:
    method = Hanging()
    path = {
        Operation.GET: f"{JOBS['flyteidl']}/GetTask",
        Operation.GET_LOGS: f"{JOBS['flyteidl']}/GetTaskLogs",
        Operation.DO: SYNC,
    }[operation]
    return method, {path: method.answer if operation is Operation.GET else method.stream}


@pytest.mark.parametrize("operation", KINDS)
async def test_the_deadline_goes_with_the_call_and_ends_it(
    forward: Makes, operation: Operation
) -> None:
    """The peer knows the caller's deadline, and a call that outlives it is a DeadlineError."""
    method, answers = hanging(operation)
    async with peer(answers) as other:
        asked = call(operation, seconds=0.6)
        await fails(ask(forward(other.endpoint), asked), DeadlineError)
        assert method.seconds is not None
        assert 0 < method.seconds <= 0.61  # on the wire gRPC rounds it up
        late = await fails(ask(forward(other.endpoint), call(operation, seconds=-1)), DeadlineError)
    assert "before the call began" in str(late)


@pytest.mark.parametrize("operation", KINDS)
async def test_a_caller_who_leaves_takes_the_call_with_it(
    forward: Makes, operation: Operation
) -> None:
    """Cancelling our task cancels the RPC: the peer's handler is cancelled too."""
    method, answers = hanging(operation)
    async with peer(answers) as other:
        task = asyncio.create_task(ask(forward(other.endpoint), call(operation)))
        await asyncio.wait_for(method.begun.wait(), 10)
        task.cancel()
        await fails(task, asyncio.CancelledError)
        await asyncio.wait_for(method.left.wait(), 10)


@pytest.mark.parametrize("operation", KINDS)
async def test_a_channel_closed_under_a_call_is_no_cancellation(
    forward: Makes, operation: Operation
) -> None:
    """A closed channel is reported as CancelledError, and must not read as a caller who left."""
    method, answers = hanging(operation)
    async with peer(answers) as other:
        forwarder: Any = forward(other.endpoint)
        task = asyncio.create_task(ask(forwarder, call(operation)))
        await asyncio.wait_for(method.begun.wait(), 10)
        await forwarder.channel.close()
        error = await fails(task, TransientError)
        assert "'h' was closed during the call" in str(error)
        await fails(ask(forwarder, call(operation)), TransientError)


@pytest.mark.parametrize("operation", KINDS)
async def test_a_peer_that_dies_under_a_call_is_transient(
    forward: Makes, operation: Operation
) -> None:
    """A connection that ends in the middle is worth another try, and names the host."""
    method, answers = hanging(operation)
    async with peer(answers) as other:
        task = asyncio.create_task(ask(forward(other.endpoint), call(operation)))
        await asyncio.wait_for(method.begun.wait(), 10)
        await other.server.stop(None)
        error = await fails(task, TransientError)
    assert "'h'" in str(error)


async def test_a_call_to_a_peer_that_is_down_fails_at_once_and_is_tried_again(
    forward: Makes,
) -> None:
    """Nothing waits for a channel: the policies' own tries find the peer when it is back."""
    answers = {f"{JOBS['flyteidl']}/GetTask": answering(resource_of("flyteidl"))}
    async with peer(answers) as other:
        port = other.port
    forwarder = forward(f"127.0.0.1:{port}")
    asked = call(Operation.GET)
    async with asyncio.timeout(5):
        assert judge(await fails(forwarder.run(asked))).fault is Fault.TRANSIENT
    failed = asyncio.Event()
    task = asyncio.create_task(
        retried(lambda: forwarder.run(asked), asked.deadline, on_retry=lambda *_: failed.set())
    )
    await asyncio.wait_for(failed.wait(), 10)
    async with peer(answers, port=port):
        assert (await task).message == "m"


async def test_a_slow_reader_holds_the_peer_back(forward: Makes) -> None:
    """A message is read when the one before it was taken: a log never piles up in this process."""
    written = 0
    stalled = asyncio.Event()

    async def endless(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        nonlocal written
        while True:
            written += 1
            if written > 2_000:
                return
            stalled.clear()
            asyncio.get_running_loop().call_later(0.5, stalled.set)
            yield agent_pb2.GetTaskLogsResponse(
                body=agent_pb2.GetTaskLogsResponseBody(results=["x" * 100_000])
            ).SerializeToString()

    taken, first = [], asyncio.Event()

    async def send(message: Any) -> None:
        taken.append(len(message.body.results[0]))
        first.set()
        await asyncio.Event().wait()

    async with peer({f"{JOBS['flyteidl']}/GetTaskLogs": endless}) as other:
        task = asyncio.create_task(forward(other.endpoint).stream(call(Operation.GET_LOGS), send))
        await asyncio.wait_for(first.wait(), 10)
        await asyncio.wait_for(stalled.wait(), 20)
        assert taken == [100_000]
        assert written < 200  # what the connection's own windows hold
        task.cancel()
        await fails(task, asyncio.CancelledError)


async def test_a_reader_that_fails_ends_the_stream(forward: Makes) -> None:
    """Whatever ``send`` raises comes out as it is, and the peer is told to stop."""
    left = asyncio.Event()

    async def logs(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        try:
            yield b""
            await asyncio.Event().wait()
        finally:
            left.set()

    async def send(_message: Any) -> None:
        raise GoneError("The reader has gone.")

    async with peer({f"{JOBS['flyteidl']}/GetTaskLogs": logs}) as other:
        await fails(forward(other.endpoint).stream(call(Operation.GET_LOGS), send), GoneError)
        await asyncio.wait_for(left.wait(), 10)
