"""Outcomes on their way from other threads to the coroutines that wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from connector_service.errors import ConnectorFault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping

__all__ = ["Mailbox", "Outcome", "Reply", "capture", "capture_async"]

# Any exception travels as a value: an asyncio future refuses StopIteration, and its waiter would
# then wait for ever.
Outcome = tuple[Any, BaseException | None]


class Mailbox:
    """What other threads have for the futures of one event loop; it wakes once for all of it."""

    __slots__ = ("_outcomes", "_rung", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the loop that the futures belong to."""
        self.loop = loop
        self._outcomes: deque[tuple[asyncio.Future[Outcome], Outcome]] = deque()
        self._rung = False

    @classmethod
    def here(cls) -> Mailbox:
        """Return the running loop's own."""
        loop = asyncio.get_running_loop()
        box: Mailbox | None = getattr(_local, "box", None)
        if box is None or box.loop is not loop:
            box = _local.box = cls(loop)
        return box

    def put(self, future: asyncio.Future[Outcome], outcome: Outcome) -> None:
        """Settle ``future`` soon; from any thread. A loop that has closed hears no more."""
        self._outcomes.append((future, outcome))
        # The loop lowers the flag before it looks, and we raise it after we have put: whichever
        # comes first, one of the two sees the other.
        if self._rung:
            return
        self._rung = True
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # closed
            self._rung = False
            self._outcomes.clear()

    def _deliver(self) -> None:
        self._rung = False
        outcomes = self._outcomes
        # What comes meanwhile rings again: the loop has others to serve.
        for _ in range(len(outcomes)):
            future, outcome = outcomes.popleft()
            if not future.done():
                future.set_result(outcome)


class _Local(threading.local):
    box: Mailbox | None = None


_local = _Local()


class Reply:
    """Made where it is awaited, settled from any thread; awaiting gives the value or raises."""

    __slots__ = ("_box", "_done")

    def __init__(self) -> None:
        self._box = Mailbox.here()
        self._done: asyncio.Future[Outcome] = self._box.loop.create_future()

    def __await__(self) -> Generator[Any, None, Any]:
        value, error = yield from self._done.__await__()
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, and with it the request

    def settle(self, outcome: Outcome) -> None:
        """Give the outcome; a loop that has closed has nobody left to hear it."""
        self._box.put(self._done, outcome)


def capture(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Outcome:
    """Call ``function`` and return what it returns or raises."""
    try:
        return function(**arguments), None
    except StopIteration as error:
        # Raised again inside a coroutine it would become a RuntimeError that names nobody.
        fault = ConnectorFault("The connector raised StopIteration.")
        fault.__cause__ = error
        return None, fault
    except BaseException as error:  # noqa: BLE001 - raised where it is awaited
        return None, error


async def capture_async(make: Callable[[], Awaitable[Any]]) -> Outcome:
    """Await what ``make`` makes and return what it returns or raises, cancellation too."""
    try:
        return await make(), None
    except BaseException as error:  # noqa: BLE001 - raised where it is awaited
        return None, error
