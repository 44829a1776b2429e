"""The threads of one connector's plain ``def`` code."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Threads", "attempt"]

_log = logging.getLogger(__name__)

_MOST = 4  # times as many threads as may run, counting those whose callers have gone
_IDLE = 60.0  # seconds until a thread without work ends


class Threads:
    """Daemon threads made on demand: at most ``threads`` calls run, the others wait in order.

    A thread cannot be stopped. One whose caller has gone no longer counts, and another takes its
    place, up to four times ``threads`` of both.
    """

    def __init__(self, name: str, threads: int, idle: float = _IDLE) -> None:
        """Take the connector's name and how many calls run."""
        self.name = name
        self.threads = max(1, threads)
        self._idle_seconds = idle
        self._changing = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._idle = 0
        self._live = 0
        self._abandoned = 0

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` on a thread, in the caller's context, to its value or exception.

        Cancel it to leave: what waits is never begun, what runs goes on without a caller.
        """
        job = _Job(function)
        self._submit(job)
        try:
            value, error = await job.done
        except asyncio.CancelledError:
            self._leave(job)
            raise
        if error is not None:
            try:
                raise error
            finally:
                del error
        return value

    def spawn(self, function: Callable[[], Any]) -> None:
        """Run ``function`` on a thread, and wait for nothing."""
        self._submit(_Job(function))

    def _submit(self, job: _Job) -> None:
        with self._changing:
            self._waiting.append(job)
            self._advance()

    def _leave(self, job: _Job) -> None:
        with self._changing:
            if job.ended or job.left:
                return
            job.left = True
            if job.running:
                self._abandoned += 1
                self._advance()
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(job)

    def _advance(self) -> None:
        """See that what waits is taken up, as far as there may be threads."""
        if not self._waiting:
            return
        if self._idle:
            self._changing.notify()
        bound = min(self.threads + self._abandoned, self.threads * _MOST)
        if self._idle < len(self._waiting) and self._live < bound:
            self._live += 1
            try:
                threading.Thread(
                    target=self._work, name=f"connector-{self.name}", daemon=True
                ).start()
            except RuntimeError:  # the machine, or the pod's limit, has no thread left
                self._live -= 1
                _log.warning("no thread can be started for %s", self.name)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            outcome = job.execute()
            with self._changing:
                job.ended = True
                if job.left:
                    self._abandoned -= 1
            job.settle(outcome)
            del job, outcome  # an idle thread must not keep a request alive

    def _next(self) -> _Job | None:
        with self._changing:
            while True:
                if self._live > self.threads + self._abandoned:
                    self._live -= 1
                    return None
                if self._waiting:
                    job = self._waiting.popleft()
                    job.running = True
                    return job
                self._idle += 1
                try:
                    called = self._changing.wait(self._idle_seconds)
                finally:
                    self._idle -= 1
                if not called and not self._waiting:
                    self._live -= 1
                    return None


class _Job:
    """One call on its way through the pool; the pool's lock guards what changes."""

    __slots__ = ("_context", "_function", "_loop", "done", "ended", "left", "running")

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()
        self.running = False
        self.ended = False
        self.left = False

    def execute(self) -> tuple[Any, BaseException | None]:
        try:
            return self._context.run(self._function), None
        except StopIteration as error:
            # Raised again inside a coroutine it would become a RuntimeError that names nobody.
            fault = RuntimeError("The connector raised StopIteration.")
            fault.__cause__ = error
            return None, fault
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            return None, error

    def settle(self, outcome: tuple[Any, BaseException | None]) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: tuple[Any, BaseException | None]) -> None:
        if not self.done.done():
            self.done.set_result(outcome)


def attempt(function: Callable[[], Any]) -> None:
    """Call ``function``; what it raises is only logged, for nobody waits for it."""
    try:
        function()
    except BaseException:  # noqa: BLE001 - only the log is left to tell
        _log.warning("a connector's generator failed while it was closed", exc_info=True)
