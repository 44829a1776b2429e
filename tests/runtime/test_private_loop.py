"""A connector on a loop of its own: the same answers, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.tasks_pb2 import TaskTemplate

from connector_service import Resource, SyncConnectorBase, TaskCategory, time_remaining
from connector_service.config import ConnectorSection
from connector_service.errors import ConnectorFault, DeadlineError, UnavailableError
from connector_service.runtime.invoker import Invoker
from connector_service.runtime.private_loop import PrivateLoop
from connector_service.sdk.method import Operation
from connector_service.sdk.registry import Registry
from connector_service.testing import serve

PATIENCE = 10.0
META = b'{"job": "1"}'
OWN = "connector-Fake-loop"


class RustPanic(BaseException):
    """Like what a panicking Rust extension raises: no Exception."""


def overflow() -> None:
    overflow()


def throw(error: BaseException) -> Callable[[], Any]:
    def thrower() -> None:
        raise error

    return thrower


RAISED = {
    "SystemExit": throw(SystemExit(3)),
    "KeyboardInterrupt": throw(KeyboardInterrupt()),
    "CancelledError": throw(asyncio.CancelledError()),
    "GeneratorExit": throw(GeneratorExit()),
    "StopIteration": throw(StopIteration("value")),
    "StopAsyncIteration": throw(StopAsyncIteration()),
    "RecursionError": overflow,
    "MemoryError": lambda: bytearray(1 << 60),
    "RustPanic": throw(RustPanic("at lib.rs:1")),
}


@pytest.fixture
def invoker() -> Iterator[Invoker]:
    one = Invoker()
    yield one
    one.shutdown()


@pytest.fixture
def isolated(fake: Any, invoker: Invoker) -> Callable[..., Any]:
    """Return a method of a connector that has a loop of its own."""

    def make(name: str, method: Any) -> Any:
        connector = fake(**{name: method})
        registry = Registry()
        registry.register(connector)
        invoker.isolate(connector)
        return registry.resolve(connector.task_category).methods[Operation(name)]

    return make


def soon(seconds: float = 0.05) -> float:
    return time.monotonic() + seconds


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


# --- the same answers -------------------------------------------------------------------------


async def test_a_coroutine_runs_there_in_the_callers_context(
    isolated: Any, invoker: Invoker
) -> None:
    """Context variables and the deadline go along, the value comes back."""
    variable.set("set")

    async def get(self: object) -> Any:
        await asyncio.sleep(0)
        return threading.current_thread().name, variable.get(), time_remaining()

    name, value, left = await invoker.invoke(isolated("get", get), {}, soon(60))
    assert (name, value) == (OWN, "set")
    assert 50 < left <= 60


async def test_an_awaitable_of_a_plain_method_is_awaited_there(
    isolated: Any, invoker: Invoker
) -> None:
    """A decorated ``async def`` moves with the rest of its connector; plain ``def`` stays."""

    async def where() -> str:
        return threading.current_thread().name

    assert await invoker.invoke(isolated("get", lambda self: where()), {}) == OWN
    name = await invoker.invoke(isolated("get", lambda self: threading.current_thread().name), {})
    assert name == "connector-Fake-get"


async def test_exceptions_come_out_as_they_are(isolated: Any, invoker: Invoker) -> None:
    """What is raised there is raised here, the same object."""
    error = ValueError("mine")

    async def get(self: object) -> None:
        raise error

    with pytest.raises(ValueError, match="mine") as caught:
        await invoker.invoke(isolated("get", get), {})
    assert caught.value is error


async def test_a_generator_is_one_task_there(isolated: Any, invoker: Invoker) -> None:
    """Every step and the ``finally`` run in one task, so timeouts may span what is yielded."""
    tasks: list[Any] = []

    async def get_logs(self: object) -> AsyncIterator[str]:
        try:
            async with asyncio.timeout(PATIENCE):
                for text in "123":
                    tasks.append(asyncio.current_task())
                    yield text
        finally:
            tasks.append(asyncio.current_task())

    method = isolated("get_logs", get_logs)
    assert [item async for item in invoker.iterate(method, {}, soon(60))] == list("123")
    assert len(tasks) == 4
    assert len(set(tasks)) == 1
    assert tasks[0] is not asyncio.current_task()


async def test_a_coroutine_that_returns_an_iterator_streams(
    isolated: Any, invoker: Invoker
) -> None:
    """``async def`` may return an asynchronous iterator that is no generator."""

    class Lines:
        def __init__(self) -> None:
            self.left = 2

        def __aiter__(self) -> Lines:
            return self

        async def __anext__(self) -> str:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return threading.current_thread().name

    async def get_logs(self: object) -> Any:
        return Lines()

    items = invoker.iterate(isolated("get_logs", get_logs), {})
    assert [item async for item in items] == [OWN, OWN]


# --- leaving ----------------------------------------------------------------------------------


async def test_a_deadline_cancels_there(isolated: Any, invoker: Invoker) -> None:
    """A coroutine past its deadline is cancelled on its own loop, its ``finally`` runs."""
    cleaned = threading.Event()

    async def get(self: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    with pytest.raises(DeadlineError):
        await invoker.invoke(isolated("get", get), {}, soon())
    assert await asyncio.to_thread(cleaned.wait, PATIENCE)


async def test_a_caller_who_leaves_cancels_there(isolated: Any, invoker: Invoker) -> None:
    """Cancellation is carried over; one that the connector raises itself is its fault."""
    entered, cleaned = threading.Event(), threading.Event()

    async def get(self: object) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    task = asyncio.ensure_future(invoker.invoke(isolated("get", get), {}))
    assert await asyncio.to_thread(entered.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(cleaned.wait, PATIENCE)

    async def cancels(self: object) -> None:
        raise asyncio.CancelledError

    with pytest.raises(ConnectorFault, match="cancelled itself"):
        await invoker.invoke(isolated("get", cancels), {})


async def test_nobody_waits_for_a_blocked_loop(isolated: Any, invoker: Invoker) -> None:
    """While it is blocked, deadlines hold, and calls that come too late are never begun."""
    gate, entered = threading.Event(), threading.Event()
    begun: list[int] = []

    async def get(self: object) -> None:
        begun.append(1)
        entered.set()
        gate.wait(PATIENCE)

    method = isolated("get", get)
    first = asyncio.ensure_future(invoker.invoke(method, {}))
    assert await asyncio.to_thread(entered.wait, PATIENCE)
    started = time.monotonic()
    outcomes = await asyncio.gather(
        *(invoker.invoke(method, {}, soon()) for _ in range(20)), return_exceptions=True
    )
    assert time.monotonic() - started < 2
    assert {type(outcome) for outcome in outcomes} == {DeadlineError}
    gate.set()
    await first
    await invoker.invoke(method, {}, soon(PATIENCE))
    assert len(begun) == 2


async def test_a_reader_who_leaves_closes_the_generator_there(
    isolated: Any, invoker: Invoker
) -> None:
    """The ``finally`` of a generator runs, whether its reader leaves between steps or in one."""
    entered, closed = threading.Semaphore(0), threading.Semaphore(0)

    async def get_logs(self: object) -> AsyncIterator[str]:
        try:
            yield "1"
            entered.release()
            await asyncio.Event().wait()
        finally:
            closed.release()

    method = isolated("get_logs", get_logs)
    items = invoker.iterate(method, {})
    assert await anext(items) == "1"
    await items.aclose()
    assert await asyncio.to_thread(closed.acquire, timeout=PATIENCE)
    items = invoker.iterate(method, {}, soon(0.1))
    assert await anext(items) == "1"
    with pytest.raises(DeadlineError):
        await anext(items)
    assert await asyncio.to_thread(closed.acquire, timeout=PATIENCE)
    assert entered.acquire(blocking=False)


async def test_a_closed_loop_refuses(isolated: Any, invoker: Invoker) -> None:
    """After the shutdown calls are UNAVAILABLE, and the thread ends."""

    async def get(self: object) -> threading.Thread:
        return threading.current_thread()

    method = isolated("get", get)
    thread = await invoker.invoke(method, {})
    invoker.shutdown()
    await asyncio.to_thread(thread.join, PATIENCE)
    assert not thread.is_alive()
    with pytest.raises(UnavailableError, match="shutting down"):
        await invoker.invoke(method, {})


async def test_closing_cancels_what_runs(caplog: pytest.LogCaptureFixture) -> None:
    """What still runs when the loop closes gets its ``finally``."""
    loop, cleaned = PrivateLoop("Fake"), threading.Event()
    entered = asyncio.Event()
    here = asyncio.get_running_loop()

    async def waits() -> None:
        here.call_soon_threadsafe(entered.set)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    running = asyncio.ensure_future(loop.run(waits))
    await entered.wait()
    loop.close()
    loop.close()
    assert await asyncio.to_thread(cleaned.wait, PATIENCE)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not caplog.records


# --- nothing ends it --------------------------------------------------------------------------


async def test_a_connectors_own_task_cannot_end_its_loop(
    isolated: Any, invoker: Invoker, caplog: pytest.LogCaptureFixture
) -> None:
    """SystemExit out of a task that the connector made itself is logged, the loop goes on."""

    async def leave() -> None:
        raise SystemExit(3)

    async def get(self: Any) -> str:
        self.task = asyncio.ensure_future(leave())
        await asyncio.wait([self.task])
        return "still here"

    method = isolated("get", get)
    for _ in range(2):
        assert await invoker.invoke(method, {}, soon(PATIENCE)) == "still here"
    assert "tried to end the process" in caplog.text


class Bystander(SyncConnectorBase):
    async def do(self) -> Resource:
        return Resource(TaskExecution.SUCCEEDED, message="still here")


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("style", ["async def", "awaitable", "async generator", "iterator"])
async def test_nothing_that_an_isolated_connector_raises_ends_the_service(
    fake: Any, line: Any, raised: str, style: str
) -> None:
    """Whatever a method of any style raises on a loop of its own is INTERNAL, and no more."""

    async def coroutine(self: object) -> None:
        RAISED[raised]()

    def decorated(self: object) -> Any:
        return coroutine(self)

    async def generator(self: object) -> Any:
        yield line("1")
        RAISED[raised]()

    async def iterator(self: object) -> Any:
        return generator(self)

    own: dict[str, Any] = {
        "async def": {"get": coroutine},
        "awaitable": {"get": decorated},
        "async generator": {"get_logs": generator},
        "iterator": {"get_logs": iterator},
    }[style]
    connector, bystander = fake(**own), Bystander(task_type_name="bystander")
    # Passed straight through, so that the fault itself is seen and no absorbed poll.
    bare = ConnectorSection(guarantees=False)
    async with serve(connector, bystander, policy=bare) as served, served.client() as client:
        served.service._invoker.isolate(connector)
        category = TaskCategory("fake")

        async def call() -> None:
            if "get" in own:
                await client.get(category, META)
                return
            async for _ in client.get_logs(category, META):
                pass

        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call()
            assert refused.value.code() is grpc.StatusCode.INTERNAL
        done = await client.do(TaskTemplate(type="bystander"))
        assert done.message == "still here"
        assert await client.health() == "SERVING"
        assert served.service._invoker.isolated() == ["Fake"]


@pytest.mark.parametrize("raised", RAISED)
async def test_a_generator_that_fails_while_it_is_closed_is_logged(
    isolated: Any, invoker: Invoker, caplog: pytest.LogCaptureFixture, raised: str
) -> None:
    """What a generator's ``finally`` raises goes to the log; its reader has gone."""
    closing = threading.Event()

    async def get_logs(self: object) -> AsyncIterator[str]:
        try:
            yield "1"
        finally:
            closing.set()
            RAISED[raised]()

    async def get(self: object) -> str:
        return "alive"

    items = invoker.iterate(isolated("get_logs", get_logs), {})
    assert await anext(items) == "1"
    await items.aclose()
    assert await asyncio.to_thread(closing.wait, PATIENCE)
    assert await invoker.invoke(isolated("get", get), {}) == "alive"
    invoker.shutdown()
    for thread in threading.enumerate():
        if thread.name == OWN:  # once it has ended, whatever it had to say is in the log
            await asyncio.to_thread(thread.join, PATIENCE)
    # A GeneratorExit out of a generator that is being closed is how it ends.
    assert ("while it was closed" in caplog.text) == (raised != "GeneratorExit")
