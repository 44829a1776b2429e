"""One connector's threads: made on demand, abandoned when they overrun, never lost."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connector_service import SyncConnectorBase, time_remaining
from connector_service.errors import DeadlineError, UnavailableError
from connector_service.runtime.invoker import Invoker
from connector_service.runtime.threads import Threads
from connector_service.sdk.method import Operation
from connector_service.sdk.registry import Registry

PATIENCE = 10.0


class Blocking:
    """Calls that run until the test lets them go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.begun: list[str] = []

    def call(self, name: str = "") -> Callable[[], str]:
        def run() -> str:
            self.begun.append(name)
            self.entered.release()
            self.gate.wait(PATIENCE)
            return threading.current_thread().name

        return run

    async def in_call(self, count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.entered.acquire, timeout=PATIENCE)


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    one = Blocking()
    yield one
    one.gate.set()


async def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


async def abandon(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def start(threads: Threads, function: Callable[[], Any]) -> asyncio.Task[Any]:
    return asyncio.ensure_future(threads.run("get", function))


async def test_one_call_after_another_runs_on_one_thread() -> None:
    """Threads are made on demand and used again."""
    threads = Threads("Spark", 8)
    idents = {await threads.run("get", threading.get_ident) for _ in range(50)}
    assert len(idents) == 1
    assert threads.running == 0
    threads.close()


async def test_a_thread_says_what_it_runs(blocking: Blocking) -> None:
    """A thread's name has connector and operation, as a dump of the process shows it."""
    threads = Threads("Spark", 8)
    name = await threads.run("delete", lambda: threading.current_thread().name)
    assert name == "connector-Spark-delete"
    await eventually(lambda: "connector-Spark-idle" in {t.name for t in threading.enumerate()})
    assert all(t.daemon for t in threading.enumerate() if t.name.startswith("connector-Spark"))
    threads.close()


async def test_a_burst_of_quick_calls_takes_few_threads() -> None:
    """Calls that return at once are done by the threads that are up, and wake no others."""
    threads = Threads("Burst", 32)
    idents: set[int] = set()
    for _ in range(20):
        idents |= set(
            await asyncio.gather(*(threads.run("get", threading.get_ident) for _ in range(100)))
        )
    assert len(idents) <= 12
    threads.close()


async def test_a_call_that_blocks_holds_up_no_other_of_its_burst(blocking: Blocking) -> None:
    """Behind 31 calls that block, all begun in one turn of the loop, another gets its thread."""
    threads = Threads("Spark", 32)
    for _ in range(3):  # with new threads, then with idle ones
        blocking.gate.clear()
        stuck = [start(threads, blocking.call()) for _ in range(31)]
        async with asyncio.timeout(PATIENCE / 2):
            assert await threads.run("get", int) == 0
        await blocking.in_call(31)
        assert (threads.running, threads.waiting) == (31, 0)
        blocking.gate.set()
        await asyncio.gather(*stuck)
    threads.close()


async def test_callers_that_come_and_leave_at_random_lose_no_call() -> None:
    """Thousands of calls, some left, some late: each other gets its own value, and none runs on."""
    threads = Threads("Spark", 4, most=64)

    async def one(number: int) -> None:
        call = start(threads, lambda: (time.sleep(0.0005 * (number % 7 == 0)), number)[1])
        if number % 5:
            assert await call == number
            return
        await asyncio.sleep(0.0001 * (number % 3))
        call.cancel()
        await asyncio.wait([call])

    async with asyncio.timeout(3 * PATIENCE):
        for first in range(0, 4_000, 200):
            await asyncio.gather(*(one(first + number) for number in range(200)))
    await eventually(lambda: threads.abandoned() == [])
    await eventually(lambda: (threads.running, threads.waiting) == (0, 0))
    threads.close()
    await eventually(lambda: not any("-Spark-" in t.name for t in threading.enumerate()))


async def test_at_most_so_many_run_and_the_rest_wait_in_order(blocking: Blocking) -> None:
    """``threads`` bounds what runs; the others begin in the order in which they came."""
    threads = Threads("Spark", 2)
    tasks = [start(threads, blocking.call(name)) for name in "abcde"]
    await blocking.in_call(2)
    assert (threads.running, threads.waiting) == (2, 3)
    blocking.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(blocking.begun[:2]) == ["a", "b"]
    assert sorted(blocking.begun) == list("abcde")
    assert (threads.running, threads.waiting) == (0, 0)
    threads.close()


async def test_an_abandoned_call_is_named_and_replaced(
    blocking: Blocking, caplog: pytest.LogCaptureFixture
) -> None:
    """A call whose caller has gone keeps its thread, is listed until it ends, and blocks nobody."""
    threads = Threads("Spark", 1)
    caplog.set_level(logging.INFO)
    stuck = start(threads, blocking.call())
    await blocking.in_call(1)
    waiting = start(threads, threading.get_ident)
    await asyncio.sleep(0)
    assert threads.waiting == 1
    await abandon(stuck)
    await waiting  # on a thread made in the place of the abandoned one
    (call,) = threads.abandoned()
    assert (call.connector, call.operation, call.thread, call.late) == (
        "Spark",
        "get",
        "connector-Spark-get",
        False,
    )
    assert call.seconds >= 0
    (record,) = [r for r in caplog.records if "abandoned" in r.message]
    facts: Any = record
    assert (facts.connector, facts.operation, facts.reason) == ("Spark", "get", "caller left")
    blocking.gate.set()
    await eventually(lambda: threads.abandoned() == [])
    assert threads.abandoned_total == 1
    threads.close()


async def test_abandoned_threads_have_a_bound(blocking: Blocking) -> None:
    """When all threads there may be are abandoned, calls are refused at once, then served again."""
    threads = Threads("Spark", 1, most=3)
    for _ in range(3):
        task = start(threads, blocking.call())
        await blocking.in_call(1)
        await abandon(task)
    assert len(threads.abandoned()) == 3
    with pytest.raises(UnavailableError, match="Spark has no thread left: 3 calls") as refused:
        await threads.run("get", int)
    assert refused.value.retry_after
    blocking.gate.set()
    await eventually(lambda: threads.abandoned() == [])
    assert await threads.run("get", int) == 0
    threads.close()


async def test_those_that_wait_are_refused_with_the_last_thread(blocking: Blocking) -> None:
    """Nobody waits for a thread that cannot come: the queue is refused with the last one."""
    threads = Threads("Spark", 1, most=1)
    stuck, waiting = start(threads, blocking.call()), start(threads, int)
    await blocking.in_call(1)
    await abandon(stuck)
    with pytest.raises(UnavailableError, match="no thread left"):
        await waiting
    assert threads.waiting == 0
    threads.close()


async def test_the_pool_does_not_grow_by_what_was_abandoned(blocking: Blocking) -> None:
    """Once abandoned calls end, no more than ``threads`` threads stay."""
    threads = Threads("Spark", 2, most=8)
    for _ in range(6):
        task = start(threads, blocking.call())
        await blocking.in_call(1)
        await abandon(task)
    others = [start(threads, blocking.call()) for _ in range(2)]
    await blocking.in_call(2)
    blocking.gate.set()
    await asyncio.gather(*others)

    def left() -> int:
        return sum(t.name.startswith("connector-Spark") for t in threading.enumerate())

    await eventually(lambda: left() == 2)
    threads.close()
    await eventually(lambda: left() == 0)


async def test_one_who_leaves_while_waiting_never_runs(blocking: Blocking) -> None:
    """A call cancelled before its thread came is dropped, not abandoned."""
    threads = Threads("Spark", 1)
    running = start(threads, blocking.call("a"))
    await blocking.in_call(1)
    leaver = start(threads, blocking.call("b"))
    await asyncio.sleep(0)
    await abandon(leaver)
    assert (threads.waiting, threads.abandoned_total) == (0, 0)
    blocking.gate.set()
    await running
    assert await threads.run("get", int) == 0
    assert blocking.begun == ["a"]
    threads.close()


async def test_an_idle_thread_ends() -> None:
    """Threads without work end after a while, and come back with the next call."""
    threads = Threads("Idler", 4, idle=0.01)
    for _ in range(3):
        await asyncio.gather(*(threads.run("get", int) for _ in range(4)))
        await eventually(lambda: not any("Idler" in t.name for t in threading.enumerate()))
    threads.close()


async def test_idling_races_with_work() -> None:
    """A call that comes in the moment in which its thread would have ended is still run."""
    threads = Threads("Spark", 2, idle=0.001)
    for turn in range(300):
        assert await threads.run("get", int) == 0
        await asyncio.sleep(0.001 if turn % 3 else 0)
    threads.close()


async def test_a_closed_pool_refuses_and_lets_run(blocking: Blocking) -> None:
    """Closing refuses what waits and what comes, and a call that runs still gets its value."""
    threads = Threads("Spark", 1)
    running, waiting = start(threads, blocking.call()), start(threads, int)
    await blocking.in_call(1)
    threads.close()
    threads.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        await waiting
    with pytest.raises(UnavailableError, match="shutting down"):
        await threads.run("get", int)
    blocking.gate.set()
    assert await running == "connector-Spark-get"


async def test_a_machine_without_threads_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started a call is UNAVAILABLE, not a wait for ever."""
    threads = Threads("Spark", 2)

    def fails(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails)
        with pytest.raises(UnavailableError):
            await threads.run("get", int)
    assert await threads.run("get", int) == 0
    threads.close()


def test_a_thread_that_never_ends_does_not_keep_the_process() -> None:
    """The interpreter exits while a call blocks for ever, abandoned or not."""
    code = """
import asyncio, threading
from connector_service.runtime.threads import Threads
async def main():
    threads = Threads("Spark", 1)
    entered = threading.Event()
    def block(): entered.set(); threading.Event().wait()
    task = asyncio.ensure_future(threads.run("get", block))
    while not entered.is_set(): await asyncio.sleep(0.001)
    task.cancel()
    asyncio.ensure_future(threads.run("get", block))
    await asyncio.sleep(0.01)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0


# --- through the invoker ----------------------------------------------------------------------


class Local(SyncConnectorBase):
    def __init__(self, task_type: str, do: Callable[[], Any]) -> None:
        super().__init__(task_type_name=task_type)
        self.run = do

    def do(self) -> Any:
        return self.run()


def method_of(connector: SyncConnectorBase) -> Any:
    registry = Registry()
    registry.register(connector)
    return registry.resolve(connector.task_category).methods[Operation.DO]


async def test_the_invoker_abandons_what_overruns(
    blocking: Blocking, caplog: pytest.LogCaptureFixture
) -> None:
    """A plain ``def`` past its deadline is listed by name, and logged as late."""
    invoker = Invoker(lambda task_type: {"one": 1}.get(task_type, 32))
    one, other = method_of(Local("one", blocking.call())), method_of(Local("two", int))
    with pytest.raises(DeadlineError):
        await invoker.invoke(one, {}, time.monotonic() + 0.05)
    (call,) = invoker.abandoned()
    assert (call.connector, call.operation, call.late) == ("Local", "do", True)
    assert "abandoned" in caplog.text
    assert await invoker.invoke(other, {}, time.monotonic() + 5) == 0
    blocking.gate.set()
    await eventually(lambda: invoker.abandoned() == [])
    invoker.shutdown()


async def test_threads_are_bounded_by_task_type(blocking: Blocking) -> None:
    """The number of threads is asked for each task type."""
    invoker = Invoker(lambda task_type: {"one": 1}[task_type])
    method = method_of(Local("one", blocking.call()))
    tasks = [asyncio.ensure_future(invoker.invoke(method, {})) for _ in range(3)]
    await blocking.in_call(1)
    assert len(blocking.begun) == 1
    blocking.gate.set()
    await asyncio.gather(*tasks)
    invoker.shutdown()


async def test_a_connector_sees_what_is_left_of_its_time() -> None:
    """``time_remaining`` is the call's own, in every style; None where there is no deadline."""
    invoker = Invoker()
    plain = method_of(Local("one", time_remaining))

    class Async(SyncConnectorBase):
        async def do(self) -> float | None:
            return time_remaining()

    for method in (plain, method_of(Async(task_type_name="two"))):
        assert await invoker.invoke(method, {}) is None
        left = await invoker.invoke(method, {}, time.monotonic() + 60)
        assert 55 < left <= 60
    assert time_remaining() is None
    invoker.shutdown()
