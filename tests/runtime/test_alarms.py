"""Deadlines of tasks: many at one moment, and nothing kept of those that nobody waits for."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from connector_service.runtime.alarms import Alarms


def _timers() -> int:
    """Count the timers that are still to ring, those of other loops of this process too."""
    gc.collect()
    timers = [one for one in gc.get_objects() if type(one).__name__ == "TimerHandle"]
    return sum(not timer.cancelled() for timer in timers)


async def test_deadlines_that_nobody_waits_for_leave_nothing_behind() -> None:
    """A call that ended long before its deadline keeps no timer until then."""
    alarms = Alarms()
    task = alarms.task()
    now = time.monotonic()
    before = _timers()
    for number in range(1_000):
        mark = object()
        slot = alarms.slot(now + 300 + number / 10, now)
        slot[mark] = task
        del slot[mark]
    assert _timers() - before < 10


async def test_a_deadline_is_met_however_many_came_and_went() -> None:
    """Who still waits when its slot is looked at keeps its place, and is cancelled in time."""
    alarms = Alarms()
    began = time.monotonic()

    async def wait() -> None:
        task = alarms.task()
        alarms.slot(began + 1.2, began)[object()] = task
        await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task = alarms.task()
    for number in range(1_000):
        mark = object()
        slot = alarms.slot(began + 300 + number / 10, began)
        slot[mark] = task
        del slot[mark]
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5.0):
            await waiting
    assert 1.2 <= time.monotonic() - began < 1.7
