"""One worker's process as its supervisor has it: started, heard, asked, ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from connector_service.server.link import (
    Beat,
    Failed,
    Message,
    Scrape,
    Scraped,
    Serving,
    Setup,
    frame,
    frames,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connector_service.server.merge import Family

__all__ = ["Child"]

_LATE = 3.0  # seconds of silence after which a worker is not counted on
_SCRAPE = 2.0  # seconds that a worker has to tell its metrics
_LAST_WORDS = 1.0  # seconds to read what a process said that has ended


class Child:
    """A worker from its start to its end; another ``Child`` takes its place."""

    def __init__(self, setup: Setup, on_serving: Callable[[], None]) -> None:
        """Take which worker it is, and whom to tell that it serves."""
        self.index = setup.index
        self.serving: Serving | None = None
        self.failed: Failed | None = None
        self.families: Sequence[Family] = ()
        self.killed_for = ""
        self.heard = time.monotonic()  # its start, or the last sign of life
        self._setup = setup
        self._on_serving = on_serving
        self._beat: Beat | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[None]] = {}

    @property
    def pid(self) -> int | None:
        """Its process, None when there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def answers(self) -> bool:
        """Tell whether it serves and gave a sign of life of late."""
        return self.serving is not None and time.monotonic() - self.heard < _LATE

    @property
    def ready(self) -> bool:
        """Tell whether clients may come."""
        return self.answers and (self._beat is None or self._beat.ready)

    @property
    def troubles(self) -> str:
        """What an operator should look at; nothing is fine."""
        return self._beat.troubles if self._beat else ""

    async def run(self) -> int:
        """Start the process and return its exit code once it has ended; a signal is negative.

        It is a program of its own: nothing that this process has loaded is copied into it. Its
        process group is its own too, so that a terminal's Ctrl-C asks the supervisor alone.

        Raises:
            OSError: The system cannot start it.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "connector_service.server.worker"),
                    str(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                )
        except BaseException:
            ours.close()
            raise
        reader, self._writer = await asyncio.open_connection(sock=ours)
        reading = asyncio.ensure_future(self._read(reader))
        try:
            self.tell(self._setup)
            code = await self._process.wait()
            self.serving = None
            # Not for ever: what a connector forked may hold the socket open.
            await asyncio.wait({reading}, timeout=_LAST_WORDS)
        finally:
            reading.cancel()
            self._writer.close()
            for asked in self._asked.values():
                asked.cancel()
        return code

    def tell(self, message: Message) -> None:
        """Send a message; one that has ended hears nothing."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    def kill(self, why: str = "") -> None:
        """End it at once; what it had in flight is lost."""
        self.killed_for = self.killed_for or why
        if self.pid is not None and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    async def scrape(self, number: int) -> None:
        """Have ``families`` say what is counted now, unless the worker is slow to answer."""
        if not self.answers:
            return
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        self.tell(Scrape(number))
        await asyncio.wait({asked}, timeout=_SCRAPE)
        del self._asked[number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for message in frames(reader):
            if isinstance(message, Beat):
                self._beat, self.heard = message, time.monotonic()
            elif isinstance(message, Scraped):
                self.families = message.families
                asked = self._asked.get(message.number)
                if asked is not None and not asked.done():
                    asked.set_result(None)
            elif isinstance(message, Serving) and self.pid is not None:
                self.serving, self.heard = message, time.monotonic()
                self._on_serving()
            elif isinstance(message, Failed):
                self.failed = message
