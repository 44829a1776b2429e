"""The threads of one connector's plain ``def`` code, and what becomes of those that overrun."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from collections import deque
from types import GeneratorType
from typing import TYPE_CHECKING, Any, NamedTuple

from connector_service.errors import UnavailableError
from connector_service.runtime.reply import Mailbox, Outcome, capture
from connector_service.sdk.deadline import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["AbandonedCall", "Threads"]

_log = logging.getLogger(__name__)

_IDLE = 60.0  # seconds until a thread without work ends
_MOST = 4  # times as many threads as may run, counting those that overran
_RETRY_AFTER = 5.0  # seconds; threads that overran end when what they wait for lets them
# The event loop's timers may fire this much before the point in time that they were set to.
_EARLY = 0.05


class AbandonedCall(NamedTuple):
    """A plain ``def`` whose caller has gone and which still runs."""

    connector: str
    operation: str
    since: float  # when its caller went, on the pool's clock
    seconds: float  # how long that is ago
    thread: str
    late: bool  # its deadline had passed; False: its caller left before


class Threads:
    """Daemon threads made on demand: at most ``threads`` calls run, the others wait in order.

    A thread cannot be stopped. One whose caller has gone is *abandoned*: it no longer counts
    among ``threads``, a replacement is made when there is work, and it joins the pool again or
    ends once its call does. Abandoned and others together are at most ``most``; when all of
    those are abandoned, calls are refused.

    A burst of calls wakes one thread, and each wakes the next before it begins, if calls wait:
    those that return at once are done by the few threads that are up, one that blocks has
    another up behind it.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        *,
        most: int | None = None,
        idle: float = _IDLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the connector's name, how many calls run, and the bound on all threads."""
        self.name = name
        self.threads = threads
        self.most = max(threads, threads * _MOST if most is None else most)
        self.idle = idle
        self._clock = clock
        self._changing = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._idle: list[_Worker] = []  # the last to come is the first to go on: others age out
        self._roused: _Worker | None = None  # woken or begun, and has yet to look for a call
        self._live = 0  # threads that are not abandoned, idle and roused ones included
        self._abandoned: dict[_Job, None] = {}
        self._abandoned_total = 0
        self._closed = False

    @property
    def running(self) -> int:
        """Calls on threads, abandoned ones left out."""
        return self._live - len(self._idle) - (self._roused is not None)

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return len(self._queue)

    @property
    def abandoned_total(self) -> int:
        """Calls abandoned since the start, ended ones included."""
        return self._abandoned_total

    def abandoned(self) -> list[AbandonedCall]:
        """List the abandoned calls that still run, longest first; from any thread."""
        now = self._clock()
        with self._changing:
            return [
                AbandonedCall(
                    self.name, job.operation, job.left, now - job.left, job.thread, job.late
                )
                for job in self._abandoned
            ]

    async def run(
        self,
        operation: str,
        function: Callable[..., Any],
        follow: Callable[[Awaitable[Any]], Awaitable[Any]] | None = None,
        /,
        **arguments: Any,
    ) -> Any:
        """Run ``function`` on a thread, in the caller's context, to its value or exception.

        Cancel it to leave: what waits is never begun, what runs is abandoned. With ``follow``, a
        value that is itself to be awaited is awaited here, by way of it.

        Raises:
            UnavailableError: Every thread there may be is abandoned, or the pool is closed.
        """
        job = _Job(operation, function, arguments)
        self._submit(job)
        try:
            value, error = await job.done
        except asyncio.CancelledError:
            self._leave(job)  # nothing is left of it if the connector itself raised
            raise
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and with it the request
        if follow is not None and _is_awaitable(value):
            return await follow(value)
        return value

    def close(self) -> None:
        """Refuse new calls and those that wait; calls that run go on to their end; fine twice."""
        with self._changing:
            self._closed = True
            waiting, idle = list(self._queue), list(self._idle)
            self._queue.clear()
            self._idle.clear()
            self._live -= len(idle)
            for worker in idle:
                worker.retired = True
                worker.wake()
        for job in waiting:
            job.settle((None, self._refusal()))

    # --- the callers' side ---------------------------------------------------------------------

    def _submit(self, job: _Job) -> None:
        with self._changing:
            if self._closed or len(self._abandoned) >= self.most:
                raise self._refusal()
            self._queue.append(job)
            if self._roused is None:
                self._rouse()
                if not self._live:  # the machine has no thread left, and none of ours would come
                    self._queue.remove(job)
                    raise self._refusal()

    def _leave(self, job: _Job) -> None:
        """Give up on a call: drop it, or abandon its thread and let another take its place."""
        refused: list[_Job] = []
        with self._changing:
            if not job.thread:
                if job in self._queue:
                    self._queue.remove(job)
                return
            if job.ended:
                return
            deadline = DEADLINE.get()
            job.left = self._clock()
            job.late = deadline is not None and job.left >= deadline - _EARLY
            self._abandoned[job] = None
            self._abandoned_total += 1
            self._live -= 1
            if self._queue and self._roused is None:
                self._rouse()
            if not self._live:
                refused = list(self._queue)
                self._queue.clear()
            count = len(self._abandoned)
        for waiting in refused:
            waiting.settle((None, self._refusal()))
        _log.log(
            logging.WARNING if job.late else logging.INFO,
            "call abandoned: its thread runs on",
            extra={
                "connector": self.name,
                "operation": job.operation,
                "thread_name": job.thread,
                "reason": "deadline" if job.late else "caller left",
                "abandoned": count,
                "threads_left": self.most - count,
            },
        )

    def _rouse(self) -> None:
        """Wake the thread that worked last, or begin one, if there may be another."""
        if self._idle:
            self._roused = self._idle.pop()
            self._roused.wake()
        elif self._live < self.threads and self._live + len(self._abandoned) < self.most:
            worker = _Worker(self)
            try:
                worker.start()
            except RuntimeError:  # the machine, or the pod's limit, has no thread left
                _log.warning("no thread can be started", extra={"connector": self.name})
                return
            self._live += 1
            self._roused = worker

    def _refusal(self) -> UnavailableError:
        if self._closed:
            return UnavailableError(
                f"{self.name} cannot take calls: the service is shutting down.",
                retry_after=_RETRY_AFTER,
            )
        return UnavailableError(
            f"{self.name} has no thread left: {len(self._abandoned)} calls overran their deadline"
            f" and still run, which is as many as may; try again later.",
            retry_after=_RETRY_AFTER,
        )

    # --- the threads' side ---------------------------------------------------------------------

    def take(self, worker: _Worker, ended: _Job | None) -> _Job | None:
        """Return the next call for ``worker``, which has ``ended`` one; None is none now.

        A worker that is ``retired`` thereafter gets no more for ever.
        """
        with self._changing:
            if ended is not None:
                ended.ended = True
                if self._abandoned and ended in self._abandoned:
                    del self._abandoned[ended]
                    if self._live >= self.threads:
                        worker.retired = True
                        return None
                    self._live += 1
            elif self._roused is worker:
                self._roused = None
            if self._queue:
                job = self._queue.popleft()
                job.thread = worker.shown(job.operation)
                if self._queue and self._roused is None:
                    self._rouse()
                return job
            if self._closed:
                self._live -= 1
                worker.retired = True
            else:
                self._idle.append(worker)
            return None

    def age(self, worker: _Worker) -> bool:
        """Let a worker go that was idle for long, unless it is woken in this very moment."""
        with self._changing:
            if worker in self._idle:
                self._idle.remove(worker)
                self._live -= 1
                worker.retired = True
            return worker.retired


