"""The watchdog: who blocked the event loop, where, how often, and what becomes of it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from connector_service import SyncConnectorBase
from connector_service.runtime.invoker import Invoker
from connector_service.runtime.watchdog import Block, Watchdog
from connector_service.sdk.method import Operation
from connector_service.sdk.registry import Registry
from connector_service.telemetry.http import HttpServer

PATIENCE = 10.0
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Clock:
    """The real clock, and what the test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def hold(gate: threading.Event) -> None:
    gate.wait(PATIENCE)


class Blocker(SyncConnectorBase):
    """Blocks the loop for as long as its gate is shut."""

    gate: threading.Event

    async def do(self) -> threading.Thread:
        hold(self.gate)
        return threading.current_thread()


class Sibling(Blocker):
    """The same code under another task type."""


class Polite(SyncConnectorBase):
    async def do(self) -> None:
        await asyncio.sleep(0)


class Spawning(SyncConnectorBase):
    """Blocks the loop from a task of its own, which no operation runs."""

    gate: threading.Event

    async def do(self) -> None:
        self.task = asyncio.ensure_future(self.refresh())

    async def refresh(self) -> None:
        hold(self.gate)


class Rig:
    """An event loop on a thread, an invoker, and a watchdog over both."""

    def __init__(self, loop: str = "asyncio", **options: Any) -> None:
        self.registry = Registry()
        self.invoker = Invoker()
        self.blocks: list[Block] = []
        self.told = threading.Semaphore(0)
        self.clock = Clock()
        self.loop = LOOPS[loop]()
        self.watchdog = Watchdog(
            self.registry,
            on_block=self.on_block,
            isolate=self.invoker.isolate,
            clock=self.clock,
            **options,
        )
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.loop.call_soon_threadsafe(self.watchdog.start, self.loop)

    def on_block(self, block: Block) -> None:
        self.blocks.append(block)
        self.told.release()

    def add(self, kind: type[Any], task_type: str) -> Any:
        connector = kind(task_type_name=task_type)
        connector.gate = threading.Event()
        self.registry.register(connector)
        return connector

    def call(self, connector: Any) -> Future[Any]:
        method = self.registry.resolve(connector.task_category).methods[Operation.DO]
        return asyncio.run_coroutine_threadsafe(self.invoker.invoke(method, {}), self.loop)

    def close(self) -> None:
        self.watchdog.stop()
        self.invoker.shutdown()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:
        rigs.append(Rig(**options))
        return rigs[-1]

    yield make
    for one in rigs:
        for registration in one.registry:
            registration.connector.gate.set()  # type: ignore[attr-defined]
        one.close()


def eventually(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.005)


def warnings(caplog: pytest.LogCaptureFixture, event: str) -> list[Any]:
    return [record for record in caplog.records if event in record.message]


