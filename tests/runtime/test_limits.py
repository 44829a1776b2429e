"""The bulkhead: who runs, who waits, who is refused, and that no slot is ever lost."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from connector_service.errors import DeadlineError, UnavailableError
from connector_service.runtime.limits import Bulkhead


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Calls:
    """Calls through one bulkhead, each ended by the test."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.bulkhead = bulkhead
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}

    async def one(self, name: str, deadline: float | None = None) -> str:
        async with self.bulkhead.entered(deadline):
            self.begun.append(name)
            await self.ends.setdefault(name, asyncio.Event()).wait()
        return name

    def start(self, name: str, deadline: float | None = None) -> asyncio.Task[str]:
        return asyncio.get_running_loop().create_task(self.one(name, deadline), name=name)

    def end(self, *names: str) -> None:
        for name in names:
            self.ends.setdefault(name, asyncio.Event()).set()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_so_many_run_and_the_others_wait_in_their_order() -> None:
    """Concurrency bounds what runs; those that wait begin in the order in which they came."""
    bulkhead = Bulkhead("Spark", 2, 10)
    calls = Calls(bulkhead)
    tasks = [calls.start(name) for name in "abcde"]
    await settled()
    assert (calls.begun, bulkhead.running, bulkhead.waiting) == (["a", "b"], 2, 3)
    calls.end("b")
    await settled()
    assert calls.begun == ["a", "b", "c"]
    calls.end(*"acde")
    assert await asyncio.gather(*tasks) == list("abcde")
    assert calls.begun == list("abcde")
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


async def test_a_newcomer_never_overtakes() -> None:
    """A call that comes in the turn in which a slot was handed over waits behind the others."""
    bulkhead = Bulkhead("Spark", 1, 10)
    calls = Calls(bulkhead)
    first, second = calls.start("a"), calls.start("b")
    await settled()
    calls.end("a")
    await first
    calls.end("b", "c")
    assert await asyncio.gather(second, calls.start("c")) == ["b", "c"]
    assert calls.begun == ["a", "b", "c"]


async def test_beyond_the_queue_a_call_is_refused_at_once_with_a_hint() -> None:
    """A full queue is UNAVAILABLE in a sentence that names the connector, and says when to come."""
    clock = Clock()
    bulkhead = Bulkhead("Spark", 1, 2, clock)
    calls = Calls(bulkhead)
    tasks = [calls.start(name) for name in "abc"]
    await settled()
    with pytest.raises(UnavailableError, match="Spark is busy: 1 calls run and 2 wait") as refused:
        await calls.one("d")
    assert refused.value.retry_after == 1.0
    clock.now += 600  # calls turn out to be slow: the next hint is longer
    calls.end("a")
    await settled()
    tasks.append(calls.start("e"))
    await settled()
    with pytest.raises(UnavailableError) as refused:
        await calls.one("f")
    assert refused.value.retry_after == 30.0
    calls.end(*"abce")
    await asyncio.gather(*tasks)
    assert "d" not in calls.begun


async def test_without_a_queue_every_call_beyond_is_refused() -> None:
    """``queue = 0`` is a legal choice."""
    bulkhead = Bulkhead("Spark", 1, 0)
    async with bulkhead.entered(None):
        with pytest.raises(UnavailableError):
            await bulkhead.entered(None).__aenter__()
    async with bulkhead.entered(None):
        assert bulkhead.running == 1


async def test_a_call_that_is_late_on_arrival_never_begins() -> None:
    """A deadline that has passed is refused even where a slot is free."""
    clock = Clock()
    bulkhead = Bulkhead("Spark", 1, 1, clock)
    with pytest.raises(DeadlineError, match="before Spark could begin"):
        await Calls(bulkhead).one("a", clock.now)
    assert bulkhead.running == 0


async def test_a_deadline_that_passes_in_the_queue_ends_the_wait() -> None:
    """A waiter is told when its time is up, not when a slot becomes free, and frees its place."""
    bulkhead = Bulkhead("Spark", 1, 1)
    calls = Calls(bulkhead)
    first = calls.start("a")
    await settled()
    with pytest.raises(DeadlineError):
        await calls.one("late", time.monotonic() + 0.02)
    assert (bulkhead.running, bulkhead.waiting, calls.begun) == (1, 0, ["a"])
    calls.end("a")
    await first
    assert bulkhead.running == 0


async def test_a_slot_passes_over_those_whose_deadline_has_passed() -> None:
    """A late timer does not matter: a waiter past its deadline is dropped when its turn comes."""
    clock = Clock()
    bulkhead = Bulkhead("Spark", 1, 10, clock)
    calls = Calls(bulkhead)
    tasks = [calls.start("a"), calls.start("late", clock.now + 60), calls.start("c")]
    await settled()
    clock.now += 61  # the event loop's own timer has 60 s to go
    calls.end("a", "c")
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[1], DeadlineError)
    assert calls.begun == ["a", "c"]
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


async def test_one_who_leaves_the_queue_frees_its_place() -> None:
    """A cancelled waiter never runs, and its place is free for another at once."""
    bulkhead = Bulkhead("Spark", 1, 1)
    calls = Calls(bulkhead)
    first, leaver = calls.start("a"), calls.start("b")
    await settled()
    leaver.cancel()
    await settled()
    assert bulkhead.waiting == 0
    third = calls.start("c")
    calls.end("a", "c")
    await asyncio.gather(first, third)
    assert calls.begun == ["a", "c"]
    assert leaver.cancelled()


async def test_one_who_leaves_with_a_slot_in_hand_passes_it_on() -> None:
    """A waiter cancelled in the very turn in which it got its slot does not take it along."""
    bulkhead = Bulkhead("Spark", 1, 10)
    calls = Calls(bulkhead)
    async with bulkhead.entered(None):
        leaver, third = calls.start("b"), calls.start("c")
        await settled()
    assert bulkhead.waiting == 1
    leaver.cancel()
    calls.end("c")
    assert await third == "c"
    assert calls.begun == ["c"]
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


async def test_a_call_that_fails_gives_its_slot_back() -> None:
    """Whatever ends a call, its slot is free afterwards."""
    bulkhead = Bulkhead("Spark", 1, 0)
    for error in (ValueError(), asyncio.CancelledError(), SystemExit()):
        with pytest.raises(type(error)):
            async with bulkhead.entered(None):
                raise error
    assert bulkhead.running == 0


async def test_no_slot_is_lost_whoever_leaves_whenever() -> None:
    """After 2,000 calls that end, fail, expire and are cancelled at random, all slots are free."""
    chance = random.Random(4)
    bulkhead = Bulkhead("Spark", 3, 50)
    most = 0

    async def one() -> None:
        nonlocal most
        deadline = time.monotonic() + chance.random() * 0.01 if chance.random() < 0.5 else None
        async with bulkhead.entered(deadline):
            most = max(most, bulkhead.running)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.2:
                raise ValueError

    tasks: list[Any] = []
    for _ in range(2000):
        tasks.append(asyncio.ensure_future(one()))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.2:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


async def test_an_uncontended_call_costs_microseconds() -> None:
    """With a free slot a call pays a few microseconds: no task, no timer."""
    bulkhead = Bulkhead("Spark", 64, 256)
    best = 1.0
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(2000):
            async with bulkhead.entered(1e12):
                pass
        best = min(best, (time.perf_counter() - started) / 2000)
    print(f"\nbulkhead: {best * 1e6:.2f} us an uncontended call")  # noqa: T201 - the figure
    assert best < 20e-6
