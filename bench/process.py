"""What the system tells of a process: its processor time, its memory; and cores to run on."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CLIENT_CORE",
    "SERVER_CORE",
    "awake",
    "cpu",
    "free_port",
    "listens",
    "on_core",
    "resident",
    "sharing",
]

_CORES = sorted(os.sched_getaffinity(0))
_LISTENING = "0A"  # of /proc/net/tcp
SERVER_CORE, CLIENT_CORE = _CORES[0], _CORES[min(1, len(_CORES) - 1)]


def sharing() -> bool:
    """Tell whether server and client must share one core: ratios then say little."""
    return SERVER_CORE == CLIENT_CORE


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run on one core meanwhile; processes and threads that are started stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# Runs only while nobody else wants the core, and no longer than who started it.
_KEEP = """
import os
os.sched_setaffinity(0, {%d})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@contextlib.contextmanager
def awake(in_flight: int) -> Iterator[None]:
    """Keep the client's core from halting meanwhile, where a client with so many calls waits.

    With one call in flight the client waits in each. A virtual machine's core is given back to the
    host then, and coming back takes the longer, the longer it was away: the client's latency is
    the host's as much as the server's.
    """
    if in_flight > 1 or sharing():
        yield
        return
    keeping = subprocess.Popen([sys.executable, "-c", _KEEP % CLIENT_CORE])  # noqa: S603
    try:
        yield
    finally:
        keeping.kill()
        keeping.wait()


def cpu(pid: int) -> float:
    """Return the seconds of processor time that a process has used, all threads, to the ns.

    Linux has a clock for each process; its number is made of the pid (see CPUCLOCK_SCHED in the
    kernel's posix-timers.h).
    """
    return time.clock_gettime(~pid << 3 | 2)


def resident(pid: int) -> tuple[int, int]:
    """Return a process's resident and proportional set size in bytes, children not included."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return _kilobytes(status, "VmRSS"), _kilobytes(rollup, "Pss")


def _kilobytes(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"The kernel tells no {name}.")
    return int(found[1]) * 1024


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now, and that the system gives to nobody by itself.

    A server that takes seconds to start would find one of the system's own choice taken.
    """
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - below Linux's own range
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def listens(pid: int, port: int, *, session: bool = False) -> bool:
    """Tell whether it is this process that listens on a port, or one of its ``session``.

    And no neighbour, who may have taken a port that was free.
    """
    wanted = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            columns = line.split()
            if columns[3] == _LISTENING and int(columns[1].rpartition(":")[2], 16) == port:
                wanted.add(f"socket:[{columns[9]}]")
    return any(
        _target(entry) in wanted
        for process in (_session(pid) if session else [pid])
        for entry in _entries(Path(f"/proc/{process}/fd"))
    )


def _session(pid: int) -> list[int]:
    """List the processes of a session, by that which began it."""
    found = []
    for entry in _entries(Path("/proc")):
        with contextlib.suppress(ValueError, ProcessLookupError):
            if os.getsid(int(entry.name)) == pid:
                found.append(int(entry.name))
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # it has ended meanwhile
        return []


def _target(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:  # closed meanwhile
        return ""
