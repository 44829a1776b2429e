"""A bulkhead per connector: so many calls run, so many wait, others are told to come back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from connector_service.errors import DeadlineError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["Bulkhead"]

# Seconds; bounds of the hint that goes with a refusal. Below, clients would hammer; above, they
# would leave a connector alone that has long recovered.
_SOONEST, _LATEST = 1.0, 30.0
_WEIGHT = 0.1  # of the newest call in the mean of how long calls take


class Bulkhead:
    """Bounds one connector's calls; it belongs to one event loop and is not thread-safe.

    A call with a free slot pays neither a task nor a timer. Slots are handed over in the order
    of arrival: a newcomer never overtakes one that waits.
    """

    def __init__(
        self,
        name: str,
        concurrency: int,
        queue: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the connector's name for people, how many calls run, and how many may wait."""
        self.name = name
        self.concurrency = concurrency
        self.queue = queue
        self._clock = clock
        self._running = 0
        # Ordered, so that one who gives up leaves from the middle at no cost.
        self._waiters: OrderedDict[asyncio.Future[None], float | None] = OrderedDict()
        self._mean = 0.0  # seconds that a call holds its slot

    @property
    def running(self) -> int:
        """Calls that hold a slot."""
        return self._running

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._waiters)

    def enter(self, deadline: float | None, now: float | None = None) -> float | None:
        """Take a slot that is free and return since when; None is to be followed by ``wait``.

        ``now`` is the clock's time, for those who have just read it.

        Raises:
            DeadlineError: The deadline, on the clock's scale, has passed.
        """
        if now is None:
            now = self._clock()
        if deadline is not None and deadline <= now:
            raise self._late()
        if self._running >= self.concurrency or self._waiters:
            return None
        self._running += 1
        return now

    async def wait(self, deadline: float | None) -> float:
        """Wait for a slot and return since when it is held.

        Raises:
            UnavailableError: The queue is full; ``retry_after`` estimates when it will not be.
            DeadlineError: The deadline passed before the call's turn came.
        """
        if len(self._waiters) >= self.queue:
            raise UnavailableError(
                f"{self.name} is busy: {self._running} calls run and {len(self._waiters)} wait,"
                f" which is all that its concurrency and queue allow; try again later.",
                retry_after=self._hint(),
            )
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiters[turn] = deadline
        left = None if deadline is None else deadline - self._clock()
        timer = None if left is None else loop.call_later(left, self._expire, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiters.pop(turn, self) is self and _given(turn):
                # The slot was handed over in the same turn of the loop as the cancellation came.
                self._hand_over(self._clock())
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return self._clock()

    def leave(self, since: float) -> None:
        """Give a slot back that was held ``since`` then."""
        now = self._clock()
        self._mean += _WEIGHT * (now - since - self._mean)
        if self._waiters:
            self._hand_over(now)
        else:
            self._running -= 1

    @contextlib.asynccontextmanager
    async def entered(self, deadline: float | None) -> AsyncIterator[None]:
        """Hold a slot; raises on entering as ``enter`` and ``wait``."""
        since = self.enter(deadline)
        if since is None:
            since = await self.wait(deadline)
        try:
            yield
        finally:
            self.leave(since)

    def _hand_over(self, now: float) -> None:
        """Give a slot that has become free to the first who can still use it."""
        while self._waiters:
            turn, deadline = self._waiters.popitem(last=False)
            if turn.done():  # cancelled, and not yet gone from the queue
                continue
            if deadline is None or deadline > now:
                turn.set_result(None)
                return
            turn.set_exception(self._late())
        self._running -= 1

    def _expire(self, turn: asyncio.Future[None]) -> None:
        if self._waiters.pop(turn, self) is not self and not turn.done():
            turn.set_exception(self._late())

    def _late(self) -> DeadlineError:
        return DeadlineError(
            f"The deadline passed before {self.name} could begin the call:"
            f" {self._running} others run and {len(self._waiters)} wait."
        )

    def _hint(self) -> float:
        """Estimate the seconds until the queue is half empty."""
        ahead = (len(self._waiters) / 2 + 1) / self.concurrency
        return min(max(_SOONEST, ahead * self._mean), _LATEST)


def _given(turn: asyncio.Future[None]) -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is None
