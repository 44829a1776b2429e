"""The SQLite ledger through kill -9, full disks, damage, and a second process."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runtime.ledgers import JOB, LEASE

from connector_service.errors import LedgerDownError, StartupError
from connector_service.runtime.ledger import Held, Job, Orphan, Recorded, Reserved
from connector_service.runtime.ledger_sqlite import FILE, SqliteLedger

PRELUDE = """
import asyncio, resource, sys
from connector_service.errors import LedgerDownError
from connector_service.runtime.ledger import Job
from connector_service.runtime.ledger_sqlite import SqliteLedger
from connector_service.sdk.resource import TaskCategory

JOB = Job(TaskCategory("spark", 1), b'{"id": "7"}', 3600.0, 120.0)
ledger = SqliteLedger(sys.argv[1])

def say(text):
    print(text, flush=True)
    if sys.argv[2:] == [text]:
        sys.stdin.read()  # here it is killed
"""

STEPS = """
async def main():
    await ledger.open()
    say("opened")
    await ledger.reserve("k", "a", 15.0)
    say("reserved")
    say("created")
    await ledger.record("k", "a", JOB, delivered=True)
    say("recorded")
    await ledger.withdraw("k", 1, 0.0)
    say("withdrawn")
    await ledger.orphans("s", 60.0, 9)
    say("claimed")
    await ledger.forget("k", "s")
    say("forgotten")
    await ledger.reserve("k", "b", 15.0)
    say("reserved again")
    await asyncio.Event().wait()

asyncio.run(main())
"""


def process(script: str, folder: Path, *halt: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, str(folder), *halt],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed_at(script: str, folder: Path, step: str, *halt: str) -> list[str]:
    """Run a script until it has said ``step``, kill it, and return all that it said."""
    said: list[str] = []
    with process(script, folder, *halt) as running:
        assert running.stdout is not None
        for line in running.stdout:
            said.append(line.strip())
            if said[-1] == step:
                running.send_signal(signal.SIGKILL)
                break
        said += [line.strip() for line in running.stdout if line.endswith("\n")]
        assert running.wait() == -signal.SIGKILL
    return said


ORPHAN = Orphan("k", JOB.category, JOB.meta, 1)


@pytest.mark.parametrize(
    ("step", "orphans", "found"),
    [
        ("opened", [], Reserved()),
        ("reserved", [], Reserved()),
        ("created", [], Reserved()),  # the crash window: the idempotency key closes it, or nothing
        ("recorded", [], Recorded(JOB.meta, 2)),
        ("withdrawn", [ORPHAN], Held(LEASE)),
        ("claimed", [Orphan("k", JOB.category, JOB.meta, 2)], Held(LEASE)),
        ("forgotten", [], Reserved(1)),
        ("reserved again", [], Reserved(1)),
    ],
)
async def test_kill_between_every_two_steps(
    tmp_path: Path, step: str, orphans: list[Orphan], found: object
) -> None:
    """Killed after any step, the next process goes on from there, and nothing is lost."""
    killed_at(STEPS, tmp_path, step, step)
    ledger = SqliteLedger(tmp_path)
    await ledger.open()
    assert await ledger.orphans("t", LEASE, 9) == orphans
    answer = await ledger.reserve("k", "c", LEASE)
    assert type(answer) is type(found)
    if not isinstance(found, Held):
        assert answer == found
    await ledger.close()


MANY = """
async def one(number):
    key = f"k{number}"
    await ledger.reserve(key, "a", 15.0)
    await ledger.record(key, "a", JOB, delivered=True)
    say(key)

async def main():
    await ledger.open()
    for first in range(0, 100_000, 50):
        await asyncio.gather(*(one(first + number) for number in range(50)))

asyncio.run(main())
"""


async def test_what_was_answered_is_there_after_a_kill(tmp_path: Path) -> None:
    """Killed under load, no record that was acknowledged is lost, and the file is whole."""
    said = killed_at(MANY, tmp_path, "k220")
    assert len(said) > 200
    ledger = SqliteLedger(tmp_path)
    await ledger.open()
    found = [await ledger.reserve(key, "b", LEASE) for key in said]
    await ledger.close()
    assert set(found) == {Recorded(JOB.meta, 2)}


FULL = """
async def fill():
    for number in range(10_000):
        job = Job(JOB.category, b"x" * 4096, JOB.retention, JOB.grace)
        await ledger.record(f"k{number}", "a", job, delivered=True)
        say(f"k{number}")

async def main():
    await ledger.open()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        await fill()
    except LedgerDownError as error:
        say(f"down: {error}")
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await ledger.reserve("later", "a", 15.0)
    await ledger.record("later", "a", JOB, delivered=True)
    say("later")
    await ledger.close()

