"""A host of child processes: spreads calls over them and survives whatever becomes of them.

Each of its workers keeps one child running (``hosts/worker.py``). The children run connectors
that nobody changed; this process only carries bytes to them and back.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

from connector_service.errors import ConfigError, HostError, UnavailableError
from connector_service.hosts import spawn
from connector_service.hosts.generation import Generation, Plan, Timing
from connector_service.hosts.handshake import Offer
from connector_service.hosts.outer import HostKind, HostState, HostStatus
from connector_service.hosts.output import Throttle
from connector_service.hosts.procfs import Sizes
from connector_service.hosts.worker import Listener, Worker
from connector_service.runtime.limits import Bulkhead

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from flyteidl.admin.agent_pb2 import Agent

    from connector_service.config import HostSection
    from connector_service.runtime.call import Call
    from connector_service.runtime.route import Served
    from connector_service.sdk.resource import TaskCategory

__all__ = ["ProcessHost", "Timing"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# The routes in front bound how many calls wait; here none is refused for that.
_QUEUE = 1_000_000
_SOON = 1.0  # second; the hint of when to come back while a child is starting


class ProcessHost:
    """Runs ``[hosts.<name>] sources``: connectors in child processes of this one.

    ``on_event`` hears of ``started``, ``exited``, ``hung``, ``memory``, ``crash_loop``,
    ``reloaded`` and ``reload_refused``, each with a short detail.
    """

    def __init__(
        self,
        name: str,
        section: HostSection,
        run_dir: Path,
        *,
        on_event: Callable[[str, str], None] = lambda _kind, _detail: None,
        log_level: str = "info",
        options: Mapping[str, Mapping[str, Any]] | None = None,
        timing: Timing = Timing(),  # noqa: B008 - a frozen value
        program: Path = spawn.PROGRAM,
    ) -> None:
        """Take the settings and a folder of this service's own, whose path is short.

        ``options`` are those of connectors, by task type; connectors of our own get them.
        """
        self.name = name
        self._section = section
        self._run_dir = run_dir.absolute()
        self._on_event = on_event
        self._log_level = log_level
        self._options = dict(options or {})
        self._timing = timing
        self._program = program
        self._workers: tuple[Worker, ...] = ()
        self._offer = Offer()
        self._agents: tuple[Agent, ...] = ()
        self._callbacks: list[Callable[[], None]] = []
        self._bulkhead = Bulkhead(f"Host {name}", section.concurrency, _QUEUE)
        self._streams = Bulkhead(f"Host {name}'s logs", section.concurrency, _QUEUE)
        self._came_up: asyncio.Event | None = None
        self._throttle: Throttle | None = None
        self._reloading = asyncio.Lock()
        self._turn = 0
        self._where = section.python
        self._closing = False

    # --- what it serves ------------------------------------------------------------------------

    def categories(self) -> Mapping[TaskCategory, Served]:
        """Tell what the last good handshake brought."""
        return self._offer.categories

    def agents(self) -> Sequence[Agent]:
        """Describe its connectors."""
        return self._agents

    def prefers(self, category: TaskCategory) -> bool:
        """Tell whether ``prefer`` names the task type."""
        return any(fnmatch.fnmatchcase(category.name, each) for each in self._section.prefer)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back whenever what it serves has changed."""
        self._callbacks.append(callback)

    def snapshot(self) -> HostState:
        """Tell how it is."""
        states = tuple(worker.state() for worker in self._workers)
        status = self._status([state.status for state in states])
        return HostState(
            name=self.name,
            kind=HostKind.PROCESS,
            status=status,
            where=self._where,
            workers=states,
            restarts=sum(state.restarts for state in states),
            error="" if status is HostStatus.UP else self._error(),
            plugins=self._offer.plugins,
            versions=dict(self._offer.versions),
        )

    # --- its life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start every worker's child; return when each is up or has failed once.

        Raises:
            ConfigError: ``python`` or ``cwd`` names nothing that can work.
        """
        plan = self._plan()
        self._came_up = asyncio.Event()
        listener = Listener(self._on_event, self._on_up)
        self._workers = tuple(
            Worker(plan, index, listener) for index in range(self._section.workers)
        )
        try:
            async with asyncio.TaskGroup() as group:
                for worker in self._workers:
                    group.create_task(worker.start())
        except BaseExceptionGroup as errors:
            await self.close(0.0)
            raise _first_of(errors) from None
        except BaseException:
            await self.close(0.0)
            raise

    async def close(self, grace: float) -> None:
        """Let calls end within ``grace`` seconds and leave nothing behind; fine twice."""
        self._closing = True
        if self._came_up is not None:
            self._came_up.set()  # whoever waits for a worker waits in vain
        await asyncio.gather(*(worker.close(grace) for worker in self._workers))
        if self._throttle is not None:
            self._throttle.close()

    async def reload(self) -> None:
        """Replace every worker's child, one after the other, without failing a call.

        Raises:
            HostError: A fresh child did not come up, lost a plugin or serves nothing: it is ended
                and the old ones stay.
        """
        if self._closing or not self._workers:
            raise HostError(f"Host {self.name} is not running, so it cannot be reloaded.")
        async with self._reloading:
            before = self._offer
            try:
                for worker in self._workers:
                    await worker.replace(lambda offer: self._check(before, offer))
            except HostError as error:
                self._on_event("reload_refused", str(error)[:200])
                raise
            self._on_event("reloaded", f"{len(self._workers)} workers")

    # --- calls ---------------------------------------------------------------------------------

    async def run(self, call: Call) -> Any:
        """Run one operation in the worker that has the least to do.

        Raises:
            UnavailableError: No worker came up within the call's deadline.
            TransientError: The worker's process ended while the call ran.
        """
        return await self._somewhere(call, self._bulkhead, lambda child: child.run(call))

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> None:
        """Run one operation that answers with many messages; raises as ``run``."""
        await self._somewhere(call, self._streams, lambda child: child.stream(call, send))

    async def _somewhere(
        self, call: Call, bulkhead: Bulkhead, operate: Callable[[Generation], Awaitable[T]]
    ) -> T:
        started = time.monotonic()
        while True:
            # Waited for outside the bulkhead: whoever waits for a worker takes nobody's slot.
            if self._pick(call) is None:
                await self._wait(call, started)
            async with bulkhead.entered(call.deadline):
                child = self._pick(call)
                if child is not None:
                    self._turn += 1
                    return await operate(child)

    def _pick(self, call: Call) -> Generation | None:
        """Choose the worker with the fewest calls, those that answer promptly before others."""
        best: Generation | None = None
        least = (True, 0)
        count = 0 if self._closing else len(self._workers)
        for step in range(count):
            child = self._workers[(self._turn + step) % count].current
            if child is None or not child.alive or not child.serves(call):
                continue
            load = (child.quiet, child.calls)
            if best is None or load < least:
                best, least = child, load
        return best

    async def _wait(self, call: Call, started: float) -> None:
        """Wait until a worker came up.

        Raises:
            UnavailableError: None will, before the call has to be answered.
        """
        until = started + self._timing.patience
        if call.deadline is not None:
            until = min(until, call.deadline - self._timing.margin)
        now = time.monotonic()
        if self._closing or self._came_up is None or now >= until or self._next_try() >= until:
            raise self._unavailable(call)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until - now):
                await self._came_up.wait()

    def _next_try(self) -> float:
        return min((worker.next_try for worker in self._workers), default=0.0)

    def _unavailable(self, call: Call) -> UnavailableError:
        if self._closing or not self._workers:
            return UnavailableError(f"Host {self.name} is leaving; another replica takes calls.")
        wait = max(self._next_try() - time.monotonic(), _SOON)
        state = self.snapshot()
        if any(worker.alive for worker in self._workers) and call.category is not None:
            why = f"is up without task type {call.category.spoken}, whose plugin fails to load"
        else:
            why = f"has no process now ({state.status})"
        error = f" {state.error}" if state.error else ""
        return UnavailableError(f"Host {self.name} {why}.{error}", retry_after=wait)

    # --- inner ---------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        python = self._where = spawn.find_python(self.name, self._section)
        self._throttle = Throttle(self.name, self._timing.lines)
        plan = Plan(
            name=self.name,
            section=self._section,
            run_dir=self._run_dir,
            # -u: what it prints is ours at once.
            command=(python, "-u", str(self._program)),
            folder=spawn.find_folder(self.name, self._section),
            environ=spawn.environment(self._section, python, os.environ),
            timing=self._timing,
            throttle=self._throttle,
            sizes=Sizes(self._timing.heartbeat / 2),
            log_level=self._log_level,
            options=self._options,
        )
        plan.socket(self._section.workers, 10**6)
        try:
            self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Whoever may write here could answer in a child's place, or hear our token.
            self._run_dir.chmod(0o700)
        except OSError as error:
            raise ConfigError(
                f"The folder for sockets, {self._run_dir}, cannot be used ({error.strerror});"
                f" choose one of this user's own with --run-dir."
            ) from error
        return plan

    def _check(self, before: Offer, offer: Offer) -> None:
        if not offer.categories:
            failed = [plugin for plugin in offer.plugins if plugin.failed]
            why = f": {failed[0].name}: {failed[0].error}" if failed else ""
            raise HostError(
                f"The new process of host {self.name} offers no task type{why}; mend its"
                f" environment ({self._where}) and reload again."
            )
        if lost := before.losses(offer):
            names = ", ".join(plugin.name for plugin in lost)
            raise HostError(
                f"Plugins of host {self.name} that are loaded now fail in a new process: {names}"
                f" ({lost[0].error}); mend or uninstall them in {self._where} and reload again."
            )

    def _on_up(self, offer: Offer) -> None:
        assert self._came_up is not None  # noqa: S101 - set before any worker starts
        before, self._offer = self._offer, self._offer.followed_by(offer)
        agents = tuple(self._offer.agents())
        # Whoever waits looks at once; whoever comes later has an event of his own.
        came_up, self._came_up = self._came_up, asyncio.Event()
        came_up.set()
        if before.categories != self._offer.categories or agents != self._agents:
            self._agents = agents
            for callback in self._callbacks:
                try:
                    callback()
                except Exception:  # noqa: BLE001 - the child is up, whoever hears of it
                    _log.exception("on_change failed", extra={"host": self.name})

    def _status(self, states: Sequence[HostStatus]) -> HostStatus:
        up = sum(worker.alive for worker in self._workers)
        if HostStatus.CRASH_LOOP in states:
            return HostStatus.CRASH_LOOP
        if up and up == len(states):
            # With nothing to offer it helps nobody, and its plugins say why.
            return HostStatus.UP if self._offer.categories else HostStatus.DEGRADED
        if not states or (not up and HostStatus.STARTING in states):
            return HostStatus.STARTING
        return HostStatus.DEGRADED if up else HostStatus.DOWN

    def _error(self) -> str:
        said = [worker.error for worker in self._workers if worker.error]
        if not said and not self._offer.categories:
            said = [f"{one.name}: {one.error}" for one in self._offer.plugins if one.failed]
        return next(iter(said), "")


def _first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in errors.exceptions:
        return _first_of(error) if isinstance(error, BaseExceptionGroup) else error
    return errors
