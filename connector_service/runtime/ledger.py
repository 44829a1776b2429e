"""What is remembered of created jobs, and the rules by which it changes, for every ledger alike.

An entry is RESERVED while a create runs, KEPT once its answer was handed out, OWED when nobody
waited for the answer, CLAIMED while its job is being deleted, and FORGOTTEN after that::

    (free) -> RESERVED -> KEPT <-> OWED -> CLAIMED -> FORGOTTEN -> (free)

The rules are pure: the memory and SQLite ledgers call them, the Redis ledger says them in Lua, and
one suite of tests holds the three to the same answers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from connector_service.sdk.resource import TaskCategory

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Entry",
    "Found",
    "Held",
    "Job",
    "Ledger",
    "Orphan",
    "Recorded",
    "Reserved",
    "State",
    "claim",
    "forget",
    "record",
    "release",
    "renew",
    "reserve",
    "withdraw",
]


class State(IntEnum):
    """Where a job stands; see the module's drawing."""

    RESERVED = 1
    KEPT = 2
    OWED = 3
    CLAIMED = 4
    FORGOTTEN = 5


# In these states an entry whose time is over counts no more; an orphan always counts.
_ENDING = frozenset({State.RESERVED, State.KEPT, State.FORGOTTEN})


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One key's line in a ledger.

    ``until`` is when the state ends by itself: the lease of a create, the retention of an answer,
    the grace of an orphan, the claim of a deleter. ``delivery`` counts how often the answer was
    handed out, ``generation`` how often a job of this key was deleted as an orphan.
    """

    state: State
    owner: str
    until: float
    generation: int = 0
    category: TaskCategory | None = None
    meta: bytes = b""
    delivery: int = 0
    attempts: int = 0
    retention: float = 0.0


class Job(msgspec.Struct, frozen=True):
    """What a create made, with how long its answer and its abandonment count, in seconds."""

    category: TaskCategory
    meta: bytes
    retention: float
    grace: float


class Reserved(msgspec.Struct, frozen=True):
    """The key is the asker's: it creates.

    ``generation`` belongs into the idempotency key: a backend that honours it would otherwise
    answer a create with the job that was deleted as an orphan.
    """

    generation: int = 0


class Recorded(msgspec.Struct, frozen=True):
    """The job exists; ``delivery`` is the number of this hand-out, 0 for none."""

    meta: bytes
    delivery: int


class Held(msgspec.Struct, frozen=True):
    """Another holds the key; unless it renews, the key is free in ``retry_after`` seconds."""

    retry_after: float


class Orphan(msgspec.Struct, frozen=True):
    """A job that nobody asked for again, claimed for deletion for the ``attempts``-th time."""

    key: str
    category: TaskCategory
    meta: bytes
    attempts: int


Found = Reserved | Recorded | Held


class Ledger(Protocol):
    """Remembers created jobs; every method may raise ``LedgerDownError``."""

    async def open(self) -> None:
        """Make ready; a ledger that is down for now opens all the same.

        Raises:
            StartupError: This ledger can never work as it is configured.
        """

    async def reserve(self, key: str, owner: str, lease: float) -> Found:
        """Take a free key for ``lease`` seconds, or hand out the answer that stands."""

    async def renew(self, held: Sequence[tuple[str, str]], lease: float) -> set[str]:
        """Prolong the leases of (key, owner) pairs and return the keys that were lost."""

    async def record(self, key: str, owner: str, job: Job, *, delivered: bool) -> Recorded:
        """Write what was created and return what stands: the first record wins.

        A create that outlived its lease may find another's answer; it compares the metas.
        """

    async def withdraw(self, key: str, delivery: int, grace: float) -> None:
        """Take a hand-out back, whose caller had gone, unless there was a later one."""

    async def release(self, key: str, owner: str) -> None:
        """Free a key whose create failed; nothing happens when the owner lost it."""

    async def orphans(self, owner: str, lease: float, limit: int) -> list[Orphan]:
        """Claim jobs whose grace, or whose earlier claim, is over; no two askers get the same."""

    async def forget(self, key: str, owner: str) -> None:
        """Note that a claimed job is deleted."""

    async def ping(self) -> None:
        """Return when the ledger answers."""

    async def close(self) -> None:
        """Let go of files and connections; fine twice."""


def reserve(
    entry: Entry | None, now: float, owner: str, lease: float
) -> tuple[Entry | None, Found]:
    """Return the entry to write, None for no change, and the answer."""
    if entry is None or (entry.until <= now and entry.state in _ENDING):
        # Of an interrupted create the generation still counts; a kept one starts afresh.
        interrupted = entry if entry is not None and entry.state is State.RESERVED else None
        taken = _reserved(interrupted, owner, now + lease)
        return taken, Reserved(taken.generation)
    if entry.state is State.FORGOTTEN or (entry.state is State.RESERVED and entry.owner == owner):
        return _reserved(entry, owner, now + lease), Reserved(entry.generation)
    if entry.state in {State.KEPT, State.OWED}:
        given = _handed_out(entry, now)
        return given, Recorded(given.meta, given.delivery)
    return None, Held(max(0.0, entry.until - now))


def renew(entry: Entry | None, now: float, owner: str, lease: float) -> Entry | None:
    """Return the entry with a new lease, or None when the key is another's by now.

    A key that nobody took meanwhile is taken back, even from a ledger that lost its memory.
    """
    if (
        entry is not None
        and (entry.until > now or entry.state not in _ENDING)
        and (entry.state is not State.RESERVED or entry.owner != owner)
    ):
        return None
    return _reserved(entry, owner, now + lease)


def record(
    entry: Entry | None, now: float, owner: str, job: Job, *, delivered: bool
) -> tuple[Entry | None, Recorded]:
    """Return the entry to write, None for no change, and what stands then."""
    if entry is not None and (
        entry.state is State.OWED or (entry.state is State.KEPT and entry.until > now)
    ):
        if not delivered:
            return None, Recorded(entry.meta, entry.delivery)
        given = _handed_out(entry, now)
        return given, Recorded(given.meta, given.delivery)
    written = Entry(
        State.KEPT if delivered else State.OWED,
        "",
        now + (job.retention if delivered else job.grace),
        generation=0 if entry is None else entry.generation,
        category=job.category,
        meta=job.meta,
        delivery=int(delivered),
        retention=job.retention,
    )
    return written, Recorded(job.meta, written.delivery)


def withdraw(entry: Entry | None, now: float, delivery: int, grace: float) -> Entry | None:
    """Return the entry as owed again, or None when the hand-out was not the last one."""
    if entry is None or entry.state is not State.KEPT or entry.delivery != delivery:
        return None
    return msgspec.structs.replace(entry, state=State.OWED, until=now + grace)


def release(entry: Entry | None, now: float, owner: str) -> tuple[bool, Entry | None]:
    """Tell whether the reservation was the owner's, and return what is left of it, if anything.

    Its generation is left, when it has one.
    """
    if entry is None or entry.state is not State.RESERVED or entry.owner != owner:
        return False, None
    return True, _tombstone(entry, now, entry.generation) if entry.generation else None


def claim(entry: Entry, now: float, owner: str, lease: float) -> Entry | None:
    """Return the entry as claimed by ``owner``, or None when it is no orphan, or not yet."""
    if entry.state not in {State.OWED, State.CLAIMED} or entry.until > now:
        return None
    return msgspec.structs.replace(
        entry,
        state=State.CLAIMED,
        owner=owner,
        until=now + lease,
        attempts=entry.attempts + 1,
    )


def forget(entry: Entry | None, now: float, owner: str) -> Entry | None:
    """Return the tombstone of a deleted job, or None when the claim was another's."""
    if entry is None or entry.state is not State.CLAIMED or entry.owner != owner:
        return None
    return _tombstone(entry, now, entry.generation + 1)


def _tombstone(entry: Entry, now: float, generation: int) -> Entry:
    until = now + entry.retention
    return Entry(State.FORGOTTEN, "", until, generation, retention=entry.retention)


def _reserved(entry: Entry | None, owner: str, until: float) -> Entry:
    """Make a reservation that carries on what must outlive it."""
    if entry is None:
        return Entry(State.RESERVED, owner, until)
    return Entry(State.RESERVED, owner, until, entry.generation, retention=entry.retention)


def _handed_out(entry: Entry, now: float) -> Entry:
    until = entry.until if entry.state is State.KEPT else now + entry.retention
    return msgspec.structs.replace(
        entry, state=State.KEPT, until=until, delivery=entry.delivery + 1
    )
