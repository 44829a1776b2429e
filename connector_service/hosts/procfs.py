"""The processes of a child and its children, from Linux's /proc; elsewhere nothing is known."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["Sizes", "kill_session"]

_log = logging.getLogger(__name__)

_PROC = Path("/proc")


class _Entry(NamedTuple):
    parent: int
    session: int
    rss: int  # bytes
    zombie: bool


class Sizes:
    """The memory of whole process trees, read at most so often, for all workers of a host."""

    def __init__(self, every: float) -> None:
        """Take the seconds for which what was read is taken for true."""
        self._every = every
        self._read = float("-inf")
        self._entries: dict[int, _Entry] = {}
        self._lock = asyncio.Lock()
        self._warned = False

    async def of(self, pid: int) -> int:
        """Return the resident bytes of ``pid``, its session and their children; 0 is unknown.

        Pages that processes share are counted in each of them.
        """
        async with self._lock:
            if time.monotonic() - self._read >= self._every:
                self._entries = await asyncio.to_thread(_entries)
                self._read = time.monotonic()
        if not self._entries and not self._warned:
            self._warned = True
            _log.warning("memory_limit is not enforced: this system has no /proc")
        return sum(
            entry.rss for each, entry in self._entries.items() if _belongs(each, pid, self._entries)
        )


def kill_session(leader: int) -> None:
    """Kill what still runs in the session of ``leader``, in whichever process group.

    To be called while the leader is a zombie: until it is reaped, the number is nobody else's.
    """
    for pid, entry in _entries().items():
        if entry.session == leader and pid != leader and not entry.zombie:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _belongs(pid: int, root: int, entries: dict[int, _Entry]) -> bool:
    for _ in range(64):  # a chain of parents ends; one that was read while it changed may not
        entry = entries.get(pid)
        if pid == root or (entry is not None and entry.session == root):
            return True
        if entry is None:
            return False
        pid = entry.parent
    return False


def _entries() -> dict[int, _Entry]:
    """Read every process; those that end meanwhile are left out."""
    found = {}
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        names = os.listdir(_PROC)  # noqa: PTH208 - names alone, a thousand times a minute
    except OSError:
        return {}
    for name in names:
        if not name.isdigit():
            continue
        try:
            data = (_PROC / name / "stat").read_bytes()
        except OSError:
            continue
        # proc(5): the name, in parentheses, may hold anything; state, ppid, pgrp, session follow,
        # and rss is field 24.
        fields = data[data.rindex(b")") + 2 :].split()
        found[int(name)] = _Entry(
            int(fields[1]), int(fields[3]), int(fields[21]) * page, fields[0] in (b"Z", b"X")
        )
    return found
