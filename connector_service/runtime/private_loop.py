"""An event loop on a thread of its own, for a connector that blocks the common one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import threading
from typing import TYPE_CHECKING, Any

from connector_service.errors import UnavailableError
from connector_service.runtime.reply import Reply, capture_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["PrivateLoop", "Stream"]

_log = logging.getLogger(__name__)

_CLOSING = 5.0  # seconds that coroutines get to end when the loop closes, and generators to close


class PrivateLoop:
    """Runs coroutines for callers on another loop, who never wait beyond their own cancellation.

    Whatever is blocked here blocks only this connector. A call whose caller left before its turn
    came is never begun.
    """

    def __init__(self, name: str) -> None:
        """Take the connector's name, start the thread."""
        self.name = name
        self._loop = asyncio.new_event_loop()
        self._closing = False
        # A daemon, so that code which never returns does not keep the process.
        self._thread = threading.Thread(
            target=self._serve, name=f"connector-{name}-loop", daemon=True
        )
        self._thread.start()

    async def run(self, make: Callable[..., Awaitable[Any]], /, **arguments: Any) -> Any:
        """Await here what ``make`` makes there of ``arguments``, in the caller's context.

        Cancelling it cancels what runs there, and does not wait for it.

        Raises:
            UnavailableError: The loop has been closed.
        """
        errand = _Errand(functools.partial(make, **arguments))
        self.post(errand.begin)
        try:
            return await errand.reply
        except asyncio.CancelledError:
            if not errand.ended:  # else the cancellation is the connector's own doing
                errand.left = True
                with contextlib.suppress(UnavailableError):
                    self.post(errand.cancel)
            raise

    def stream(self, source: AsyncIterator[Any], end: object) -> Stream:
        """Read an asynchronous iterator there, item by item; ``end`` comes after the last."""
        return Stream(self, source, end)

    def post(self, function: Callable[[], object]) -> None:
        """Have ``function`` called there; raises UnavailableError once the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            raise UnavailableError(
                f"{self.name} cannot take calls: the service is shutting down."
            ) from None

    def close(self) -> None:
        """Cancel what runs and end the thread, without waiting for it; fine twice."""
        self._closing = True
        with contextlib.suppress(UnavailableError):
            self.post(self._loop.stop)

    def _serve(self) -> None:
        while not self._closing:
            try:
                self._loop.run_forever()
            except BaseException:  # noqa: BLE001 - SystemExit out of a task of the connector's own
                _log.warning(
                    "a connector's own task tried to end the process",
                    extra={"connector": self.name},
                    exc_info=True,
                )
        try:
            self._loop.run_until_complete(_end_all(self._loop))
        except BaseException:  # noqa: BLE001 - the thread ends all the same
            _log.warning("a connector's loop failed while it closed", exc_info=True)
        self._loop.close()


class _Errand:
    """One coroutine, made and awaited on the private loop."""

    def __init__(self, make: Callable[[], Awaitable[Any]]) -> None:
        self.reply = Reply()
        self.left = False
        self.ended = False
        self._make = make
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        if not self.left:
            self._task = asyncio.get_running_loop().create_task(self._work(), context=self._context)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        outcome = await capture_async(self._make)
        self.ended = True
        self.reply.settle(outcome)


class Stream:
    """An asynchronous iterator whose every step runs in one task of the private loop.

    One task, because timeouts and cancel scopes inside a generator end in the task that they
    began in.
    """

    def __init__(self, loop: PrivateLoop, source: AsyncIterator[Any], end: object) -> None:
        """Take where it is read, what is read, and what says that nothing is left."""
        self._loop = loop
        self._source = source
        self._end = end
        self._context: contextvars.Context | None = None
        self._asked: asyncio.Queue[Reply | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def next(self) -> Any:
        """Return the next item, or the end; cancelling it interrupts the step."""
        reply = Reply()
        if self._context is None:
            self._context = contextvars.copy_context()
        self._loop.post(functools.partial(self._ask, reply))
        try:
            return await reply
        except asyncio.CancelledError:
            with contextlib.suppress(UnavailableError):
                self._loop.post(self._interrupt)
            raise

    async def close(self) -> None:
        """Have the iterator closed there; what its ``finally`` does is not waited for."""
        with contextlib.suppress(UnavailableError):
            self._loop.post(functools.partial(self._ask, None))

    def _ask(self, reply: Reply | None) -> None:
        if self._task is None:
            if self._context is None:
                self._context = contextvars.copy_context()
            self._task = asyncio.get_running_loop().create_task(
                self._serve(), context=self._context
            )
        self._asked.put_nowait(reply)

    def _interrupt(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _serve(self) -> None:
        step = functools.partial(anext, self._source, self._end)
        try:
            while (reply := await self._asked.get()) is not None:
                outcome = await capture_async(step)
                reply.settle(outcome)
        finally:
            close = getattr(self._source, "aclose", None)
            if close is not None:
                _, error = await capture_async(functools.partial(_within, close))
                if error is not None and not isinstance(error, GeneratorExit):
                    _log.warning(
                        "A connector's generator failed while it was closed.", exc_info=error
                    )


async def _within(close: Callable[[], Awaitable[Any]]) -> None:
    # Not `wait_for`, which makes a task of its own: what that raises may stop the whole loop.
    async with asyncio.timeout(_CLOSING):
        await close()


async def _end_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CLOSING)
    await loop.shutdown_asyncgens()
