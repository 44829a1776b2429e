"""A grpc.aio server that accepts many calls at a time, and leaves no garbage of any.

grpc-core hands a server as many calls as it has asked for. grpc.aio asks for one, and for the next
when that has come: however many callers wait, its thread and the event loop change places several
times for each. Servers in other languages ask for hundreds at once (grpc/grpc#13958).

To find a call's handler grpc.aio makes a function that its own closure holds: five objects of each
call are left to the garbage collector, which stopped one call in a hundred for as long as that
call takes otherwise.

``docs/performance.md`` has the figures. The service itself serves with it, too.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import TYPE_CHECKING, Any, Protocol, cast

import grpc.aio
from grpc._cython import cygrpc
from grpc.aio import _server

from .loop import patient_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Reader", "make_server"]

# With 16 and with 128 calls in flight, 8 bring nine tenths of what can be had, more than 32 none.
_ASKED = 32
# Requests from this size on, in bytes, are accepted one at a time, as grpc.aio does: sixteen of
# 1 MB that are read beside each other leave the processor's caches, and cost a seventh more.
_LARGE = 512 * 1024

# What is called of grpc.aio's inside, and what it calls here (grpcio 1.75 to 1.85).
_INSIDE = ("_request_call", "_start_shutting_down", "_serving_task_crash_handler", "shutdown")
_find_with_garbage = getattr(cygrpc, "_find_method_handler", None)


class Reader(Protocol):
    """Who reads the requests."""

    latest: int
    """Bytes of the last one."""


def make_server(options: Sequence[tuple[str, Any]], reader: Reader) -> grpc.aio.Server:
    """Make a server in the running loop; ``options`` are grpc-core's.

    With a release of grpcio that is another one inside, it is grpc.aio's own.
    """
    if _find_with_garbage is not None and hasattr(cygrpc, "_HandlerCallDetails"):
        cygrpc._find_method_handler = _find_method_handler  # noqa: SLF001
    with patient_threads():  # grpc-core starts its own here
        if all(hasattr(cygrpc.AioServer, name) for name in _INSIDE):
            return cast("grpc.aio.Server", _Server(options, reader))
        return grpc.aio.server(options=options)


async def _find_method_handler(*asked: Any) -> Any:
    """Return what answers a call, as grpc.aio's own does, for every server of this process.

    It is asked with the method, the metadata, a server's generic handlers, or in newer releases
    what asks those, and its interceptors. Whatever else it is asked with, grpc.aio answers.
    """
    if len(asked) == 4 and not asked[3]:
        details = cygrpc._HandlerCallDetails(*asked[:2])  # noqa: SLF001
        if type(asked[2]) is list:
            for generic in asked[2]:
                handler = generic.service(details)
                if handler is not None:
                    return handler
            return None
        if hasattr(asked[2], "resolve_handler"):
            return asked[2].resolve_handler(details)
    return await cast("Any", _find_with_garbage)(*asked)


class _Stopped(Exception):  # noqa: N818 - no error: how grpc.aio's loop is ended
    """Every call that came before the end is taken up."""


class _Accepting(cygrpc.AioServer):  # type: ignore[misc] # it has no types
    """What serves inside grpc.aio's server."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: tuple[tuple[str, Any], ...],
        reader: Reader,
    ) -> None:
        self._reader = reader
        # Calls asked for, which grpc-core fills in this order: who waits for it, and for what.
        self._asked: collections.deque[tuple[Any, asyncio.Future[Any]]] = collections.deque()
        self._closing = False
        self._lock = asyncio.Lock()
        super().__init__(loop, None, (), None, options, None)

    async def _request_call(self) -> Any:
        """Wait for the next call; grpc.aio's loop takes it up and comes again."""
        asked = self._asked
        most = _ASKED if self._reader.latest < _LARGE else 1
        while len(asked) < most and not self._closing:
            request = super()._request_call()
            event = request.send(None)
            # As a task does that was given it; it is awaited later.
            event._asyncio_future_blocking = False  # noqa: SLF001
            asked.append((request, event))
        while asked:
            request, event = asked.popleft()
            try:
                if not event.done():
                    await event
                request.send(None)
            except StopIteration as accepted:
                return accepted.value
            except Exception:
                if not self._closing:
                    raise
                # None came before the end. The one asked for next may have.
        raise _Stopped

    async def shutdown(self, grace: float | None) -> None:
        """Accept no more, and answer what was accepted; cancel what is left after ``grace``.

        grpc.aio alone ends its loop at once: it takes up the one call that it had asked for, and
        those beside it would wait until the grace is over. So grpc-core is told first, and the
        loop ends when it has them all.
        """
        async with self._lock:
            if self.is_running() and not self._closing:
                self._closing = True
                # It ends as told, or has ended before, and was heard then.
                with contextlib.suppress(Exception):
                    await super()._start_shutting_down()
                await asyncio.gather(*(event for _, event in self._asked), return_exceptions=True)
        await super().shutdown(grace)

    async def _start_shutting_down(self) -> None:
        """Do nothing more: ``shutdown`` has."""

    def _serving_task_crash_handler(self, task: asyncio.Task[Any]) -> None:
        if not self._closing:
            super()._serving_task_crash_handler(task)


class _Server(_server.Server):
    def __init__(self, options: Sequence[tuple[str, Any]], reader: Reader) -> None:
        # Not grpc.aio's own, which makes a server of its kind.
        self._loop = cygrpc.get_working_loop()
        self._server = _Accepting(self._loop, tuple(options), reader)
