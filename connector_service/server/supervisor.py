"""Workers that serve together: started, watched, replaced, measured and drained as one service.

The supervisor answers no call. It holds the gRPC port, on which each worker listens by
SO_REUSEPORT, and serves HTTP for all of them; it loads no connector and no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import shutil
import sys
import time
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.registry import Collector

from connector_service.errors import ConfigError, OperatorError, StartupError
from connector_service.runtime.ledger_sqlite import SqliteLedger
from connector_service.server.child import Child
from connector_service.server.link import Reload, Serving, Setup, Stop
from connector_service.server.merge import Merger, snapshot
from connector_service.server.reservation import Reservation
from connector_service.server.run_dir import RunDir, run_dir
from connector_service.server.signals import signals, until
from connector_service.telemetry.http import HttpServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from prometheus_client.core import Metric

    from connector_service.config import Config

__all__ = ["Supervisor", "SupervisorMetrics"]

_log = logging.getLogger(__name__)

_TICK = 1.0  # seconds between two looks at the workers
_HUNG = 10.0  # seconds of silence after which a worker is killed
_START = 300.0  # seconds to load plugins, beside what hosts may take
_SETTLED = 60.0  # seconds of serving after which an end counts as the first again
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between two starts, from the second on
_AFTER_GRACE = 10.0  # seconds for what a worker does after its last call
_SCRAPE = 5.0  # seconds that a scrape may take


class SupervisorMetrics:
    """What a supervisor measures of itself and counts of its workers."""

    def __init__(self) -> None:
        """Make every collector."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.serving = Gauge(
            "connector_service_workers_serving",
            "Workers that answer calls.",
            registry=self.registry,
        )
        self.restarts = Counter(
            "connector_service_worker_restarts_total",
            "Workers that were started again, by why the one before ended.",
            ["cause"],
            registry=self.registry,
        )
        for cause in ("exited", "hung"):
            self.restarts.labels(cause)