def block_once(rig: Rig, connector: Any, caplog: pytest.LogCaptureFixture) -> Any:
    """Block the loop until the watchdog has said so, and return what the call came to."""
    known = len(warnings(caplog, "blocks the event loop"))
    connector.gate.clear()
    call = rig.call(connector)
    eventually(lambda: len(warnings(caplog, "blocks the event loop")) > known, "a warning")
    connector.gate.set()
    assert rig.told.acquire(timeout=PATIENCE)
    return call.result(PATIENCE)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_block_is_named_while_it_lasts(
    rig: Any, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    """The log names connector, operation and line, on either event loop; the callback counts."""
    one = rig(loop=loop)
    blocker = one.add(Blocker, "blocker")
    block_once(one, blocker, caplog)
    (warning,) = warnings(caplog, "blocks the event loop")
    assert (warning.connector, warning.task_type, warning.operation) == ("Blocker", "blocker", "do")
    place = inspect.getsourcelines(hold)[1] + 1
    assert warning.line == f"{__file__}:{place} in hold"
    assert "hold(self.gate)" in warning.stack
    assert "invoker.py" not in warning.stack
    (block,) = one.blocks
    assert block[:3] == ("blocker", "do", "Blocker")
    assert 0.09 < block.seconds < PATIENCE


def test_one_class_under_two_task_types_is_told_apart(
    rig: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Connectors that share their code are told apart by the object that runs."""
    one = rig()
    one.add(Blocker, "first")
    block_once(one, one.add(Blocker, "second"), caplog)
    block_once(one, one.add(Sibling, "third"), caplog)
    assert [block.task_type for block in one.blocks] == ["second", "third"]


def test_a_connectors_own_task_is_named_too(rig: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Code of a connector that no operation runs is its ``background``."""
    one = rig()
    block_once(one, one.add(Spawning, "spawning"), caplog)
    assert one.blocks[0][:3] == ("spawning", "background", "Spawning")
    assert "in hold" in one.blocks[0].line


def test_many_short_calls_are_nobodys_block(rig: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A loop that is late for many short calls of a polite connector blames none of them."""
    one = rig()
    polite = one.add(Polite, "polite")
    for call in [one.call(polite) for _ in range(3000)]:
        call.result(PATIENCE)
    assert one.blocks == []
    assert warnings(caplog, "blocks the event loop") == []


def test_a_repeated_offender_gets_a_loop_of_its_own(
    rig: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """After three offences the connector runs elsewhere, blocks only itself, and others go on."""
    one = rig()
    blocker, polite = one.add(Blocker, "blocker"), one.add(Polite, "polite")
    for _ in range(3):
        assert block_once(one, blocker, caplog) is one.thread
    eventually(one.invoker.isolated, "a loop of its own")
    assert one.invoker.isolated() == ["Blocker"]
    eventually(lambda: warnings(caplog, "loop of their own"), "a warning")  # it comes after that
    (warning,) = warnings(caplog, "loop of their own")
    assert (warning.connector, warning.offences) == ("Blocker", 3)
    blocker.gate.clear()
    blocked = one.call(blocker)
    one.call(polite).result(PATIENCE)
    assert not blocked.done()
    blocker.gate.set()
    assert blocked.result(PATIENCE).name == "connector-Blocker-loop"
    assert len(one.blocks) == 3


def livez(server: HttpServer) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/livez") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_livez_answers_for_a_stuck_loop_and_names_who_blocks_it(
    rig: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """``/livez`` is 503 after 60 s without a beat, names the connector, and recovers."""
    one = rig()
    blocker = one.add(Blocker, "blocker")
    server = HttpServer("127.0.0.1", 0, CollectorRegistry(), lambda: True, stuck=one.watchdog.stuck)
    server.start()
    try:
        assert livez(server) == (200, "alive\n")
        call = one.call(blocker)
        eventually(lambda: warnings(caplog, "blocks the event loop"), "a warning")
        assert livez(server) == (200, "alive\n")
        one.clock.ahead += 61
        status, text = livez(server)
        assert status == 503
        assert "has not answered for 61 s: Blocker (task type blocker) blocks it in do" in text
        assert f"{__file__}:" in text
        blocker.gate.set()
        call.result(PATIENCE)
        eventually(lambda: livez(server) == (200, "alive\n"), "alive again")
    finally:
        server.close()


def test_a_loop_that_no_connector_blocks_is_stuck_all_the_same(rig: Any) -> None:
    """What blocks the loop need not be a connector for ``/livez`` to say so."""
    one = rig()
    gate = threading.Event()
    eventually(lambda: one.watchdog._files is not None, "a first beat")
    one.loop.call_soon_threadsafe(lambda: gate.wait(PATIENCE))
    one.clock.ahead += 5  # the next beat without cause is due
    eventually(lambda: not one.watchdog._beat.is_set(), "a beat that is late")
    time.sleep(0.1)
    one.clock.ahead += 61
    assert "no connector's code is on its stack" in one.watchdog.stuck()
    gate.set()
    eventually(lambda: one.watchdog.stuck() == "", "alive again")


def test_a_watchdog_that_stopped_keeps_nothing(rig: Any) -> None:
    """Stopping is fine twice and before the start; a stopped watchdog never calls a loop stuck."""
    unstarted = Watchdog([])
    unstarted.stop()
    assert unstarted.stuck() == ""
    one = rig()
    eventually(lambda: one.watchdog._thread, "started")
    thread = one.watchdog._thread
    one.watchdog.stop()
    one.watchdog.stop()
    assert one.watchdog.stuck() == ""
    assert thread not in threading.enumerate()


async def test_watching_an_idle_loop_costs_next_to_nothing() -> None:
    """An idle loop is watched for a small part of a percent of a core."""
    gc.collect()
    watchdog = Watchdog(Registry())
    watchdog.start(asyncio.get_running_loop())
    started = time.process_time()
    await asyncio.sleep(1)
    spent = time.process_time() - started
    watchdog.stop()
    print(f"\nwatchdog: {spent * 100:.2f} % of a core while idle")  # noqa: T201 - the figure
    assert spent < 0.03


async def test_a_hook_that_raises_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    """What ``on_block`` raises is logged, and the next block is seen."""

    def fails(_: Block) -> None:
        raise ValueError("hook")

    class Sleeper(SyncConnectorBase):
        async def do(self) -> None:
            time.sleep(0.25)  # noqa: ASYNC251 - the offence itself

    registry = Registry()
    registry.register(Sleeper(task_type_name="sleeper"))
    invoker = Invoker()
    (registration,) = registry
    watchdog = Watchdog(registry, on_block=fails)
    watchdog.start(asyncio.get_running_loop())
    for count in (1, 2):
        await invoker.invoke(registration.methods[Operation.DO], {})
        failed = partial(warnings, caplog, "the watchdog failed")
        await asyncio.to_thread(
            eventually, lambda failed=failed, count=count: len(failed()) == count, "a failure"
        )
    watchdog.stop()
    assert len(warnings(caplog, "blocks the event loop")) == 2
