"""One of several processes that serve together: a whole service, at its supervisor's orders."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from connector_service.errors import ConnectorServiceError
from connector_service.runtime.ledger_sqlite import SqliteLedger
from connector_service.server.link import (
    Beat,
    Failed,
    Link,
    Reload,
    Scrape,
    Scraped,
    Serving,
    Setup,
    Stop,
)
from connector_service.server.merge import snapshot
from connector_service.server.process import leave, live
from connector_service.server.server import Service, Shared, build
from connector_service.telemetry import logging as log

if TYPE_CHECKING:
    import asyncio

    from connector_service.config import Config

__all__ = ["main"]

_BEAT = 1.0  # seconds between two signs of life
_REPORT = 2.0  # seconds between two reports of what was counted: what kill -9 may cost
_PR_SET_PDEATHSIG = 1
_ORPHANED = 70  # exit code of a worker whose supervisor has ended


def main() -> None:
    """Serve as the supervisor says, whose end of the link is the first argument's other end."""
    link = Link(int(sys.argv[1]))
    _end_with_parent()
    try:
        setup = link.receive()
    except EOFError:
        leave(_ORPHANED)
    assert isinstance(setup, Setup)  # noqa: S101 - both ends are of one release
    config: Config = pickle.loads(setup.config)  # noqa: S301 - our supervisor's own, and no one else's
    log.configure(config.log, worker=str(setup.index))
    attendant = _Attendant(link)
    try:
        ledger = None
        if setup.ledger:
            # A mark of its own: what a worker left reserved is free once it is back.
            ledger = SqliteLedger(setup.ledger, mark=f"w{setup.index}/", durable=setup.durable)
        service = build(config, shared=Shared(ledger))
        attendant.take(service)
        live(service, attendant.serves, on_loop=attendant.follow)
    except ConnectorServiceError as error:
        link.send(Failed(str(error), getattr(error, "exit_code", 1)))
        leave(getattr(error, "exit_code", 1))
    attendant.report()
    leave(0)


class _Attendant(threading.Thread):
    """Hears the supervisor and answers it, beside an event loop that may be blocked."""

    def __init__(self, link: Link) -> None:
        super().__init__(name="supervisor-link", daemon=True)
        self._link = link
        self._service: Service | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beaten = threading.Event()
        self.start()

    def take(self, service: Service) -> None:
        """Know the service, as soon as there is one."""
        self._service = service

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Know the service's loop, as soon as there is one."""
        self._loop = loop

    def serves(self, service: Service) -> None:
        """Tell the supervisor that calls are answered, and begin to give signs of life."""
        plugins = [record for _, record in service.plugins()]
        self._link.send(
            Serving(
                loaded=sum(record.loaded for record in plugins),
                failed=sum(record.failed for record in plugins),
                hosts=", ".join(f"{host.name} {host.status}" for host in service.hosts()),
            )
        )
        self._beaten.set()

    def report(self, number: int = 0) -> None:
        """Send what was counted; from any thread, and never an older state after a newer one."""
        if self._service is None:
            return
        with self._link.lock:
            self._link.send_locked(Scraped(number, snapshot(self._service.metrics.registry)))

    def run(self) -> None:
        """Answer until the supervisor ends, and end with it."""
        beat = report = time.monotonic()
        while True:
            try:
                message = self._link.receive(max(0.0, beat - time.monotonic()))
            except EOFError:
                os._exit(_ORPHANED)
            if isinstance(message, Scrape):
                self.report(message.number)
            elif isinstance(message, Stop):
                self._stop()
            elif isinstance(message, Reload) and self._service and self._loop:
                self._loop.call_soon_threadsafe(self._service.reload_all)
            now = time.monotonic()
            if now >= beat:
                beat = now + _BEAT
                self._beat()
            if now >= report and self._loop is not None:
                report = now + _REPORT
                self.report()

    def _beat(self) -> None:
        """Send a sign of life if the loop has answered, and ask it anew."""
        service, loop = self._service, self._loop
        if service is None or loop is None or not self._beaten.is_set():
            return
        self._link.send(Beat(service.ready, service.troubles()))
        self._beaten.clear()
        with contextlib.suppress(RuntimeError):  # it has ended, and so does this process
            loop.call_soon_threadsafe(self._beaten.set)

    def _stop(self) -> None:
        if self._service is None or self._loop is None:  # nothing runs that could be lost
            os._exit(0)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._service.stop)


def _end_with_parent() -> None:
    """Have the kernel kill this process when the supervisor dies, whatever blocks it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # If it died before, the link is at its end already, and reading from it says so.


if __name__ == "__main__":
    main()
