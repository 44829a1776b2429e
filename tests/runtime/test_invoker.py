"""Connector code at its worst: what it raises, how long it takes, where it runs."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import uvloop
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.tasks_pb2 import TaskTemplate

from connector_service import Resource, ResourceMeta, SyncConnectorBase, TaskCategory
from connector_service.config import ConnectorSection
from connector_service.errors import ConnectorFault, DeadlineError
from connector_service.runtime.invoker import Invoker
from connector_service.sdk.method import Operation
from connector_service.sdk.registry import Registry
from connector_service.testing import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connector_service.client import Client

META = b'{"job": "1"}'
# Passed straight through, so that a fault itself is seen and no absorbed poll.
BARE = ConnectorSection(guarantees=False)


class RustPanic(BaseException):
    """Like what a panicking Rust extension raises: no Exception."""


def overflow() -> None:
    overflow()


def exhaust() -> None:
    bytearray(1 << 60)


def throw(error: BaseException) -> Any:
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
    "MemoryError": exhaust,
    "RustPanic": throw(RustPanic("at lib.rs:1")),
    "BaseExceptionGroup": throw(BaseExceptionGroup("two", [SystemExit(), ValueError()])),
}


@pytest.fixture
def invoker() -> Iterator[Invoker]:
    one = Invoker()
    yield one
    one.shutdown()


def methods(connector: Any) -> Any:
    """Inspect a connector as the registry does."""
    registry = Registry()
    registry.register(connector)
    registration = registry.resolve(connector.task_category)
    return lambda name: registration.methods[Operation(name)]


# --- what ends a process ends one call --------------------------------------------------------


def styles(raises: Any, line: Any) -> dict[str, tuple[str, Any]]:
    """Return a method of every style that raises, and the operation that it is."""

    async def coroutine(self: object) -> None:
        raises()

    def plain(self: object) -> None:
        raises()

    def generator(self: object) -> Any:
        yield line("1")
        raises()

    async def async_generator(self: object) -> Any:
        yield line("1")
        raises()

    return {
        "async def": ("get", coroutine),
        "def": ("get", plain),
        "do, async def": ("do", coroutine),
        "do, def": ("do", plain),
        "logs, async def": ("get_logs", coroutine),
        "logs, def": ("get_logs", plain),
        "generator": ("get_logs", generator),
        "async generator": ("get_logs", async_generator),
    }


async def call(client: Client, operation: str, task_type: str = "fake") -> Any:
    category = TaskCategory(task_type)
    if operation == "do":
        return await client.do(TaskTemplate(type="fake"))
    if operation == "get_logs":
        return [message async for message in client.get_logs(category, META)]
    if operation == "create":
        return await client.create(TaskTemplate(type="fake"))
    return await getattr(client, operation)(category, META)


async def answers_internal(connector: Any, operation: str, raised: str) -> None:
    """Serve it: a call is INTERNAL and names what was raised; then the service still serves."""
    bystander = type("Bystander", (Local,), {})()
    async with (
        serve(connector, bystander, policy=BARE) as served,
        served.client(timeout=10) as client,
    ):
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(client, operation)
            error = refused.value
            assert error.code() is grpc.StatusCode.INTERNAL
            assert error.details().startswith(f"{operation} failed for task type 'fake' version 0 ")
            # Python itself makes a RuntimeError of a StopIteration that leaves a coroutine.
            assert f"with {raised};" in error.details() or (
                raised.startswith("Stop") and "with RuntimeError;" in error.details()
            )
        assert (await client.do(TaskTemplate(type="bystander"))).message == "still here"
        assert await client.health() == "SERVING"


class Local(SyncConnectorBase):
    def __init__(self) -> None:
        super().__init__(task_type_name="bystander")

    def do(self) -> Resource:
        return Resource(TaskExecution.SUCCEEDED, message="still here")


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("raised", RAISED)
def test_nothing_that_a_connector_raises_ends_the_service(
    fake: Any, line: Any, raised: str, loop: str
) -> None:
    """Whatever a method of any style raises is INTERNAL, on either event loop."""

    async def main() -> None:
        for operation, method in styles(RAISED[raised], line).values():
            await answers_internal(fake(**{operation: method}), operation, raised)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


@pytest.mark.parametrize("raised", RAISED)
async def test_nothing_that_a_connector_raises_ends_a_guarded_service(
    fake: Any, line: Any, raised: str
) -> None:
    """Under the guarantees such a poll is RUNNING, any other call INTERNAL, and all goes on."""
    bystander = type("Bystander", (Local,), {})()
    for operation, method in styles(RAISED[raised], line).values():
        connector = fake(**{operation: method})
        async with serve(connector, bystander) as served, served.client(timeout=10) as client:
            if operation == "get":
                resource = await call(client, operation)
                assert resource.phase == TaskExecution.RUNNING
                assert resource.message.startswith("Status unknown since ")
            else:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(client, operation)
                assert refused.value.code() is grpc.StatusCode.INTERNAL
            assert (await client.do(TaskTemplate(type="bystander"))).message == "still here"


@dataclass
class Bad(ResourceMeta):
    """A meta whose codec is the author's own."""

    job: str


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("where", ["encode", "to_message"])
async def test_nothing_that_encoding_raises_ends_the_service(
    fake: Any, where: str, raised: str
) -> None:
    """An author's own ``encode`` or ``to_message`` fails its own call only."""
    if where == "encode":
        meta = type("BadMeta", (Bad,), {"encode": lambda self: RAISED[raised]()})
        connector, operation = fake(create=lambda self: meta("1")), "create"
    else:
        kind = type("BadResource", (Resource,), {"to_message": lambda self, *_: RAISED[raised]()})
        connector, operation = fake(get=lambda self: kind(TaskExecution.RUNNING)), "get"
    await answers_internal(connector, operation, raised)


