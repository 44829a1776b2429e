"""One of a host's places for a child: who is in it, and who follows when that one ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, NamedTuple

from connector_service.errors import ConfigError, HostError
from connector_service.hosts.generation import Generation, StartError, surely
from connector_service.hosts.outer import HostStatus, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from connector_service.hosts.generation import Plan
    from connector_service.hosts.handshake import Offer

__all__ = ["Listener", "Worker"]

_log = logging.getLogger(__name__)

_MOST_DRAINING = 2  # children of one place that still drain; the next replacement waits
_MIB = 1024 * 1024


class Listener(NamedTuple):
    """Who hears of a worker: of events, and of each child that came up."""

    on_event: Callable[[str, str], None]
    on_up: Callable[[Offer], None]


class Worker:
    """Keeps one child running: starts it, starts it again, replaces it, ends it."""

    def __init__(self, plan: Plan, index: int, listener: Listener) -> None:
        """Take what all workers of the host share, and which of them this is."""
        self.index = index
        self.current: Generation | None = None
        self.restarts = 0
        self.error = ""
        self.next_try = 0.0  # on the monotonic clock
        self._plan = plan
        self._listener = listener
        self._number = 0
        self._waits = 0  # ends since one that lived long
        self._short = 0  # ends too soon, in a row
        self._started = False
        self._closing = False
        self._launching = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._first_round: asyncio.Future[None] | None = None
        self._living: set[Generation] = set()
        self._work: set[asyncio.Task[None]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._recycling: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Tell whether calls may be sent here."""
        return self.current is not None and self.current.alive

    @property
    def looping(self) -> bool:
        """Tell whether its children end again and again soon after their start."""
        return self._short >= self._plan.timing.crash_loop

    async def start(self) -> None:
        """Start the first child; return when it is up or has failed.

        Raises:
            ConfigError: No child can ever be started.
        """
        self._first_round = asyncio.get_running_loop().create_future()
        self._spawn(self._revive(0.0), "start")
        await self._first_round

    async def replace(
        self, check: Callable[[Offer], None], *, only: Generation | None = None
    ) -> None:
        """Put a fresh child in the place; the old one goes when its calls have ended.

        ``check`` raises HostError for what the fresh one offers. ``only`` says whom to replace.

        Raises:
            HostError: The fresh one did not come up or was refused; the old one stays.
        """
        task = self._spawn(self._replace(check, only), "replacement")
        try:
            await task
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if self._closing and not (own is not None and own.cancelling()):
                raise self._leaving() from None
            raise

    async def close(self, grace: float) -> None:
        """Let calls end within ``grace`` seconds and leave nothing behind."""
        self._closing = True
        # Whoever is starting a child takes it down with him.
        await _cancel(self._work)
        ending = [asyncio.ensure_future(child.retire(grace)) for child in self._living]
        try:
            await asyncio.gather(*ending)
        finally:
            for child in self._living:
                child.kill("the service was told to end at once")
            await asyncio.gather(*ending, *self._endings, return_exceptions=True)

    def state(self) -> WorkerState:
        """Tell how it is."""
        child = self.current
        return WorkerState(
            index=self.index,
            pid=child.pid if child is not None and child.alive else None,
            status=self._status(),
            restarts=self.restarts,
            uptime_seconds=round(child.age, 1) if child is not None and child.alive else 0.0,
            rss_bytes=child.rss if child is not None else 0,
            calls=sum(each.calls for each in self._living),
        )

    def _status(self) -> HostStatus:
        if self.looping:
            return HostStatus.CRASH_LOOP
        if self.alive:
            return HostStatus.UP
        return HostStatus.DOWN if self._started else HostStatus.STARTING

    async def _revive(self, wait: float) -> None:
        """Try until there is a child."""
        hurry = self._hurry = asyncio.Event()
        while True:
            self.next_try = time.monotonic() + wait
            if wait:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(hurry.wait(), wait)
            async with self._launching:
                if self.alive:
                    return
                try:
                    self._take(await self._launch())
                    return
                except (StartError, ConfigError) as error:
                    self._note_failed_start(error)
                finally:
                    self._end_first_round()
            wait = self._next_wait()

    def _note_failed_start(self, error: Exception) -> None:
        if isinstance(error, ConfigError) and not self._started:
            self._end_first_round(error)
        self._started = True
        self.restarts += 1
        said = str(error) if isinstance(error, ConfigError) else f"{self._subject} {error}."
        self.error = said
        self._log("host process failed to start", logging.ERROR, reason=said)
        self._listener.on_event("exited", f"worker {self.index}: failed to start")
        self._note_short()

    def _end_first_round(self, error: Exception | None = None) -> None:
        if self._first_round is None or self._first_round.done():
            return
        if error is None:
            self._first_round.set_result(None)
        else:
            self._first_round.set_exception(error)

    async def _replace(self, check: Callable[[Offer], None], only: Generation | None) -> None:
        if self._closing:
            raise self._leaving()
        while sum(child.draining for child in self._living) >= _MOST_DRAINING:
            await asyncio.wait(self._endings, return_when=asyncio.FIRST_COMPLETED)
        async with self._launching:
            old = self.current
            if only is not None and old is not only:
                return
            try:
                self._take(await self._launch(check))
            except StartError as error:
                raise HostError(f"The new process of host {self._plan.name} {error}.") from None
            except ConfigError as error:
                raise HostError(str(error)) from None
        if old is not None:
            # It gets no more calls from here on, and its end is nobody's surprise.
            old.draining = True
            self._spawn(old.retire(self._plan.timing.drain), "drain")

    async def _launch(self, check: Callable[[Offer], None] | None = None) -> Generation:
        self._number += 1
        child = await Generation.start(self._plan, self.index, self._number)
        if check is not None:
            try:
                check(child.offer)
            except HostError:
                await surely(child.retire(0.0))
                raise
        return child

    def _take(self, child: Generation) -> None:
        self.current = child
        self._started = True
        self._living.add(child)
        child.beat(self._on_beat, self._on_hang)
        task = asyncio.get_running_loop().create_task(self._see_off(child))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        self._hurry.set()
        self._log(
            "host process started",
            logging.INFO,
            pid=child.pid,
            seconds=round(child.age, 2),
            types=len(child.offer.categories),
        )
        self._listener.on_event("started", f"worker {self.index}")
        self._listener.on_up(child.offer)

    async def _see_off(self, child: Generation) -> None:
        """Wait for the end of a child, and have another follow if it was not to end."""
        await child.ended()
        lived = child.age
        surprise = not child.draining and not self._closing
        await child.finish()
        self._living.discard(child)
        self._log(
            "host process ended",
            logging.WARNING if surprise else logging.INFO,
            pid=child.pid,
            exit=child.manner,
            seconds=round(lived, 1),
            reason=child.epitaph() if surprise or child.doomed else "",
        )
        if not surprise:
            return
        self.error = f"{self._subject} {child.epitaph()}."
        self._listener.on_event("exited", f"worker {self.index}: {child.manner}")
        self._count_life(lived)
        if child is self.current and not self._closing:
            self.current = None
            self.restarts += 1
            self._spawn(self._revive(self._next_wait()), "restart")

    def _count_life(self, seconds: float) -> None:
        if seconds >= self._plan.timing.steady:
            self._waits = 0
        if seconds >= self._plan.timing.short:
            self._short = 0
        else:
            self._note_short()

    def _note_short(self) -> None:
        self._short += 1
        if self._short == self._plan.timing.crash_loop:
            self._log("host process crash-loops", logging.ERROR, reason=self.error)
            self._listener.on_event("crash_loop", f"worker {self.index}")

    def _next_wait(self) -> float:
        """Return the seconds until the next try, with jitter: hosts that fell together."""
        timing = self._plan.timing
        most = min(timing.longest_wait, timing.first_wait * 2 ** min(self._waits, 32))
        self._waits += 1
        wait = random.uniform(most / 2, most)  # noqa: S311 - no secret
        self.next_try = time.monotonic() + wait
        return wait

    def _on_hang(self) -> None:
        self._listener.on_event("hung", f"worker {self.index}")

    def _on_beat(self, child: Generation) -> None:
        if child is self.current and child.age >= self._plan.timing.short:
            self._short = 0
        limit = self._plan.section.memory_bytes
        if not limit or child.rss <= limit or child.doomed:
            return
        size = f"{child.rss // _MIB} MiB, memory_limit {limit // _MIB} MiB"
        if child.rss > limit * self._plan.timing.memory_kill:
            self._listener.on_event("memory", f"worker {self.index}: killed, {size}")
            child.kill(f"its memory is far over the limit ({size})")
        elif child is self.current and (self._recycling is None or self._recycling.done()):
            self._recycling = self._spawn(self._recycle(child, size), "recycling")

    async def _recycle(self, child: Generation, size: str) -> None:
        """Replace a child that grew too large; it drains, unless nobody can take its place."""
        self._listener.on_event("memory", f"worker {self.index}: replaced, {size}")
        self._log("host process is over its memory limit", logging.WARNING, pid=child.pid, at=size)
        if child.age < self._plan.timing.short:
            # Fresh ones are as large: the limit is too low, and replacing does not help.
            self.error = f"{self._subject} is over its limit from the start ({size})."
            self._note_short()
            await asyncio.sleep(self._next_wait())

        def check(offer: Offer) -> None:
            if lost := child.offer.losses(offer):
                raise HostError(f"Plugin {lost[0].name} of host {self._plan.name} fails now.")

        try:
            await self._replace(check, child)
        except HostError as error:
            child.kill(f"its memory is over the limit ({size}) and nobody could follow: {error}")

    def _leaving(self) -> HostError:
        return HostError(f"Host {self._plan.name} was not reloaded: the service is leaving.")

    @property
    def _subject(self) -> str:
        many = self._plan.section.workers > 1
        return f"Host {self._plan.name}'s process" + (f" {self.index}" if many else "")

    def _spawn(self, doing: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(
            doing, name=f"{what} of {self._plan.name}/{self.index}"
        )
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def _log(self, event: str, level: int, **facts: Any) -> None:
        _log.log(level, event, extra={"host": self._plan.name, "worker": self.index, **facts})


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    running = list(tasks)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
