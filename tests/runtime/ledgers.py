"""Ledgers of every kind for tests, each with a clock that the test moves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from connector_service.runtime.ledger import Job, Ledger
from connector_service.runtime.ledger_memory import MemoryLedger
from connector_service.runtime.ledger_redis import RedisLedger
from connector_service.runtime.ledger_sqlite import SqliteLedger
from connector_service.sdk.resource import TaskCategory

LEASE = 15.0
JOB = Job(TaskCategory("spark", 1), b'{"id": "7"}', 3600.0, 120.0)
KINDS = ("memory", "sqlite", "redis")


@dataclass
class Bench:
    """A ledger, and how to move its clock by seconds."""

    ledger: Ledger
    advance: Callable[[float], None]


@contextlib.asynccontextmanager
async def opened(kind: str, folder: Path, redis_url: str = "") -> AsyncIterator[Bench]:
    """Open a ledger of one kind and close it; one Redis serves many, each with its own keys."""
    now = [1_000_000.0]

    def advance(seconds: float) -> None:
        now[0] += seconds

    ledger: Ledger
    if kind == "memory":
        ledger = MemoryLedger(clock=lambda: now[0])
    elif kind == "sqlite":
        ledger = SqliteLedger(folder / "state", clock=lambda: now[0])
    elif kind == "redis":
        begun = now[0]
        prefix = f"{folder.name}:{{ledger}}:"
        ledger = RedisLedger(redis_url, prefix=prefix, ahead=lambda: now[0] - begun)
    else:
        raise ValueError(kind)
    await ledger.open()
    try:
        yield Bench(ledger, advance)
    finally:
        await ledger.close()