@pytest.mark.parametrize("raised", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
async def test_nothing_that_decoding_raises_ends_the_service(fake: Any, raised: str) -> None:
    """An author's own ``decode`` fails its own call only."""

    def decode(_cls: type, _data: bytes) -> None:
        RAISED[raised]()

    meta = type("BadMeta", (Bad,), {"decode": classmethod(decode)})
    await answers_internal(fake(metadata_type=meta), "get", raised)


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("style", ["generator", "async generator"])
async def test_a_generator_that_fails_while_it_is_closed_is_logged(
    fake: Any,
    line: Any,
    invoker: Invoker,
    caplog: pytest.LogCaptureFixture,
    style: str,
    raised: str,
) -> None:
    """What a generator's ``finally`` raises goes to the log; its reader has gone."""

    def generator(self: object) -> Any:
        try:
            yield line("1")
        finally:
            RAISED[raised]()

    async def async_generator(self: object) -> Any:
        try:
            yield line("1")
        finally:
            RAISED[raised]()

    method = methods(fake(get_logs=generator if style == "generator" else async_generator))
    items = invoker.iterate(method("get_logs"), {})
    assert await anext(items) == line("1")
    await items.aclose()
    failures = [record for record in caplog.records if record.levelno == logging.WARNING]
    # A GeneratorExit out of a generator that is being closed is how it ends.
    assert bool(failures) == (raised != "GeneratorExit")


async def test_exceptions_come_out_as_they_are(fake: Any, invoker: Invoker) -> None:
    """What is no threat to the process is raised unchanged, for the status table to read."""
    error = ValueError("mine")

    async def coroutine(self: object) -> None:
        raise error

    def plain(self: object) -> None:
        raise error

    for method in (coroutine, plain):
        with pytest.raises(ValueError, match="mine") as caught:
            await invoker.invoke(methods(fake(get=method))("get"), {})
        assert caught.value is error


async def test_a_task_that_is_cancelled_from_outside_stays_cancelled(
    fake: Any, invoker: Invoker
) -> None:
    """A caller who leaves is told apart from a connector that raises CancelledError itself."""
    entered = asyncio.Event()

    async def waits(self: object) -> None:
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(invoker.invoke(methods(fake(get=waits))("get"), {}))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    def cancels(self: object) -> None:
        raise asyncio.CancelledError

    with pytest.raises(ConnectorFault, match="cancelled itself"):
        await invoker.invoke(methods(fake(get=cancels))("get"), {})


async def test_a_plain_method_that_returns_an_awaitable_is_awaited(
    fake: Any, invoker: Invoker
) -> None:
    """A decorated ``async def`` looks like a plain one and still gives its value."""

    async def value() -> int:
        return 7

    assert await invoker.invoke(methods(fake(get=lambda self: value()))("get"), {}) == 7


# --- where it runs ----------------------------------------------------------------------------


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_context_variables_reach_every_style(fake: Any, invoker: Invoker) -> None:
    """A trace or a log context set before the call is seen in threads and in every step."""
    variable.set("set")

    async def coroutine(self: object) -> str:
        return variable.get()

    def plain(self: object) -> str:
        return variable.get()

    def generator(self: object) -> Any:
        yield variable.get()
        yield variable.get()

    async def async_generator(self: object) -> Any:
        yield variable.get()
        yield variable.get()

    for method in (coroutine, plain):
        assert await invoker.invoke(methods(fake(get=method))("get"), {}) == "set"
    for method in (generator, async_generator):
        items = invoker.iterate(methods(fake(get_logs=method))("get_logs"), {})
        assert [item async for item in items] == ["set", "set"]


async def test_plain_methods_run_on_threads_and_async_ones_on_the_loop(
    fake: Any, invoker: Invoker
) -> None:
    """A plain ``def`` may block: its thread is its connector's, never the event loop's."""

    async def coroutine(self: object) -> threading.Thread:
        return threading.current_thread()

    def plain(self: object) -> threading.Thread:
        return threading.current_thread()

    def generator(self: object) -> Any:
        yield threading.current_thread()

    here = threading.current_thread()
    assert await invoker.invoke(methods(fake(get=coroutine))("get"), {}) is here
    thread = await invoker.invoke(methods(fake(get=plain))("get"), {})
    assert thread is not here
    assert thread.name.startswith("connector-Fake")
    items = invoker.iterate(methods(fake(get_logs=generator))("get_logs"), {})
    assert await anext(items) is not here
    await items.aclose()


async def test_a_blocked_connector_delays_no_other(fake: Any) -> None:
    """100 blocked calls of one plain-def connector leave another's, and asyncio's, threads free."""
    entered, release = threading.Semaphore(0), threading.Event()

    def blocks(self: object) -> Resource:
        entered.release()
        assert release.wait(10)
        return Resource(TaskExecution.RUNNING)

    blocked, other = fake(task_type="blocked", get=blocks), fake(task_type="other")
    async with serve(blocked, other) as served, served.client(timeout=10) as client:
        stuck = [asyncio.create_task(call(client, "get", "blocked")) for _ in range(100)]
        assert await asyncio.to_thread(entered.acquire, timeout=10)
        for _ in range(3):
            await call(client, "get", "other")
        assert not any(task.done() for task in stuck)
        release.set()
        assert len(await asyncio.gather(*stuck)) == 100


# --- how long it takes ------------------------------------------------------------------------


def soon(seconds: float = 0.02) -> float:
    return time.monotonic() + seconds


async def test_a_coroutine_is_cancelled_at_its_deadline(fake: Any, invoker: Invoker) -> None:
    """An async method past its deadline is cancelled, and may still clean up."""
    cleaned = asyncio.Event()

    async def waits(self: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    with pytest.raises(DeadlineError):
        await invoker.invoke(methods(fake(get=waits))("get"), {}, soon())
    assert cleaned.is_set()


async def test_a_thread_outlives_its_deadline_and_nobody_waits(fake: Any, invoker: Invoker) -> None:
    """A plain method past its deadline goes on to its end; its caller is answered at once."""
    release, ended = threading.Event(), threading.Event()

    def blocks(self: object) -> None:
        release.wait(10)
        ended.set()

    with pytest.raises(DeadlineError):
        await invoker.invoke(methods(fake(get=blocks))("get"), {}, soon())
    assert not ended.is_set()
    release.set()
    assert await asyncio.to_thread(ended.wait, 10)


async def test_a_call_that_comes_too_late_is_never_begun(fake: Any, invoker: Invoker) -> None:
    """A deadline that has passed refuses the call before any of the connector's code runs."""
    begun: list[str] = []

    def plain(self: object) -> None:
        begun.append("get")

    def generator(self: object) -> Any:
        begun.append("get_logs")
        yield None

    method = methods(fake(get=plain, get_logs=generator))
    with pytest.raises(DeadlineError):
        await invoker.invoke(method("get"), {}, time.monotonic() - 1)
    with pytest.raises(DeadlineError):
        await anext(invoker.iterate(method("get_logs"), {}, time.monotonic() - 1))
    assert not begun


@pytest.mark.parametrize("style", ["generator", "async generator"])
async def test_a_deadline_holds_for_the_whole_stream(
    fake: Any, invoker: Invoker, style: str
) -> None:
    """The deadline of a stream is one point in time, not one for each of its messages."""
    release, closed = threading.Event(), threading.Event()

    def generator(self: object) -> Any:
        try:
            yield "1"
            release.wait(10)
            yield "2"
        finally:
            closed.set()

    async def async_generator(self: object) -> Any:
        try:
            yield "1"
            await asyncio.Event().wait()
        finally:
            closed.set()

    method = methods(fake(get_logs=generator if style == "generator" else async_generator))
    items = invoker.iterate(method("get_logs"), {}, soon(0.2))
    assert await anext(items) == "1"
    with pytest.raises(DeadlineError):
        await anext(items)
    release.set()
    assert await asyncio.to_thread(closed.wait, 10)


async def test_a_connectors_own_timeout_is_not_our_deadline(fake: Any, invoker: Invoker) -> None:
    """TimeoutError of a backend stays itself, with time left and without any deadline."""

    async def times_out(self: object) -> None:
        raise TimeoutError("backend")

    for deadline in (None, soon(10)):
        with pytest.raises(TimeoutError, match="backend") as caught:
            await invoker.invoke(methods(fake(get=times_out))("get"), {}, deadline)
        assert not isinstance(caught.value, DeadlineError)


async def test_a_library_that_renames_cancellation_does_not_hide_the_deadline(
    fake: Any, invoker: Invoker
) -> None:
    """An error that code makes of the deadline's cancellation is still the deadline."""

    async def renames(self: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("connection was closed") from None

    with pytest.raises(DeadlineError):
        await invoker.invoke(methods(fake(get=renames))("get"), {}, soon())


# --- generators -------------------------------------------------------------------------------


async def test_a_generator_is_closed_by_the_step_that_was_running(
    fake: Any, invoker: Invoker
) -> None:
    """A reader who leaves in mid-step does not wait; the step closes the generator at its end."""
    entered, release, closed = threading.Event(), threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def generator(self: object) -> Any:
        try:
            threads.append(threading.current_thread())
            entered.set()
            release.wait(10)
            yield "never read"
        finally:
            threads.append(threading.current_thread())
            closed.set()

    items = invoker.iterate(methods(fake(get_logs=generator))("get_logs"), {})
    reading = asyncio.ensure_future(anext(items))
    assert await asyncio.to_thread(entered.wait, 10)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not closed.is_set()
    release.set()
    assert await asyncio.to_thread(closed.wait, 10)
    assert threads[0] is threads[1]


async def test_an_iterator_that_is_no_generator_is_stepped_too(fake: Any, invoker: Invoker) -> None:
    """``map`` or any other iterator streams as a generator does, though it cannot be closed."""
    method = methods(fake(get_logs=lambda self: map(str, (1, 2, 3))))
    assert [item async for item in invoker.iterate(method("get_logs"), {})] == ["1", "2", "3"]
    items = invoker.iterate(method("get_logs"), {})
    assert await anext(items) == "1"
    await items.aclose()


async def test_shutdown_leaves_running_threads_to_end(fake: Any) -> None:
    """Shutting down waits for nobody, twice is fine, and a running call still gets its value."""
    invoker = Invoker()
    entered, release = threading.Event(), threading.Event()

    def blocks(self: object) -> int:
        entered.set()
        release.wait(10)
        return 7

    running = asyncio.ensure_future(invoker.invoke(methods(fake(get=blocks))("get"), {}))
    assert await asyncio.to_thread(entered.wait, 10)
    invoker.shutdown()
    invoker.shutdown()
    release.set()
    assert await running == 7
