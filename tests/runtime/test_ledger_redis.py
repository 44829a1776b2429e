"""The Redis ledger with a real Redis: races of processes, kills, restarts, silence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime.ledgers import JOB, LEASE
from runtime.redis_server import RedisServer

from connector_service.errors import LedgerDownError, StartupError
from connector_service.runtime.ledger import Held, Job, Recorded, Reserved
from connector_service.runtime.ledger_redis import RedisLedger

JOBS = 1000
AT_ONCE = 20

# One replica: creates every job, in an order of its own, against a backend that is a file.
REPLICA = """
import asyncio, os, random, sys, time
from connector_service.config import ConnectorSection
from connector_service.runtime.ledger_redis import RedisLedger
from connector_service.runtime.once import CreateOnce, idempotency_key
from connector_service.sdk.resource import TaskCategory

url, file, me, jobs, at_once = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
backend = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
spark = TaskCategory("spark", 1)

async def run(key):
    os.write(backend, f"{key} {me}\\n".encode())
    await asyncio.sleep(0.002)
    return me.encode()  # short: all answers fit into a pipe that nobody reads yet

async def main():
    ledger = RedisLedger(url)
    await ledger.open()
    once = CreateOnce(ledger, lease=3.0)
    await once.start()
    gate = asyncio.Semaphore(at_once)

    async def one(number):
        key = idempotency_key(spark, f"s3://bucket/{number}")
        async with gate:
            deadline = time.monotonic() + 30
            meta = await once.create(spark, key, run, ConnectorSection(), deadline=deadline)
        print(key, meta.decode(), flush=True)

    order = list(range(jobs))
    random.Random(me).shuffle(order)
    print("ready", flush=True)
    sys.stdin.readline()
    await asyncio.gather(*(one(number) for number in order))
    await once.close(5)
    await ledger.close()

asyncio.run(main())
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    made = RedisServer(tmp_path / "redis", durable=True)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that does not wait for a slow disk, for races that are about leases."""
    made = RedisServer(tmp_path / "redis")
    made.start()
    yield made
    made.kill()


@contextlib.contextmanager
def replica(server: RedisServer, backend: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    arguments = [server.url, str(backend), name, str(JOBS), str(AT_ONCE)]
    started = subprocess.Popen(
        [sys.executable, "-c", REPLICA, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def go(*replicas: subprocess.Popen[str]) -> None:
    for one in replicas:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()


def answers(said: str) -> dict[str, str]:
    whole = [line for line in said.splitlines(keepends=True) if line.endswith("\n")]
    return dict(line.split() for line in whole)  # type: ignore[misc]


def created(backend: Path) -> list[list[str]]:
    return [line.split() for line in backend.read_text().splitlines()]


def test_two_processes_race_for_every_job(forgetful: RedisServer, tmp_path: Path) -> None:
    """1,000 duplicate creates at two replicas make exactly 1,000 jobs, and the same answers."""
    backend = tmp_path / "backend"
    with replica(forgetful, backend, "1") as one, replica(forgetful, backend, "2") as other:
        go(one, other)
        said = [each.communicate(timeout=60)[0] for each in (one, other)]
        assert [one.returncode, other.returncode] == [0, 0]
    assert answers(said[0]) == answers(said[1])
    assert len(answers(said[0])) == JOBS
    jobs = created(backend)
    assert len(jobs) == len({key for key, _ in jobs}) == JOBS
    assert Counter(by for _, by in jobs).keys() == {"1", "2"}, "there was no race"


def test_a_process_killed_half_way(forgetful: RedisServer, tmp_path: Path) -> None:
    """The survivor finishes all 1,000; no job that was answered is made again.

    Made twice is only what the dead one was creating when it died, which a backend that honours
    the idempotency key answers with the first job.
    """
    backend = tmp_path / "backend"
    with replica(forgetful, backend, "1") as dying, replica(forgetful, backend, "2") as survivor:
        go(dying, survivor)
        assert dying.stdout is not None
        said = "".join(dying.stdout.readline() for _ in range(JOBS // 3))
        dying.send_signal(signal.SIGKILL)
        said += dying.stdout.read()
        rest, _ = survivor.communicate(timeout=60)
        assert survivor.returncode == 0
    told, final = answers(said), answers(rest)
    assert len(final) == JOBS
    assert {key: final[key] for key in told} == told
    made = Counter(key for key, _ in created(backend))
    assert len(made) == JOBS
    twice = {key for key, count in made.items() if count > 1}
    assert len(twice) <= AT_ONCE
    assert not twice & told.keys()
    assert all(final[key] == "2" for key in twice)


async def test_redis_killed_and_restarted(server: RedisServer) -> None:
    """Down, it says so at once; back, it answers by itself, and knows what it knew."""
    ledger = RedisLedger(server.url)
    await ledger.record("k", "a", JOB, delivered=True)
    await ledger.reserve("running", "a", 60.0)
    server.kill()
    for _ in range(3):
        begun = time.monotonic()
        with pytest.raises(LedgerDownError, match="Redis"):
            await ledger.reserve("k", "b", LEASE)
        assert time.monotonic() - begun < 1.0
    server.start()
    assert await ledger.reserve("k", "b", LEASE) == Recorded(JOB.meta, 2)
    assert isinstance(await ledger.reserve("running", "b", LEASE), Held)
    await ledger.close()


async def test_dead_connections_are_replaced(server: RedisServer) -> None:
    """After a restart that no question fell into, not one question fails."""
    ledger = RedisLedger(server.url)
    asked = [ledger.reserve(f"k{number}", "a", LEASE) for number in range(50)]
    await asyncio.gather(*asked)
    server.kill()
    server.start()
    again = [ledger.reserve(f"l{number}", "a", LEASE) for number in range(50)]
    assert await asyncio.gather(*again) == [Reserved()] * 50
    await ledger.close()


async def test_redis_that_lost_its_memory(server: RedisServer) -> None:
    """A running create takes its key back with its next renewal."""
    ledger = RedisLedger(server.url)
    await ledger.reserve("k", "a", LEASE)
    await ledger._redis.flushall()
    assert await ledger.renew([("k", "a")], LEASE) == set()
    assert isinstance(await ledger.reserve("k", "b", LEASE), Held)
    await ledger.close()


async def test_redis_that_hangs(server: RedisServer) -> None:
    """Silent, it costs 200 askers at once two seconds; awake, no answer is another's."""
    ledger = RedisLedger(server.url)
    for number in range(40):
        job = Job(JOB.category, f"job-{number}".encode(), JOB.retention, JOB.grace)
        await ledger.record(f"k{number}", "a", job, delivered=True)
    server.signal(signal.SIGSTOP)
    begun = time.monotonic()
    asked = [ledger.reserve(f"k{number % 40}", "b", LEASE) for number in range(200)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in found} == {LedgerDownError}
    assert time.monotonic() - begun < 3.0
    server.signal(signal.SIGCONT)
    for number in range(40):
        answer = await ledger.reserve(f"k{number}", "b", LEASE)
        assert isinstance(answer, Recorded)
        assert answer.meta == f"job-{number}".encode()
    await ledger.close()


