"""Keeps a failing poll from killing a healthy job, and a poll from reaching the backend twice.

The client counts failed polls over the whole life of a task, never back, and after six it never
asks again: the task fails, or hangs for ever in the phase that was seen last. So a poll that
cannot be answered is answered with what was known, until patience runs out.

All of this is memory of one process, bounded, and lost when it ends: a restart, or another
replica, begins with RUNNING and with fresh patience. An entry of a running job costs about 490
bytes and 620 while it fails (measured with 500,000 jobs), of an end about 500. At most 500,000
running jobs are kept, the number that the client itself remembers, and ends up to 64 MiB by our
own count, which is 104,000 short ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import secrets
import time
from typing import TYPE_CHECKING, Any

from flyteidl.core.execution_pb2 import TaskExecution

from connector_service.codec.convert import MESSAGES
from connector_service.errors import AuthorError, BackendError, DeadlineError
from connector_service.runtime import settle
from connector_service.runtime.faults import Fault, is_unmapped_state, judge
from connector_service.runtime.known import (
    LONGEST_TEXT,
    End,
    Job,
    Trouble,
    job_id,
    job_key,
    say_unknown,
    say_why,
)
from connector_service.runtime.memory import Memory
from connector_service.runtime.poll import Ask, PollEvent, Source
from connector_service.runtime.sizes import bound, elide
from connector_service.sdk.resource import is_terminal_phase
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from connector_service.runtime.call import Call
    from connector_service.sdk.resource import TaskCategory

__all__ = ["PollEvent", "Polls", "Source"]

_log = logging.getLogger(__name__)

_MOST_JOBS = 500_000
_MOST_STATE = 384 * 1024 * 1024  # bytes of phases, messages and replies of running jobs
_MOST_ENDS = 64 * 1024 * 1024  # bytes of terminal replies
_LARGEST_KEPT = 64 * 1024  # bytes of one reply
_ENTRY = 600  # bytes of an entry beside its texts
# Time in which nobody asked is no evidence: only so much of a pause counts against patience.
_LONGEST_GAP = 600.0
_LONGEST_PAUSE = 300.0  # seconds that a backend's Retry-After keeps polls away from it
_LOG_BUG_EVERY = 600.0  # seconds, per job
_LOG_FAULT_EVERY = 60.0  # seconds, per task category
# One client has ten pollers for the jobs of all connectors. While a backend does not answer at
# all, each poll is answered after so long, for a minute from its last timeout; the call itself
# goes on, and what it brings is known to the next poll.
_HURRY = 1.0
_HURRY_FOR = 60.0
_IDLE = 86_400.0  # seconds until a job that nobody polls is forgotten
_LOOK_EVERY = 1.0  # seconds between two looks for such, when there was none

_KNOWN = frozenset(TaskExecution.Phase.values()) - {TaskExecution.UNDEFINED}
_GOING_ON = frozenset(phase for phase in _KNOWN if not is_terminal_phase(phase))
_TINY = 128  # bytes of a reply in which nothing can need to be cut
# Flyte 1's deprecated field, which its client reads where the phase is UNDEFINED. Its zero,
# RETRYABLE_FAILURE, is also "never set", and is not believed.
_PHASE_OF_STATE = {
    1: TaskExecution.FAILED,
    2: TaskExecution.QUEUED,
    3: TaskExecution.RUNNING,
    4: TaskExecution.SUCCEEDED,
}


class Polls:
    """Answers polls: from the connector, from memory, or with what was known last.

    ``count`` hears of every ``PollEvent`` with the task category, for the metrics. Calls come with
    the category of a route: what is kept for each category is bounded by what is registered.
    """

    def __init__(
        self,
        count: Callable[[PollEvent, TaskCategory], None] = lambda _event, _category: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        most_jobs: int = _MOST_JOBS,
    ) -> None:
        """Start knowing nothing."""
        self._count = count
        self._clock = clock
        self._wall = wall
        self._jobs: Memory[Job] = Memory(most_jobs, _MOST_STATE)
        self._ends: Memory[End] = Memory(most_jobs, _MOST_ENDS)
        self._asking: dict[bytes, Ask] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._look_at = 0.0
        self._logged: dict[TaskCategory, float] = {}
        self._timed_out: dict[TaskCategory | None, float] = {}

    def poll(self, source: Source, call: Call) -> Awaitable[Any]:
        """Return the job's ``Resource`` in the call's protocol, at the latest at its deadline.

        Callers share an answer: the connector is given ``get_timeout`` for it. One that can wait so
        long asks in its own task; when it leaves, the others ask again. For one that can not, a
        task of its own asks, and goes on without it.

        Raises:
            CallError: The call cannot be answered at all: not this connector's meta, no such
                operation. Nothing else that the source raises comes out.
        """
        now = self._clock()
        if now >= self._look_at:
            self._forget_idle(now)
        key = job_key(call)
        job = self._jobs.get(key) if key in self._jobs.keys else None
        deadline = call.deadline
        ask = Ask(key, call, source, job)
        if (
            (deadline is None or deadline - now >= source.policy.get_timeout)
            and not self._timed_out
            and (job is None or job.not_before <= now)
            and key not in self._asking
            and key not in self._ends.keys
        ):
            return self._bring(ask, now)
        return self._answer(ask, now)

    async def _answer(self, ask: Ask, now: float) -> Any:
        """Answer from memory, with others, or within what the caller can wait."""
        key, call, timeout = ask.key, ask.call, ask.source.policy.get_timeout
        known = self._remembered(key, call, now)
        if known is not None:
            self._tell(PollEvent.REMEMBERED, call)
            return known
        waits = self._waits(call, now)
        asking = self._asking.get(key)
        if asking is not None:
            self._tell(PollEvent.SHARED, call)
            answer = await self._join(asking, timeout if waits is None else waits)
        elif waits is None or waits >= timeout:
            return await self._bring(ask, now)
        else:
            self._asking[key] = ask
            self._apart(ask)
            answer = await self._join(ask, waits)
        if answer is None:
            self._tell(PollEvent.ABSORBED, call)
            return self._last_known(call, self._jobs.get(key), "no answer within the deadline")
        if isinstance(answer, BaseException):
            try:
                raise answer
            finally:
                del answer  # its traceback holds this frame, and with it the request
        return answer

    async def close(self) -> None:
        """Stop what is asked without a caller; who waits for it is answered with what is known."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- memory --------------------------------------------------------------------------------

    def _remembered(self, key: bytes, call: Call, now: float) -> Any | None:
        end = self._ends.get(key)
        if end is not None:
            if now < end.until:
                return MESSAGES[call.protocol].resource.FromString(end.reply)
            self._ends.drop(key)
        job = self._jobs.get(key)
        if job is None or now >= job.not_before or key in self._asking:
            return None
        job.seen = now
        if job.trouble is not None:
            return self._last_known(call, job, job.trouble.why)
        if job.reply is not None:
            return MESSAGES[call.protocol].resource.FromString(job.reply)
        return MESSAGES[call.protocol].resource(phase=job.phase, message=job.message)

    def _keep(self, key: bytes, job: Job) -> None:
        weight = _ENTRY + len(job.message) + len(job.reply or b"")
        self._jobs.put(key, job, weight)

    def _end(self, ask: Ask, resource: Any) -> Any:
        """Remember how a job ended; a large reply is asked for again instead."""
        if ask.key in self._jobs.keys:
            self._jobs.drop(ask.key)
        reply = resource.SerializeToString()
        if ask.source.policy.terminal_retention and len(reply) <= _LARGEST_KEPT:
            until = self._clock() + ask.source.policy.terminal_retention
            self._ends.put(ask.key, End(until, reply), _ENTRY + len(reply))
        return resource

    def _forget_idle(self, now: float) -> None:
        """Drop the oldest where its time is over, and note when the next one's may be."""
        jobs, ends = self._jobs.oldest(), self._ends.oldest()
        if jobs is not None and now - jobs[1].seen > _IDLE:
            self._jobs.drop(jobs[0])
        elif ends is not None and now >= ends[1].until:
            self._ends.drop(ends[0])
        else:
            self._look_at = now + _LOOK_EVERY

    # --- asking --------------------------------------------------------------------------------

    def _waits(self, call: Call, now: float) -> float | None:
        """Say how long a caller waits for the connector's answer; None is without end."""
        left = None if call.deadline is None else max(0.0, call.deadline - now)
        if self._timed_out and now - self._timed_out.get(call.category, -math.inf) < _HURRY_FOR:
            left = _HURRY if left is None else min(left, _HURRY)
        return left

    async def _join(self, ask: Ask, waits: float) -> Any:
        """Wait for what another task brings; None is no answer in time."""
        if ask.joined is None:
            ask.joined = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait({ask.joined}, timeout=waits)
        return ask.joined.result() if done else None

    async def _bring(self, ask: Ask, now: float) -> Any:  # noqa: PLR0912 - a coroutine less
        """Ask in this task, for all who join; apart from any caller an exception is returned."""
        if self._asking.setdefault(ask.key, ask) is not ask:  # another was awaited first
            return await self._answer(ask, self._clock())
        source, bulkhead = ask.source, ask.source.bulkhead
        try:
            try:
                try:
                    deadline = now + source.policy.get_timeout
                    since = bulkhead.enter(deadline, now)
                    if since is None:
                        since = await bulkhead.wait(deadline)
                    try:
                        resource = await source.fetch(ask.call, deadline)
                    finally:
                        bulkhead.leave(since)
                except Exception as error:  # noqa: BLE001 - every fault is judged
                    answer = await self._failed(ask, error)
                else:
                    answer = self._answered(ask, resource)
            except Exception:  # noqa: BLE001 - ours, or one that fails when looked at
                _log.exception("a poll could not be judged", extra={"job": job_id(ask.key)})
                answer = self._last_known(ask.call, self._jobs.get(ask.key), "the service erred")
        except BaseException:
            if ask.joined is None or ask.apart:
                del self._asking[ask.key]
                if ask.joined is not None:
                    ask.joined.set_result(None)
            else:  # its own caller has left, others have not
                self._apart(ask)
            raise
        del self._asking[ask.key]
        if ask.joined is not None:
            ask.joined.set_result(answer)
        if isinstance(answer, BaseException) and not ask.apart:
            try:
                raise answer
            finally:
                del answer  # as above
        return answer

    def _apart(self, ask: Ask) -> None:
        """Ask in a task of its own, which goes on when those who wait have left."""
        ask.apart = True
        task = asyncio.create_task(self._bring(ask, self._clock()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answered(self, ask: Ask, resource: Any) -> Any:
        if self._timed_out:
            self._timed_out.pop(ask.call.category, None)
        phase, job = resource.phase, ask.job
        if (  # a phase and a few words, as with most polls
            phase in _GOING_ON
            and resource.ByteSize() <= _TINY
            and not ask.source.policy.min_poll_interval
        ):
            now, message = self._clock(), resource.message
            if (
                job is not None
                and job.phase == phase
                and job.message == message
                and job.trouble is None
            ):
                job.seen = job.known_at = now
            else:
                self._jobs.put(ask.key, Job(now, phase, message, now), _ENTRY + len(message))
            return resource
        if phase not in _KNOWN:
            self._tell(PollEvent.UNMAPPED, ask.call)
            state = getattr(resource, "state", 0)
            resource = copy.copy(resource)  # it may be the connector's own, and answer again
            resource.phase = _PHASE_OF_STATE.get(state, TaskExecution.RUNNING)
        try:
            if resource.ByteSize() > _TINY:
                resource = bound(resource)
        except AuthorError as error:
            # The job is done and its result cannot pass: another attempt would end here too.
            resource = settle.ended(
                ask.call.protocol,
                TaskExecution.FAILED,
                str(error),
                code="ReplyTooLarge",
                origin="user",
            )
        if resource.phase not in _GOING_ON:
            return self._end(ask, resource)
        self._note(ask, resource)
        return resource

    def _note(self, ask: Ask, resource: Any) -> None:
        """Remember the phase of a job that goes on."""
        now, phase, message = self._clock(), resource.phase, resource.message
        if len(message) > LONGEST_TEXT // 4:  # few are: it is their bytes that count
            message = elide(message, LONGEST_TEXT)
        job = self._jobs.get(ask.key)
        least = ask.source.policy.min_poll_interval
        if (
            job is None
            or least
            or job.trouble is not None
            or job.message != message
            or job.phase != phase
        ):
            job = Job(now, phase, message, now)
            if least:
                job.not_before = now + least
                reply = resource.SerializeToString()
                job.reply = reply if len(reply) <= _LARGEST_KEPT else None
            self._keep(ask.key, job)
        else:  # nothing new
            job.seen = job.known_at = now

    async def _failed(self, ask: Ask, error: Exception) -> Any:
        """Answer for a poll that failed: with an end, with patience, or with the error itself."""
        call = ask.call
        if is_unmapped_state(error):
            text = f"The connector does not know what its backend says: {redact(str(error))}"
            return self._answered(
                ask, MESSAGES[call.protocol].resource(phase=TaskExecution.UNDEFINED, message=text)
            )
        verdict = judge(error, ask.source.permanent, wall=self._wall)
        if verdict.fault is Fault.REFUSED:
            return error
        if verdict.fault is Fault.GONE:
            return self._end(
                ask, self._retryable(call, f"The job is gone: {say_why(error)}", error)
            )
        if verdict.fault in (Fault.PERMANENT, Fault.INVALID):
            # The client asks no more after FAILED, and sends no DeleteTask either.
            await self._delete(ask)
            return self._end(ask, settle.failure(call.protocol, error))
        job = self._troubled(ask, error, verdict.fault is Fault.BUG, verdict.retry_after)
        trouble: Any = job.trouble
        grace = ask.source.policy.unknown_status_grace
        if trouble.waited >= grace or (
            trouble.is_bug and trouble.waited_for_bug >= ask.source.policy.bug_grace
        ):
            return await self._give_up(ask, job, error)
        self._tell(PollEvent.ABSORBED, call)
        return self._last_known(call, job, trouble.why)

    def _troubled(self, ask: Ask, error: Exception, is_bug: bool, retry_after: float | None) -> Job:
        """Note one more poll that told nothing."""
        now = self._clock()
        job = self._jobs.get(ask.key) or Job(seen=now)
        trouble = job.trouble or Trouble(since=now, seen=now)
        gap = min(now - trouble.seen, _LONGEST_GAP)
        trouble.waited += gap
        # A bug's shorter patience begins with its first failure, and with a fault in between anew.
        trouble.waited_for_bug = trouble.waited_for_bug + gap if trouble.is_bug and is_bug else 0.0
        trouble.is_bug = is_bug
        if isinstance(error, DeadlineError):
            self._timed_out[ask.call.category] = now
        trouble.seen = job.seen = now
        job.trouble = trouble
        pause = min(retry_after or 0.0, _LONGEST_PAUSE)
        job.not_before = now + max(pause, ask.source.policy.min_poll_interval)
        self._log_trouble(ask, trouble, error, now)
        trouble.why = say_why(error, trouble.incident)
        self._keep(ask.key, job)
        return job

    async def _give_up(self, ask: Ask, job: Job, error: Exception) -> Any:
        """End a job whose status nobody could tell for too long."""
        call = ask.call
        self._tell(PollEvent.GAVE_UP, call)
        deleted = await self._delete(ask)
        fate = (
            "It was deleted, so that a retry does not run beside it."
            if deleted
            else "It could not be deleted and may still be running."
        )
        why = job.trouble.why if job.trouble else ""
        text = f"{say_unknown(job, why, self._clock(), self._wall)} {fate}"
        _log.error(
            "gave a job up",
            extra={
                "task_type": call.category.name if call.category else "",
                "job": job_id(ask.key),
                "deleted": deleted,
                "reason": text,
            },
        )
        return self._end(ask, self._retryable(call, text, error))

    async def _delete(self, ask: Ask) -> bool:
        try:
            async with asyncio.timeout(ask.source.policy.delete_timeout):
                await ask.source.delete(ask.call)
        except Exception as error:  # noqa: BLE001 - as well as can be
            if judge(error, ask.source.permanent).fault is Fault.GONE:
                return True
            self._tell(PollEvent.ORPHANED, ask.call)
            _log.warning(
                "could not delete a job that was given up",
                extra={"job": job_id(ask.key), "reason": say_why(error)},
            )
            return False
        return True

    # --- telling -------------------------------------------------------------------------------

    def _retryable(self, call: Call, text: str, error: Exception) -> Any:
        code = "StatusUnknown"
        if isinstance(error, BackendError):
            with contextlib.suppress(Exception):  # a connector's subclass may fail at its own code
                code = str(error.code)
        return settle.ended(call.protocol, TaskExecution.RETRYABLE_FAILED, text, code=code)

    def _last_known(self, call: Call, job: Job | None, why: str) -> Any:
        job = job or Job(seen=self._clock())
        resource: Any = MESSAGES[call.protocol].resource(
            phase=job.phase, message=say_unknown(job, why, self._clock(), self._wall)
        )
        return bound(resource)

    def _log_trouble(self, ask: Ask, trouble: Trouble, error: Exception, now: float) -> None:
        category = ask.call.category
        facts = {"task_type": category.name if category else "", "job": job_id(ask.key)}
        if trouble.is_bug:
            if trouble.logged is None or now - trouble.logged >= _LOG_BUG_EVERY:
                trouble.logged = now
                trouble.incident = secrets.token_hex(4)
                _log.error(
                    "a connector's get failed with what looks like a bug; the job's status is"
                    " unknown",
                    extra={**facts, "incident": trouble.incident},
                    exc_info=error,
                )
        elif category and now - self._logged.get(category, -_LOG_FAULT_EVERY) >= _LOG_FAULT_EVERY:
            # One line a minute for all jobs of a type: an outage has as many faults as jobs.
            self._logged[category] = now
            _log.warning(
                "polls fail; jobs keep their phase", extra={**facts, "error": say_why(error)}
            )

    def _tell(self, event: PollEvent, call: Call) -> None:
        if call.category is not None:
            self._count(event, call.category)
