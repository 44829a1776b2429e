"""Creates each job once: duplicates join, repeats get the first answer, orphans are deleted.

The client's delivery is "at least once": it repeats a create with the same output prefix after a
crash, a conflict or an error elsewhere in its round, and a create that timed out at the client
leaves a job behind of which it knows nothing. Here a create that has to wait runs in a task of its
own, which its callers wait for, each until its own deadline. When the last of them has gone the
task goes on; what it made is then owed: to a repeat within the grace, or else to the connector's
``delete``. A create that never waits has ended before any caller can leave or join.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

from connector_service.errors import DeadlineError, LedgerDownError, UnavailableError
from connector_service.runtime.ahead import Ahead
from connector_service.runtime.alarms import Alarms
from connector_service.runtime.ledger import Found, Held, Job, Ledger, Recorded, Reserved
from connector_service.runtime.running import Limits, Running, cut_short, key_held

if TYPE_CHECKING:
    from connector_service.sdk.resource import TaskCategory

__all__ = ["CreateOnce", "Limits", "Run", "idempotency_key"]

_log = logging.getLogger(__name__)

Run = Callable[[str], Awaitable[bytes]]

_LEASE = 15.0  # seconds; when a replica dies, its creates can be repeated elsewhere after these
_MOST_RUNNING = 10_000
_FIRST_POLL, _LAST_POLL = 0.05, 1.0  # seconds between two looks at a key that another holds
_RECORD_FOR = 600.0  # seconds in which a record is tried again while the ledger is down
_QUIET = 30.0  # seconds between two log lines that say the ledger is down
_UNGUARDED = Reserved()  # of a ledger that is down


def idempotency_key(category: TaskCategory, output_prefix: str) -> str:
    """Return the key of a create, 32 hexadecimal digits; empty without an output prefix.

    The prefix is unique per node and attempt, and repeats exactly when the create does.
    """
    if not output_prefix:
        return ""
    text = f"{category.name}\0{category.version}\0{output_prefix}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class CreateOnce:
    """Runs creates so that each key has one job; ``start`` it, ``close`` it."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        ledger_down: Literal["refuse", "continue"] = "refuse",
        on_unguarded: Callable[[TaskCategory], None] = lambda _: None,
        lease: float = _LEASE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take the ledger, what to do without it, and whom to tell of a create without it.

        A running create holds its key for ``lease`` seconds, renewed three times in each.
        ``clock`` is the one that deadlines are on.
        """
        self._ledger = ledger
        self._refuse = ledger_down == "refuse"
        self._on_unguarded = on_unguarded
        self._lease = lease
        self._clock = clock
        self._sleep = sleep
        self._alarms = Alarms()
        self._ahead = Ahead()
        self._name = secrets.token_hex(8)
        self._count = 0
        self._running: dict[str, Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._closing = False
        self._said = -_QUIET

    @property
    def running(self) -> int:
        """Count the creates that run, with or without callers."""
        return len(self._tasks)

    async def start(self) -> None:
        """Begin to renew the leases of creates that run."""
        self._renewing = asyncio.create_task(self._keep_renewing(), name="renew-leases")

    async def close(self, grace: float) -> None:
        """Refuse new creates, give those that run ``grace`` seconds, leave the rest reserved.

        A reservation that is left ends with its lease, and the job can then be asked for again.
        """
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        left = list(self._tasks)
        if left:
            _log.warning("creates_cut_short", extra={"count": len(left)})
        if self._renewing is not None:
            left.append(self._renewing)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._ahead.close()

    async def create(
        self,
        category: TaskCategory,
        key: str,
        run: Run,
        limits: Limits,
        *,
        deadline: float | None = None,
    ) -> bytes:
        """Return the resource meta of the one job of ``key``, made by ``run`` if need be.

        ``run`` gets the idempotency key. It may go on for ``create_limit`` seconds after every
        caller has gone, so it must not end with this call's deadline.

        Raises:
            DeadlineError: The deadline passed while the create ran; it goes on.
            UnavailableError: Another replica creates the job, the ledger is down, or the service
                is leaving. Every other error is ``run``'s own.
        """
        if deadline is not None and deadline <= self._clock():
            raise DeadlineError("The deadline passed before the create began.")
        running = self._running.get(key) if key else None
        if running is None:
            if self._closing or len(self._tasks) >= _MOST_RUNNING:
                raise self._refusal()
            self._count += 1
            running = Running(category, key, limits, f"{self._name}-{self._count}")
            if key:
                self._running[key] = running
            # Until it waits nobody can leave, or join: no future, timer or alarm is needed.
            running.callers = 1
            make = self._make if key else self._make_freely
            try:
                task = self._ahead.begin(make(running, run))
            except asyncio.CancelledError:  # it cancelled itself: nobody else can have
                raise cut_short() from None
            if task is None:
                return running.answer()
            running.callers = 0
            self._go_on(running, task)
        return await self._wait(running, deadline)

    async def renew(self) -> None:
        """Prolong the lease of every create that runs, once."""
        held = [(key, one.owner) for key, one in self._running.items() if one.reserved]
        if not held:
            return
        try:
            lost = await self._ledger.renew(held, self._lease)
        except LedgerDownError as error:
            self._say_down(error)
            return
        for key in lost:
            one = self._running.get(key)
            # While it is recorded the key is no reservation any more, and is not lost either.
            if one is not None and one.reserved and not one.recording:
                one.reserved = False
                _log.warning("create_lease_lost", extra={"key": key, "task": str(one.category)})

    async def _keep_renewing(self) -> None:
        while True:
            await self._sleep(self._lease / 3)
            await self.renew()

    def _refusal(self) -> UnavailableError:
        """Say why no create begins now."""
        if self._closing:
            return UnavailableError("The service is leaving; another one takes creates.")
        return UnavailableError(
            f"{_MOST_RUNNING} creates are running here; this one was not begun.",
            retry_after=1.0,
        )

    def _go_on(self, running: Running, task: asyncio.Task[None]) -> None:
        """See to a create that waits, and has a task now."""
        running.task = task
        self._keep(task)
        if running.until is not None:
            self._set_alarm(running, running.until, task)
        # A task that was cancelled before its first step runs no `finally` of its own.
        task.add_done_callback(running.ended)

    def _keep(self, task: asyncio.Task[None]) -> None:
        """Remember what must end though every caller leaves."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait(self, running: Running, deadline: float | None) -> bytes:
        """Wait for the answer as one of its callers, no longer than the deadline."""
        remaining = None if deadline is None else deadline - self._clock()
        turn = running.enter()
        timer = None
        try:
            if turn is not None:
                if remaining is not None:
                    timer = asyncio.get_running_loop().call_later(remaining, _give_up, turn)
                if await turn and not running.answered:
                    raise running.late()
            meta = running.answer()
            running.taken = True
            return meta
        finally:
            if timer is not None:
                timer.cancel()
            running.leave(turn)
            if running.deserted:
                self._deserted(running)

    def _deserted(self, running: Running) -> None:
        """See to a create whose last caller has gone, with the answer or without it."""
        if running.cancellable and running.task is not None:
            self._remove(running)
            running.task.cancel()
        elif running.handed_out is not None:
            self._remove(running)  # from here on a repeat asks the ledger
            if not running.taken and running.handed_out:
                self._keep(asyncio.create_task(self._withdraw(running, running.handed_out)))

    def _remove(self, running: Running) -> None:
        if self._running.get(running.key) is running:
            del self._running[running.key]

    async def _make_freely(self, running: Running, run: Run) -> None:
        """Create without a key: there is nothing to join, and nothing to remember."""
        running.cancellable = True
        try:
            running.settle(await run(""))
        except Exception as error:  # noqa: BLE001 - the caller gets it
            running.settle(error)

    async def _make(self, running: Running, run: Run) -> None:  # noqa: PLR0912 - as one coroutine
        """Bring one key to its answer, and see the answer handed out or owed."""
        try:
            found: Found
            try:
                found = await self._ledger.reserve(running.key, running.owner, self._lease)
            except LedgerDownError as error:
                found = self._without_ledger(running, error)
            if isinstance(found, Held):
                found = await self._wait_for_key(running, found)
            if isinstance(found, Reserved):
                running.creating = True
                running.reserved = found is not _UNGUARDED
                if not running.callers:
                    self._remove(running)
                    await self._release(running)
                    return
                running.until = time.monotonic() + running.limits.create_limit
                if running.task is not None:  # else it is set when there is one
                    self._set_alarm(running, running.until, running.task)
                key, generation = running.key, found.generation
                try:
                    meta = await run(f"{key}-{generation}" if generation else key)
                except (Exception, asyncio.CancelledError) as error:
                    await self._failed(running, error)
                    raise
                if running.alarm is not None:
                    running.stop_alarm()
                stands = await self._record(running, meta)
                if stands.meta != meta:
                    await self._disown(running, meta)
            else:
                stands = found
            if running.callers and stands.delivery:
                running.handed_out = stands.delivery
                running.settle(stands.meta)  # the last of them to go does what is left to be done
            else:
                await self._hand_out(running, stands)
        except Exception as error:  # noqa: BLE001 - every caller gets it
            running.settle(error)
        finally:
            if self._running.get(running.key) is running:
                del self._running[running.key]

    def _without_ledger(self, running: Running, error: LedgerDownError) -> Reserved:
        """Let a create begin that nobody will remember, where the settings say so."""
        self._say_down(error)
        if self._refuse:
            raise error
        self._on_unguarded(running.category)
        return _UNGUARDED

    async def _wait_for_key(self, running: Running, found: Found) -> Reserved | Recorded:
        """Wait for another holder of the key as long as any caller does."""
        pause = _FIRST_POLL
        while isinstance(found, Held):
            # Asleep it may be cancelled: nothing of its own is held then.
            running.cancellable = True
            if running.deserted:
                raise key_held()
            await self._sleep(min(pause, max(found.retry_after, _FIRST_POLL)))
            running.cancellable = False
            pause = min(pause * 1.5, _LAST_POLL)
            try:
                found = await self._ledger.reserve(running.key, running.owner, self._lease)
            except LedgerDownError as error:
                found = self._without_ledger(running, error)
        return found

    def _set_alarm(self, running: Running, until: float, task: asyncio.Task[None]) -> None:
        """Have a create that waits cancelled at its limit."""
        self._alarms.task()  # the slots are those of the loop that runs
        slot = self._alarms.slot(until, time.monotonic())
        slot[running] = task
        running.alarm = slot

    async def _failed(self, running: Running, error: BaseException) -> None:
        """Free the key of a create that failed, and tell when it failed for its limit.

        Raises:
            DeadlineError: It did not end within its limit.
        """
        late = running.stop_alarm()
        if late and running.task is not None:
            running.task.uncancel()
        elif isinstance(error, asyncio.CancelledError):
            return
        await self._release(running)
        if late:
            raise DeadlineError(
                f"The create did not end within create_limit ({running.limits.create_limit:g} s)."
            ) from error

    async def _release(self, running: Running) -> None:
        if not running.reserved:
            return
        running.reserved = False
        try:
            await self._ledger.release(running.key, running.owner)
        except LedgerDownError as error:  # its lease ends by itself
            self._say_down(error)

    async def _record(self, running: Running, meta: bytes) -> Recorded:
        """Write what was created; callers do not wait for a ledger that is down."""
        limits = running.limits
        job = Job(running.category, meta, limits.create_retention, limits.orphan_grace)
        until, pause = self._clock() + _RECORD_FOR, _FIRST_POLL
        running.recording = True
        while True:
            wanted = running.taken or running.callers > 0
            try:
                stands = await self._ledger.record(
                    running.key, running.owner, job, delivered=wanted
                )
            except LedgerDownError as error:
                self._say_down(error)
                running.settle(meta)  # the job exists: its id must not be lost with the ledger
                if self._clock() > until:
                    _log.exception("job_not_recorded", extra={"key": running.key})
                    raise
            else:
                running.reserved = False
                return stands
            await self._sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _disown(self, running: Running, meta: bytes) -> None:
        """Have a second job deleted, whose lease was lost to one that was recorded first."""
        category, retention = running.category, running.limits.create_retention
        if running.taken:
            _log.error("job_created_twice", extra={"key": running.key, "task": str(category)})
            return
        other = f"{running.key}+{hashlib.sha256(meta).hexdigest()[:16]}"
        _log.warning("second_job_deleted", extra={"key": other, "task": str(category)})
        second = Job(category, meta, retention, 0.0)
        await self._ledger.record(other, running.owner, second, delivered=False)

    async def _hand_out(self, running: Running, stands: Recorded) -> None:
        """Give callers the answer; note in the ledger whether any of them took it."""
        if stands.delivery == 0 and (running.taken or not running.deserted):
            # They joined while it was recorded as owed, or the answer was early.
            found = await self._ledger.reserve(running.key, running.owner, self._lease)
            if not isinstance(found, Recorded):
                raise key_held()
            stands = found
        if running.callers:
            running.handed_out = stands.delivery
            running.settle(stands.meta)
            return
        self._remove(running)  # from here on a repeat asks the ledger
        if not running.taken and stands.delivery:
            await self._withdraw(running, stands.delivery)

    async def _withdraw(self, running: Running, delivery: int) -> None:
        """Note that nobody took the answer: the job is to be deleted."""
        try:
            await self._ledger.withdraw(running.key, delivery, running.limits.orphan_grace)
        except LedgerDownError as error:
            _log.exception("orphan_not_noted", extra={"key": running.key, "why": error.public})

    def _say_down(self, error: LedgerDownError) -> None:
        now = self._clock()
        if now - self._said < _QUIET:
            return
        self._said = now
        choice = "refused" if self._refuse else "not guarded"
        _log.error("ledger_down", extra={"why": str(error), "creates": choice}, exc_info=error)


def _give_up(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(True)
