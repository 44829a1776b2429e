"""The threads of one connector's plain ``def`` code, and what becomes of those that overrun."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from connector_service.errors import UnavailableError
from connector_service.runtime.reply import Outcome, Reply, capture

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._idle_seconds = idle
        self._clock = clock
        self._changing = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._idle: list[_Worker] = []  # the last to come is the first to go on: others age out
        self._live = 0  # threads that are not abandoned, idle ones included
        self._abandoned: dict[_Job, None] = {}
        self._abandoned_total = 0
        self._closed = False

    @property
    def running(self) -> int:
        """Calls on threads, abandoned ones left out."""
        return self._live - len(self._idle)

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
        self, operation: str, function: Callable[[], Any], deadline: float | None = None
    ) -> Any:
        """Run ``function`` on a thread, in the caller's context, to its value or exception.

        Cancel it to leave: what waits is never begun, what runs is abandoned. ``deadline`` only
        tells the log which of the two reasons to leave it was.

        Raises:
            UnavailableError: Every thread there may be is abandoned, or the pool is closed.
        """
        job = _Job(operation, function)
        self._submit(job)
        try:
            return await job.reply
        except asyncio.CancelledError:
            self._leave(job, deadline)  # nothing is left of it if the connector itself raised
            raise

    def close(self) -> None:
        """Refuse new calls and those that wait; calls that run go on to their end; fine twice."""
        with self._changing:
            self._closed = True
            waiting, idle = list(self._queue), list(self._idle)
            self._queue.clear()
            self._idle.clear()
            self._live -= len(idle)
        for worker in idle:
            worker.inbox.put(None)
        for job in waiting:
            job.reply.settle((None, self._refusal()))

    # --- the callers' side ---------------------------------------------------------------------

    def _submit(self, job: _Job) -> None:
        with self._changing:
            if self._closed or len(self._abandoned) >= self.most:
                raise self._refusal()
            if self._idle:
                self._idle.pop().inbox.put(job)
            elif not (self._may_grow() and self._start(job)):
                if not self._live:  # the machine has no thread left, and none of ours would come
                    raise self._refusal()
                self._queue.append(job)

    def _leave(self, job: _Job, deadline: float | None) -> None:
        """Give up on a call: drop it, or abandon its thread and let another take its place."""
        refused: list[_Job] = []
        with self._changing:
            job.cancelled = True
            if not job.thread:
                if job in self._queue:
                    self._queue.remove(job)
                return
            if job.ended:
                return
            job.left = self._clock()
            job.late = deadline is not None and job.left >= deadline - _EARLY
            self._abandoned[job] = None
            self._abandoned_total += 1
            self._live -= 1
            while self._queue and self._may_grow() and self._start(self._queue[0]):
                self._queue.popleft()
            if not self._live:
                refused = list(self._queue)
                self._queue.clear()
            count = len(self._abandoned)
        for waiting in refused:
            waiting.reply.settle((None, self._refusal()))
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

    def _may_grow(self) -> bool:
        return self._live < self.threads and self._live + len(self._abandoned) < self.most

    def _start(self, job: _Job) -> bool:
        worker = _Worker(self, job)
        try:
            worker.start()
        except RuntimeError:  # the machine, or the pod's limit, has no thread left
            _log.warning("no thread can be started", extra={"connector": self.name})
            return False
        self._live += 1
        return True

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

    def begin(self, job: _Job, thread: str) -> bool:
        """Mark a call as running on ``thread``, unless its caller has gone."""
        with self._changing:
            if not job.cancelled:
                job.thread = thread
            return not job.cancelled

    def end(self, job: _Job, worker: _Worker) -> _Job | None:
        """Mark a call as ended and return the next; None is none now, or no more for ever."""
        with self._changing:
            job.ended = True
            if job in self._abandoned:
                del self._abandoned[job]
                if self._live >= self.threads:
                    worker.retired = True
                    return None
                self._live += 1
            if self._live <= self.threads and self._queue:
                return self._queue.popleft()
            if self._closed:
                self._live -= 1
                worker.retired = True
            else:
                self._idle.append(worker)
            return None

    def rest(self, worker: _Worker) -> _Job | None:
        """Wait for a call; None ends the thread: it was idle for long, or the pool closed."""
        try:
            return worker.inbox.get(timeout=self._idle_seconds)
        except Empty:
            with self._changing:
                if worker in self._idle:
                    self._idle.remove(worker)
                    self._live -= 1
                    return None
            return worker.inbox.get()  # a call came in this very moment


class _Job:
    """One call on its way through the pool; the pool's lock guards what changes."""

    def __init__(self, operation: str, function: Callable[[], Any]) -> None:
        self.operation = operation
        self.reply = Reply()
        self._function = function
        self._context = contextvars.copy_context()
        self.thread = ""
        self.cancelled = False
        self.ended = False
        self.left = 0.0
        self.late = False

    def execute(self) -> Outcome:
        return self._context.run(capture, self._function)


class _Worker(threading.Thread):
    """One thread; a daemon, so that code which never returns does not keep the process."""

    def __init__(self, pool: Threads, first: _Job) -> None:
        super().__init__(name=f"connector-{pool.name}", daemon=True)
        self.pool = pool
        self.inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self.inbox.put(first)
        self.retired = False

    def run(self) -> None:
        job = self.inbox.get()
        while job is not None:
            self.name = f"connector-{self.pool.name}-{job.operation}"
            outcome = job.execute() if self.pool.begin(job, self.name) else None
            # The thread is free before its caller hears of it, so that one call after another
            # runs on one thread; and a caller who leaves in between leaves nothing behind.
            following = self.pool.end(job, self)
            if outcome is not None:
                job.reply.settle(outcome)
            # An idle thread must not keep a request, or what came of it, alive.
            del job, outcome
            if following is None and not self.retired:
                self.name = f"connector-{self.pool.name}-idle"
                following = self.pool.rest(self)
            job = following