asyncio.run(main())
"""


async def test_a_full_disk_is_said_and_survived(tmp_path: Path) -> None:
    """Without room a record is refused with a sentence; with room again all goes on."""
    with process(FULL, tmp_path) as running:
        out, _ = running.communicate(timeout=60)
    said = out.splitlines()
    assert running.returncode == 0, out
    assert said[-1] == "later"
    assert said[-2].startswith("down: The ledger's file cannot be used: ")
    assert len(said) > 10
    ledger = SqliteLedger(tmp_path)
    await ledger.open()
    for key in (*said[:-2], "later"):
        assert isinstance(await ledger.reserve(key, "b", LEASE), Recorded)
    await ledger.close()


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """While one process uses the folder another is told so; after its death it is free."""
    with process(
        "async def main():\n await ledger.open()\n say('opened')\n"
        " await asyncio.Event().wait()\nasyncio.run(main())",
        tmp_path,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "opened\n"
        with pytest.raises(StartupError, match=r"Another connector-service .* --ledger-url"):
            await SqliteLedger(tmp_path).open()
        running.kill()
    ledger = SqliteLedger(tmp_path)
    await ledger.open()
    await ledger.close()


async def test_the_folder_and_its_files_are_private(tmp_path: Path) -> None:
    """Metas may say more than all should read: folder 0700, files 0600, whatever the umask."""
    folder = tmp_path / "deep" / "state"
    before = os.umask(0)
    try:
        ledger = SqliteLedger(folder)
        await ledger.open()
        await ledger.record("k", "a", JOB, delivered=True)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert modes.keys() >= {FILE, f"{FILE}-wal", "ledger.lock"}
        assert set(modes.values()) == {0o600}
        await ledger.close()
    finally:
        os.umask(before)


def _garbage(file: Path) -> None:
    file.write_bytes(os.urandom(8192))


def _cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def _holed(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


def _newer(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_garbage, "file is not a database"),
        (_cut, "Move it away"),
        (_holed, "Move it away"),
        (_newer, "another release"),
    ],
)
async def test_a_damaged_file_is_refused(tmp_path: Path, damage: object, said: str) -> None:
    """A file that is not whole stops the start with what to do, and the folder is free again."""
    ledger = SqliteLedger(tmp_path)
    await ledger.open()
    await asyncio.gather(
        *(ledger.record(f"k{number}", "a", JOB, delivered=True) for number in range(500))
    )
    await ledger.close()
    damage(tmp_path / FILE)  # type: ignore[operator]
    for _ in range(2):
        with pytest.raises(StartupError, match=said):
            await SqliteLedger(tmp_path).open()


async def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """A path that cannot be a folder is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match=r"--state-dir .* cannot be used"):
        await SqliteLedger(tmp_path / "file").open()


async def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """Read-only under way: every question is a LedgerDownError with SQLite's reason."""
    ledger = SqliteLedger(tmp_path)
    await ledger.open()
    await ledger._ask(lambda database: database.execute("PRAGMA query_only = ON").fetchall())
    with pytest.raises(LedgerDownError, match="readonly"):
        await ledger.reserve("k", "a", LEASE)
    with pytest.raises(LedgerDownError, match="readonly"):
        await ledger.ping()
    await ledger.close()
    with pytest.raises(LedgerDownError, match="closed"):
        await ledger.reserve("k", "a", LEASE)


async def test_the_loop_is_never_blocked(tmp_path: Path) -> None:
    """While the file is slow, the event loop goes on; an asker that leaves harms nobody."""
    ledger = SqliteLedger(tmp_path)
    await ledger.open()
    begun, asked = time.monotonic(), asyncio.create_task(ledger._ask(lambda _: time.sleep(0.2)))
    left = asyncio.create_task(ledger.reserve("k", "a", LEASE))
    longest = 0.0
    while not asked.done():
        before = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - before)
        left.cancel()
    assert time.monotonic() - begun > 0.15
    assert longest < 0.1
    assert isinstance(await ledger.reserve("k", "b", LEASE), Reserved | Held)
    await ledger.close()


async def test_rows_leave_when_their_time_is_over(tmp_path: Path) -> None:
    """The file holds no more than what still counts."""
    now = [1_000_000.0]
    ledger = SqliteLedger(tmp_path, clock=lambda: now[0])
    await ledger.open()
    jobs = [ledger.record(f"k{n}", "a", JOB, delivered=n > 0) for n in range(100)]
    await asyncio.gather(*jobs, ledger.reserve("running", "a", LEASE))
    now[0] += JOB.retention
    assert len(await ledger.orphans("s", LEASE, 9)) == 1
    (left,) = await ledger._ask(
        lambda database: database.execute("SELECT count(*) FROM jobs").fetchone()
    )
    assert left == 1
    await ledger.close()


async def test_a_job_survives_a_restart(tmp_path: Path) -> None:
    """An orderly end keeps all: answers, and what is owed."""
    ledger = SqliteLedger(tmp_path)
    await ledger.open()
    job = Job(JOB.category, b"\x00\xff", JOB.retention, 0.0)
    await ledger.record("kept", "a", JOB, delivered=True)
    await ledger.record("owed", "a", job, delivered=False)
    await ledger.close()
    await ledger.open()
    assert await ledger.reserve("kept", "b", LEASE) == Recorded(JOB.meta, 2)
    assert await ledger.orphans("s", LEASE, 9) == [Orphan("owed", job.category, job.meta, 1)]
    await ledger.close()
