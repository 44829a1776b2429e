"""Cancels calls at their deadlines, with one timer for all that end within the same moment."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Alarm", "Alarms"]

# A call's own timer costs more than all else that is done for its deadline. Deadlines far enough
# away are met together, this much late at most: a fifth of what the wire keeps for the answer.
_MOMENT = 0.05  # seconds
_FAR = 1.0  # seconds


class Alarm:
    """The deadline of one call: what it wakes, and whether it has rung."""

    __slots__ = ("_ring", "_slot", "_timer", "rang")

    def __init__(self, ring: Callable[[], object]) -> None:
        """Take what is called at the deadline, once, unless it is put off before."""
        self.rang = False
        self._ring = ring
        self._slot: dict[Alarm, None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        """Call it now; for ``Alarms``."""
        self.rang = True
        self._ring()

    def off(self) -> None:
        """Never ring; fine after it rang."""
        if self._slot is not None:
            self._slot.pop(self, None)
        elif self._timer is not None:
            self._timer.cancel()


class Alarms:
    """The deadlines of calls on one event loop, in slots of 50 ms; not thread-safe."""

    def __init__(self) -> None:
        """Begin with none."""
        self._slots: dict[int, dict[Alarm, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def set(self, deadline: float, ring: Callable[[], Any]) -> Alarm:
        """Have ``ring`` called at ``deadline``, which is on ``time.monotonic``'s clock."""
        alarm = Alarm(ring)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # The slots' timers belong to the loop that is served; another is a test's or a tool's.
            self._slots, self._loop = {}, loop
        left = deadline - time.monotonic()
        if left < _FAR:
            alarm._timer = loop.call_later(max(0.0, left), alarm.ring)  # noqa: SLF001 - its own
            return alarm
        number = int(deadline / _MOMENT) + 1
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
            until = left + number * _MOMENT - deadline
            loop.call_later(until, self._ring, self._slots, number)
        slot[alarm] = None
        alarm._slot = slot  # noqa: SLF001
        return alarm

    def _ring(self, slots: dict[int, dict[Alarm, None]], number: int) -> None:
        for alarm in list(slots.pop(number)):
            alarm.ring()
