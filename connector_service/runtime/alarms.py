"""Cancels tasks at their deadlines, with one timer for all that end within the same moment."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from typing import Any

__all__ = ["Alarms", "Slot"]

# A call's own timer costs more than all else that is done for its deadline. Deadlines far enough
# away are met together, this much late at most: a fifth of what the wire keeps for the answer.
_MOMENT = 0.05  # seconds
_FAR = 1.0  # seconds
_LOOKS = 2  # at older slots for each new one: what nobody waits for goes faster than it comes

# The tasks that end together, each under a token of its own: who has a deadline puts itself in,
# and takes itself out. Whose token is no longer there has been cancelled.
Slot = dict[object, "asyncio.Task[Any]"]


class Alarms(threading.local):
    """The deadlines of tasks in slots of 50 ms; each thread's event loop has its own."""

    def __init__(self) -> None:
        """Begin with none."""
        self._slots: dict[int, Slot] = {}
        self._timers: OrderedDict[int, asyncio.TimerHandle] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def task(self) -> asyncio.Task[Any]:
        """Return the current task, without asking the system for the process's id each time.

        Python 3.11 does that whenever it is asked which loop runs. The loop that is served stays
        on its thread; another is a test's or a tool's.
        """
        if self._thread == threading.get_ident():
            task = asyncio.current_task(self._loop)
            if task is not None:
                return task
        self._thread, self._loop = threading.get_ident(), asyncio.get_running_loop()
        self._slots, self._timers = {}, OrderedDict()  # the others are the other loop's
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - connector code runs in tasks alone
        return task

    def slot(self, deadline: float, now: float) -> Slot:
        """Return the slot whose tasks are cancelled at ``deadline``; both on the monotonic clock.

        It is for the task that ``task`` has just returned. Soon is exact, and no slot for others.
        """
        left = deadline - now
        if left < _FAR:
            soon: Slot = {}
            asyncio.get_running_loop().call_later(max(0.0, left), _ring, soon)
            return soon
        number = int(deadline / _MOMENT) + 1
        slot = self._slots.get(number)
        if slot is None:
            self._tidy()
            slot = self._slots[number] = {}
            self._timers[number] = asyncio.get_running_loop().call_later(
                number * _MOMENT - now, _end, self._slots, self._timers, number
            )
        return slot

    def _tidy(self) -> None:
        """Drop slots that nobody waits in any more: their times may be minutes away.

        Half a KB each, and twenty a second: those of five minutes would be megabytes.
        """
        for _ in range(min(_LOOKS, len(self._timers))):
            number, timer = self._timers.popitem(last=False)
            if self._slots[number]:
                self._timers[number] = timer  # behind the others: it is looked at again
            else:
                timer.cancel()
                del self._slots[number]


def _end(
    slots: dict[int, Slot], timers: OrderedDict[int, asyncio.TimerHandle], number: int
) -> None:
    del timers[number]
    _ring(slots.pop(number))


def _ring(slot: Slot) -> None:
    while slot:
        slot.popitem()[1].cancel()