class Supervisor:
    """Runs ``listen.workers`` workers until it is told to stop."""

    def __init__(self, config: Config) -> None:
        """Take the settings; ``run`` does the rest.

        Raises:
            ConfigError: Two of them contradict each other.
        """
        if config.ledger.state_dir and config.ledger.ledger_url:
            raise ConfigError(
                "state_dir and ledger_url exclude each other: created jobs are remembered in one"
                " place."
            )
        self.config = config
        self.port = 0
        self.prometheus_port = 0
        if sys.platform != "linux":
            raise ConfigError(
                "--workers needs Linux, which spreads connections over the workers of one port;"
                " leave it at 1 here."
            )
        self._size = config.listen.workers
        self._children: dict[int, Child] = {}
        self._ends: dict[int, str] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._merger = Merger()
        self._metrics = SupervisorMetrics()
        self._scrapes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up: asyncio.Future[None] | None = None
        self._http: HttpServer | None = None
        self._reservation: Reservation | None = None
        self._folder: RunDir | None = None
        self._ledger: SqliteLedger | None = None
        self._ledger_folder = ""

    @property
    def plugins(self) -> Serving:
        """What a worker says of its plugins and hosts, once all serve."""
        return next(child.serving for child in self._children.values() if child.serving is not None)

    async def run(self, announce: Callable[[Supervisor], None] = lambda _: None) -> None:
        """Serve until SIGTERM or SIGINT, then drain all; a second signal ends all at once.

        SIGHUP reloads the hosts of every worker. ``announce`` is called once all of them serve.

        Raises:
            OperatorError: A port is taken, or a worker could not start: its own sentence.
        """
        served = False
        with signals(self._stopping, self._reload, at_once=self._kill):
            try:
                if not await until(self._stopping, self._start()):
                    _log.info("stopped before it served")
                    return
                served = True
                announce(self)
                await self._stopping.wait()
                _log.info(
                    "draining",
                    extra={
                        "seconds": self.config.drain.drain_delay,
                        "hint": "a second signal ends now",
                    },
                )
            finally:
                await self._end(at_once=not served)
            _log.info("stopped")

    # --- startup -------------------------------------------------------------------------------

    async def _start(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        listen = self.config.listen
        self._http = HttpServer(
            listen.host,
            self.config.metrics.prometheus_port,
            self._registry(),
            self._ready,
            troubles=self._troubles,
        )
        self.prometheus_port = self._http.port
        self._reservation = Reservation(listen)
        self.port = self._reservation.port
        # The folder has the port's name, though it was chosen: `reload --port` finds it.
        self.config = msgspec.structs.replace(
            self.config, listen=msgspec.structs.replace(listen, port=self.port)
        )
        self._folder = RunDir(run_dir(self.config))
        self._folder.open()
        self._clear_folder()
        await self._open_ledger()
        self._http.start()
        self._up = loop.create_future()
        for index in range(self._size):
            self._keeping.add(asyncio.create_task(self._keep(index), name=f"worker-{index}"))
        self._watching = asyncio.create_task(self._watch(), name="watch-workers")
        await self._up

    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(_Scrape(self._collect))
        return registry

    async def _open_ledger(self) -> None:
        """Lock the file in which workers remember created jobs, and free what dead ones left."""
        settings = self.config.ledger
        if settings.ledger_url:
            return
        self._ledger_folder = settings.state_dir or str(self._own_ledger)
        ledger = SqliteLedger(self._ledger_folder, durable=bool(settings.state_dir))
        await ledger.open()
        self._ledger = ledger

    def _setup(self, index: int) -> Setup:
        assert self._folder is not None  # noqa: S101 - opened before any worker starts
        own = msgspec.structs.replace(
            self.config.hosting, run_dir=str(self._folder.of_worker(index).path)
        )
        return Setup(
            index,
            pickle.dumps(msgspec.structs.replace(self.config, hosting=own)),
            self._ledger_folder,
            durable=bool(self.config.ledger.state_dir),
        )

    def _serves(self) -> None:
        """Note that one more serves; the start is over when all do."""
        serving = sum(child.serving is not None for child in self._children.values())
        if self._up is not None and not self._up.done() and serving == self._size:
            self._up.set_result(None)

    # --- while it serves -----------------------------------------------------------------------

    async def _keep(self, index: int) -> None:
        """Keep one worker running: its end at the first start is the end of all."""
        assert self._up is not None  # noqa: S101 - set before this starts
        pause = 0.0
        while not self._stopping.is_set():
            child = self._children[index] = Child(self._setup(index), self._serves)
            began = time.monotonic()
            try:
                reason = _how_it_ended(child, await child.run())
            except OSError as error:
                reason = f"cannot be started: {error.strerror}"
            finally:
                self._merger.retire(child.families)
                child.families = ()
            if self._stopping.is_set():
                return
            if not self._up.done():
                self._up.set_exception(_cannot_start(child, reason))
            if self._up.exception() is not None:
                return
            self._ends[index] = reason
            if time.monotonic() - began >= _SETTLED:
                pause = 0.0
            self._metrics.restarts.labels("hung" if child.killed_for else "exited").inc()
            _log.error(
                "worker_ended",
                extra={"index": index, "reason": reason, "again_in_seconds": pause},
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(max(_FIRST_PAUSE, 2 * pause), _LONGEST_PAUSE)

    async def _watch(self) -> None:
        """Kill what hangs; as process 1, bury what nobody else does."""
        start = _START + max((host.start_timeout for host in self.config.hosts.values()), default=0)
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            for child in self._children.values():
                if now - last > _HUNG / 2:  # it was this process that slept: they may have spoken
                    child.heard = now
                limit = _HUNG if child.serving else start
                if child.pid is not None and now - child.heard > limit:
                    child.kill(f"hung: no sign of life for {limit:g} s")
            last = now
            if os.getpid() == 1:
                _bury({child.pid for child in self._children.values()})

    def _reload(self) -> None:
        for child in self._children.values():
            child.tell(Reload())

    def _kill(self) -> None:
        for child in self._children.values():
            child.kill()

    def _ready(self) -> bool:
        return not self._stopping.is_set() and any(
            child.ready for child in list(self._children.values())
        )

    def _troubles(self) -> str:
        """Say which workers are missing, and what troubles the others have."""
        children = dict(self._children)
        missing = [
            f"{index} ({self._ends[index]})" if index in self._ends else str(index)
            for index in range(self._size)
            if index not in children or not children[index].ready
        ]
        said = [f"workers that do not serve: {', '.join(missing)}"] if missing else []
        said += [
            f"worker {index}: {child.troubles}"
            for index, child in children.items()
            if child.ready and child.troubles
        ]
        return "; ".join(said)

    def _collect(self) -> Iterable[Metric]:
        """Return the merged metrics, on a thread of the HTTP server."""
        assert self._loop is not None  # noqa: S101 - set before HTTP is served
        return asyncio.run_coroutine_threadsafe(self._scrape(), self._loop).result(_SCRAPE)

    async def _scrape(self) -> list[Metric]:
        self._scrapes += 1
        number = self._scrapes
        children = list(self._children.values())
        await asyncio.gather(*(child.scrape(number) for child in children))
        # One may have ended meanwhile, and what it had counted stands with the retired.
        children = list(self._children.values())
        self._metrics.serving.set(sum(child.answers for child in children))
        return self._merger.merge(
            [
                *((str(child.index), child.families) for child in children),
                ("supervisor", snapshot(self._metrics.registry)),
            ]
        )

    # --- shutdown ------------------------------------------------------------------------------

    async def _end(self, *, at_once: bool) -> None:
        """Let every worker drain and end, and leave nothing behind."""
        self._stopping.set()
        if self._up is not None and self._up.done() and not self._up.cancelled():
            self._up.exception()  # read, or asyncio complains when two workers failed
        # 1. All turn NOT_SERVING at once, and end when their calls have.
        for child in self._children.values():
            child.tell(Stop())
        if at_once:
            self._kill()
        drain = self.config.drain
        if self._keeping:
            await asyncio.wait(
                self._keeping, timeout=drain.drain_delay + drain.grace + _AFTER_GRACE
            )
            # 2. What has not ended by now never will.
            for child in self._children.values():
                if child.pid is not None:
                    _log.warning("worker_did_not_end", extra={"index": child.index})
                    child.kill()
            await asyncio.gather(*self._keeping, return_exceptions=True)
        if self._watching is not None:
            self._watching.cancel()
        # 3. The last scrape was still answered while calls finished, so metrics go last.
        if self._http is not None:
            self._http.close()
        if self._ledger is not None:
            await self._ledger.close()
        if self._folder is not None:
            self._clear_folder()
            self._folder.close()
        if self._reservation is not None:
            self._reservation.close()

    def _clear_folder(self) -> None:
        """Remove what workers leave in the folder that is ours, now or at a former time."""
        assert self._folder is not None  # noqa: S101 - opened by _start
        for path in (*(each.path for each in self._folder.of_workers()), self._own_ledger):
            shutil.rmtree(path, ignore_errors=True)

    @property
    def _own_ledger(self) -> Path:
        """Where the ledger is that lives as long as the service, when none is configured."""
        assert self._folder is not None  # noqa: S101 - opened by _start
        return self._folder.path / "ledger"


class _Scrape(Collector):
    """Asks for everything at each scrape."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _how_it_ended(child: Child, code: int) -> str:
    if child.killed_for:
        return child.killed_for
    if child.failed is not None:
        return child.failed.sentence
    return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _cannot_start(child: Child, reason: str) -> OperatorError:
    if child.failed is None:
        return StartupError(
            f"Worker {child.index} could not start: {reason}; what it printed stands above."
        )
    kind = ConfigError if child.failed.exit_code == ConfigError.exit_code else StartupError
    error = kind(child.failed.sentence)
    error.exit_code = child.failed.exit_code
    return error


def _bury(ours: set[int | None]) -> None:
    """Reap children that dead workers left to process 1; workers are waited for elsewhere."""
    with contextlib.suppress(ChildProcessError):
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if dead.si_pid in ours:
                return
            os.waitpid(dead.si_pid, os.WNOHANG)
