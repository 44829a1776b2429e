"""The ledger of one process without a memory of its own: what it knows ends with it.

A job with a meta of 95 bytes costs 460 bytes with its key (CPython 3.11): 500,000 of them are
230 MB, which is the bound. Entries leave when their time is over, and the least recently asked
for leaves when there are too many. A create that runs, and a job that is owed a deletion, never
leave; when they alone fill the ledger, further creates are refused.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from connector_service.errors import UnavailableError
from connector_service.runtime import ledger
from connector_service.runtime.ledger import (
    Entry,
    Found,
    Job,
    Orphan,
    Recorded,
    Reserved,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["MemoryLedger"]

_SLOT = 10.0  # seconds; entries that end within one slot are looked at together
_AT_ONCE = 64  # entries that one operation may drop, so that none of them takes long
_LASTING = frozenset({State.KEPT, State.FORGOTTEN})
_FREE = Reserved()


class MemoryLedger:
    """Remembers up to ``capacity`` jobs in this process."""

    def __init__(
        self, capacity: int = 500_000, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the bound and the clock, in seconds."""
        self._capacity = capacity
        self._clock = clock
        # Running and owed; kept and forgotten, the least recently used first.
        self._open: dict[str, Entry] = {}
        self._lasting: OrderedDict[str, Entry] = OrderedDict()
        # What to look at when: a key may stand here after its entry changed.
        self._slots: dict[int, list[str]] = {}
        self._next_slots: list[int] = []
        self._due: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._open) + len(self._lasting)

    async def open(self) -> None:
        """Do nothing: memory is ready."""

    async def reserve(self, key: str, owner: str, lease: float) -> Found:
        """Take a free key, or hand out the answer that stands.

        Raises:
            UnavailableError: Creates that run and jobs to delete fill the ledger.
        """
        now = self._clock()
        if self._next_slots and self._next_slots[0] * _SLOT <= now:
            self._drop_ended(now)
        entry = self._open.get(key) or self._lasting.get(key)
        if entry is None:  # as with most keys; the rule is the plainest
            if len(self._open) >= self._capacity:
                raise UnavailableError(
                    f"{self._capacity} jobs are being created or await their deletion; the ledger"
                    f" in memory has no room for more.",
                    retry_after=10.0,
                )
            self._open[key] = taken = Entry(State.RESERVED, owner, now + lease)
            self._look_at(key, taken.until)
            return _FREE
        changed, found = ledger.reserve(entry, now, owner, lease)
        self._put(key, changed)
        return found

    async def renew(self, held: Sequence[tuple[str, str]], lease: float) -> set[str]:
        """Prolong leases and return the keys that were lost."""
        now = self._clock()
        lost = set()
        for key, owner in held:
            renewed = ledger.renew(self._get(key), now, owner, lease)
            self._put(key, renewed)
            if renewed is None:
                lost.add(key)
        return lost

    async def record(self, key: str, owner: str, job: Job, *, delivered: bool) -> Recorded:
        """Write what was created and return what stands."""
        now, entry = self._clock(), self._open.get(key)
        if delivered and entry is not None and entry.state is State.RESERVED:
            # As with most creates; the rule, whoever's the reservation is, is the plainest.
            until, retention = now + job.retention, job.retention
            written = Entry(
                State.KEPT, "", until, entry.generation, job.category, job.meta, 1, 0, retention
            )
            del self._open[key]
            self._lasting[key] = written
            if len(self._open) + len(self._lasting) > self._capacity:
                self._lasting.popitem(last=False)
            self._look_at(key, until)
            return Recorded(job.meta, 1)
        changed, stands = ledger.record(self._get(key), now, owner, job, delivered=delivered)
        self._put(key, changed)
        return stands

    async def withdraw(self, key: str, delivery: int, grace: float) -> None:
        """Take a hand-out back unless there was a later one."""
        self._put(key, ledger.withdraw(self._get(key), self._clock(), delivery, grace))

    async def release(self, key: str, owner: str) -> None:
        """Free a key whose create failed."""
        freed, left = ledger.release(self._open.get(key), self._clock(), owner)
        if freed:
            del self._open[key]
            self._put(key, left)

    async def orphans(self, owner: str, lease: float, limit: int) -> list[Orphan]:
        """Claim jobs whose grace, or whose earlier claim, is over."""
        now = self._clock()
        self._drop_ended(now)
        found: list[Orphan] = []
        while self._due and self._due[0][0] <= now and len(found) < limit:
            _, key = heapq.heappop(self._due)
            entry = self._open.get(key)
            claimed = None if entry is None else ledger.claim(entry, now, owner, lease)
            if claimed is not None and claimed.category is not None:
                self._put(key, claimed)
                found.append(Orphan(key, claimed.category, claimed.meta, claimed.attempts))
        return found

    async def forget(self, key: str, owner: str) -> None:
        """Note that a claimed job is deleted."""
        self._put(key, ledger.forget(self._get(key), self._clock(), owner))

    async def ping(self) -> None:
        """Do nothing: memory answers."""

    async def close(self) -> None:
        """Do nothing: a create that still runs may want to record itself."""

    def _get(self, key: str) -> Entry | None:
        return self._open.get(key) or self._lasting.get(key)

    def _put(self, key: str, entry: Entry | None) -> None:
        """Write an entry where its state belongs; None changes nothing."""
        if entry is None:
            return
        if entry.state not in _LASTING:
            self._lasting.pop(key, None)
            self._open[key] = entry
            if entry.state is not State.RESERVED:
                heapq.heappush(self._due, (entry.until, key))
                return
        else:
            opened, lasting = self._open, self._lasting
            opened.pop(key, None)
            known = lasting.get(key)
            lasting[key] = entry
            if known is not None:
                lasting.move_to_end(key)
            if len(opened) + len(lasting) > self._capacity:
                lasting.popitem(last=False)
            if known is not None and known.until == entry.until:
                return
        lasts = entry.until + (entry.retention if entry.state is State.RESERVED else 0.0)
        self._look_at(key, lasts)

    def _look_at(self, key: str, lasts: float) -> None:
        """Note when to look whether the key's entry is over."""
        slot = int(lasts / _SLOT) + 1
        keys = self._slots.get(slot)
        if keys is None:
            heapq.heappush(self._next_slots, slot)
            keys = self._slots[slot] = []
        keys.append(key)

    def _drop_ended(self, now: float) -> None:
        """Drop a few of the entries whose time is over."""
        for _ in range(_AT_ONCE):
            if not self._next_slots or self._next_slots[0] * _SLOT > now:
                return
            keys = self._slots[self._next_slots[0]]
            if not keys:
                del self._slots[heapq.heappop(self._next_slots)]
                continue
            key = keys.pop()
            for entries in (self._lasting, self._open):
                entry = entries.get(key)
                if entry is not None and _over(entry, now):
                    del entries[key]


def _over(entry: Entry, now: float) -> bool:
    """Tell whether nothing is lost with an entry; an orphan always counts."""
    if entry.state is State.RESERVED:
        return entry.until + entry.retention <= now
    return entry.state in _LASTING and entry.until <= now