class _Job:
    """One call on its way through the pool; the pool's lock guards what changes."""

    __slots__ = (
        "_arguments",
        "_box",
        "_context",
        "_function",
        "done",
        "ended",
        "late",
        "left",
        "operation",
        "thread",
    )

    def __init__(
        self, operation: str, function: Callable[..., Any], arguments: Mapping[str, Any]
    ) -> None:
        self.operation = operation
        self._function = function
        self._arguments = arguments
        self._context = contextvars.copy_context()
        self._box = box = Mailbox.here()
        self.done: asyncio.Future[Outcome] = box.loop.create_future()
        self.thread = ""  # where it runs or ran
        self.ended = False
        self.left = 0.0
        self.late = False

    def execute(self) -> Outcome:
        return self._context.run(capture, self._function, self._arguments)

    def settle(self, outcome: Outcome) -> None:
        self._box.put(self.done, outcome)


class _Worker(threading.Thread):
    """One thread; a daemon, so that code which never returns does not keep the process."""

    def __init__(self, pool: Threads) -> None:
        super().__init__(name=f"connector-{pool.name}-idle", daemon=True)
        self.pool = pool
        self.retired = False
        self._asleep = threading.Lock()  # held by who sleeps, released by who wakes it
        self._asleep.acquire()
        self.wake = self._asleep.release

    def shown(self, operation: str) -> str:
        """Have the thread's name tell what it does, and return the name."""
        name = f"connector-{self.pool.name}-{operation}"
        if name != self.name:
            self.name = name
        return name

    def run(self) -> None:
        pool = self.pool
        job = pool.take(self, None)
        while True:
            while job is not None:
                outcome = job.execute()
                # The thread is free before its caller hears of it, so that one call after another
                # runs on one thread; and a caller who leaves in between leaves nothing behind.
                following = pool.take(self, job)
                job.settle(outcome)
                # An idle thread must not keep a request, or what came of it, alive.
                del outcome
                job = following
            if self.retired:
                return
            self.shown("idle")
            if not self._asleep.acquire(timeout=pool.idle):
                if pool.age(self):
                    return
                self._asleep.acquire()
            if self.retired:
                return
            job = pool.take(self, None)


def _is_awaitable(value: Any) -> bool:
    """Tell what ``inspect.isawaitable`` does, for a fraction of its time."""
    kind = type(value)
    if kind is GeneratorType:
        return bool(value.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE)
    return hasattr(kind, "__await__")
