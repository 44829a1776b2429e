"""An outcome on its way from another thread to the coroutine that waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from connector_service.errors import ConnectorFault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = ["Outcome", "Reply", "capture", "capture_async"]

# Any exception travels as a value: an asyncio future refuses StopIteration, and its waiter would
# then wait for ever.
Outcome = tuple[Any, BaseException | None]


class Reply:
    """Made where it is awaited, settled from any thread; awaiting gives the value or raises."""

    __slots__ = ("_done", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[Outcome] = self._loop.create_future()

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
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: Outcome) -> None:
        if not self._done.done():
            self._done.set_result(outcome)


def capture(function: Callable[[], Any]) -> Outcome:
    """Call ``function`` and return what it returns or raises."""
    try:
        return function(), None
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