async def test_an_asker_that_leaves_leaves_no_answer_behind(server: RedisServer) -> None:
    """A question cancelled at any moment never gives its answer to the next one."""
    ledger = RedisLedger(server.url)
    for number in range(200):
        task = asyncio.create_task(ledger.reserve(f"left{number}", "a", LEASE))
        for _ in range(number % 8):
            await asyncio.sleep(0)
        task.cancel()
        await ledger.ping()
        assert await ledger.reserve(f"k{number}", "a", LEASE) == Reserved()
        assert isinstance(await ledger.reserve(f"k{number}", "b", LEASE), Held)
        await asyncio.gather(task, return_exceptions=True)
    await ledger.close()


async def test_it_opens_without_redis(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that is not there yet does not stop the start; the log says so."""
    ledger = RedisLedger(RedisServer(tmp_path).url)
    with caplog.at_level(logging.WARNING):
        await ledger.open()
    assert caplog.messages == ["ledger_down"]
    await ledger.close()
    await ledger.close()


@pytest.mark.parametrize("url", ["http://me:hunter2@host/0", "redis", "redis://me:hunter2@host:x"])
def test_an_url_that_is_none(url: str) -> None:
    """What is no URL of a Redis stops the start, and its password is not said."""
    with pytest.raises(StartupError, match="--ledger-url") as raised:
        RedisLedger(url)
    assert "hunter2" not in str(raised.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-py the start says what to install."""
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(StartupError, match=r"connector-service\[redis\]"):
        RedisLedger("redis://localhost")


async def test_keys_end_by_themselves(server: RedisServer) -> None:
    """Nothing stays in Redis for ever, whatever state it is left in."""
    ledger = RedisLedger(server.url)
    job = Job(JOB.category, JOB.meta, JOB.retention, 0.0)
    await ledger.reserve("reserved", "a", LEASE)
    await ledger.record("kept", "a", JOB, delivered=True)
    await ledger.record("owed", "a", JOB, delivered=False)
    await ledger.record("withdrawn", "a", JOB, delivered=True)
    await ledger.withdraw("withdrawn", 1, JOB.grace)
    await ledger.record("claimed", "a", job, delivered=False)
    await ledger.record("forgotten", "a", job, delivered=False)
    await ledger.orphans("s", LEASE, 9)
    await ledger.forget("forgotten", "s")
    spans = {
        key.decode().rpartition(":")[2]: await ledger._redis.pttl(key) / 1000
        for key in await ledger._redis.keys("*:job:*")
    }
    month = 30 * 86400
    expected = {
        "reserved": LEASE,
        "kept": JOB.retention,
        "owed": month + JOB.grace,
        "withdrawn": month + JOB.grace,
        "claimed": month,
        "forgotten": JOB.retention,
    }
    assert spans == pytest.approx(expected, abs=2.0)
    await ledger.close()
