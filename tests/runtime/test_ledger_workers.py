"""One SQLite file for the workers of one service: each sees the others' jobs, none twice."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from runtime.ledgers import JOB, LEASE

from connector_service.errors import StartupError
from connector_service.runtime.ledger import Held, Recorded, Reserved
from connector_service.runtime.ledger_sqlite import SqliteLedger

# Reserves and records keys as fast as it can, beside another process that does the same.
RACER = """
import asyncio, sys
from connector_service.runtime.ledger import Job, Reserved
from connector_service.runtime.ledger_sqlite import SqliteLedger
from connector_service.sdk.resource import TaskCategory

JOB = Job(TaskCategory("spark", 1), b"{}", 3600.0, 0.0)

async def main():
    ledger = SqliteLedger(sys.argv[1], mark=sys.argv[2], durable=False)
    await ledger.open()
    print("ready", flush=True)
    sys.stdin.readline()
    won = []
    for first in range(0, 400, 8):
        keys = [f"k{number}" for number in range(first, first + 8)]
        found = await asyncio.gather(*(ledger.reserve(key, "o", 15.0) for key in keys))
        won += [key for key, one in zip(keys, found) if isinstance(one, Reserved)]
    # Who asks for a key that is recorded already is given the job, which is no orphan then.
    print("reserved", flush=True)
    sys.stdin.readline()
    for key in won:
        await ledger.record(key, "o", JOB, delivered=False)
    claimed = []
    while orphans := await ledger.orphans("sweeper", 60.0, 10):
        claimed += [orphan.key for orphan in orphans]
    print(",".join(won), ",".join(claimed), sep=";", flush=True)
    await ledger.close()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def workers(folder: Path, *marks: str) -> AsyncIterator[list[SqliteLedger]]:
    """Open the supervisor's ledger, which locks the folder, and one for each mark."""
    ledgers = [SqliteLedger(folder), *(SqliteLedger(folder, mark=mark) for mark in marks)]
    for ledger in ledgers:
        await ledger.open()
    try:
        yield ledgers[1:]
    finally:
        for ledger in ledgers:
            await ledger.close()


async def test_workers_remember_together(tmp_path: Path) -> None:
    """What one reserves is held for the other, and what one recorded answers the other."""
    async with workers(tmp_path, "w0/", "w1/") as (one, two):
        assert await one.reserve("k", "a", LEASE) == Reserved(0)
        assert isinstance(await two.reserve("k", "a", LEASE), Held)
        assert await two.renew([("k", "a")], LEASE) == {"k"}
        assert await one.renew([("k", "a")], LEASE) == set()
        await two.release("k", "a")  # it is not the other's to give up
        assert isinstance(await two.reserve("k", "b", LEASE), Held)
        await one.record("k", "a", JOB, delivered=True)
        assert await two.reserve("k", "a", LEASE) == Recorded(JOB.meta, 2)


async def test_a_service_of_its_own_is_refused_beside_workers(tmp_path: Path) -> None:
    """The supervisor holds the folder for its workers alone, until the last of them has ended."""
    async with workers(tmp_path, "w0/"):
        with pytest.raises(StartupError, match="Another connector-service uses"):
            await SqliteLedger(tmp_path).open()
    alone = SqliteLedger(tmp_path)
    await alone.open()
    await alone.close()


async def test_a_worker_that_is_back_frees_what_it_left_and_nothing_else(tmp_path: Path) -> None:
    """Its reservations and claims are free at once; those of the others, w10 too, stay theirs."""
    async with workers(tmp_path, "w1/", "w10/", "w2/") as (one, ten, two):
        for ledger, key in ((one, "one"), (ten, "ten"), (two, "two")):
            await ledger.reserve(key, "a", LEASE)
        await one.record("owed", "a", JOB, delivered=False)
        await one.withdraw("owed", 0, 0.0)
        await one.close()
        back = SqliteLedger(tmp_path, mark="w1/")
        await back.open()
        assert await two.reserve("one", "b", LEASE) == Reserved(0)
        assert isinstance(await two.reserve("ten", "b", LEASE), Held)
        assert isinstance(await back.reserve("two", "b", LEASE), Held)
        await back.close()


def racer(folder: Path, mark: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RACER, str(folder), mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_racing_processes_neither_create_nor_sweep_a_job_twice(tmp_path: Path) -> None:
    """Two processes that reserve the same keys at once, and then sweep, share them out exactly."""
    async with workers(tmp_path):
        racers = [racer(tmp_path, f"w{number}/") for number in range(2)]
        try:
            for one in racers:
                assert one.stdin is not None
                assert one.stdout is not None
                assert await asyncio.to_thread(one.stdout.readline) == "ready\n"
            for one in racers:
                one.stdin.write("\n")
                one.stdin.flush()
            for one in racers:
                assert await asyncio.to_thread(one.stdout.readline) == "reserved\n"
            said = await asyncio.gather(
                *(asyncio.to_thread(one.communicate, "\n", timeout=60) for one in racers)
            )
        finally:
            for one in racers:
                if one.poll() is None:
                    one.send_signal(signal.SIGKILL)
                    one.wait()
    assert [one.returncode for one in racers] == [0, 0], "a racer's own traceback stands above"
    every = sorted(f"k{number}" for number in range(400))
    for what in (0, 1):
        shares = [out.strip().split(";")[what].split(",") for out, _ in said]
        assert sorted(key for share in shares for key in share if key) == every


async def test_a_worker_waits_for_another_s_transaction(tmp_path: Path) -> None:
    """A file that another process holds for a moment is no error, and is taken when it is free."""
    async with workers(tmp_path, "w0/") as (one,):
        other = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        reserving = asyncio.create_task(one.reserve("k", "a", LEASE))
        started = time.monotonic()
        done, _ = await asyncio.wait({reserving}, timeout=0.3)
        assert not done
        other.execute("COMMIT")
        other.close()
        assert await reserving == Reserved(0)
        assert time.monotonic() - started < 3
