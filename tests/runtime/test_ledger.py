"""One contract for every ledger: the same questions get the same answers from all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from runtime.ledgers import JOB, KINDS, LEASE, Bench, opened
from runtime.redis_server import RedisServer

from connector_service.runtime.ledger import Held, Job, Orphan, Recorded, Reserved
from connector_service.runtime.ledger_memory import MemoryLedger


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=KINDS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    url = request.getfixturevalue("redis").url if request.param == "redis" else ""
    async with opened(request.param, tmp_path, url) as made:
        yield made


async def free(bench: Bench) -> None:
    """Leave the key free."""


async def reserved(bench: Bench) -> None:
    assert await bench.ledger.reserve("k", "a", LEASE) == Reserved()


async def lapsed(bench: Bench) -> None:
    await reserved(bench)
    bench.advance(LEASE)


async def kept(bench: Bench) -> None:
    await reserved(bench)
    assert await bench.ledger.record("k", "a", JOB, delivered=True) == Recorded(JOB.meta, 1)


async def expired(bench: Bench) -> None:
    await kept(bench)
    bench.advance(JOB.retention)


async def owed(bench: Bench) -> None:
    await reserved(bench)
    assert await bench.ledger.record("k", "a", JOB, delivered=False) == Recorded(JOB.meta, 0)


async def due(bench: Bench) -> None:
    await owed(bench)
    bench.advance(JOB.grace)


async def claimed(bench: Bench) -> None:
    await due(bench)
    assert await bench.ledger.orphans("s", LEASE, 9) == [Orphan("k", JOB.category, JOB.meta, 1)]


async def forgotten(bench: Bench) -> None:
    await claimed(bench)
    await bench.ledger.forget("k", "s")


@pytest.mark.parametrize(
    ("before", "owner", "answer"),
    [
        (free, "b", Reserved()),
        (reserved, "a", Reserved()),
        (reserved, "b", Held(LEASE)),
        (lapsed, "b", Reserved()),
        (kept, "b", Recorded(JOB.meta, 2)),
        (kept, "a", Recorded(JOB.meta, 2)),
        (expired, "b", Reserved()),
        (owed, "b", Recorded(JOB.meta, 1)),
        (due, "b", Recorded(JOB.meta, 1)),
        (claimed, "b", Held(LEASE)),
        (forgotten, "b", Reserved(1)),
    ],
)
async def test_reserve(
    bench: Bench, before: Callable[[Bench], object], owner: str, answer: object
) -> None:
    """A key is the first asker's; what stands is handed out; what is being deleted never is."""
    await before(bench)  # type: ignore[misc]
    found = await bench.ledger.reserve("k", owner, LEASE)
    if isinstance(found, Held) and isinstance(answer, Held):
        assert found.retry_after == pytest.approx(answer.retry_after, abs=2.0)
    else:
        assert found == answer


@pytest.mark.parametrize(
    ("before", "owner", "lost"),
    [
        (free, "a", set()),
        (reserved, "a", set()),
        (reserved, "b", {"k"}),
        (lapsed, "a", set()),
        (kept, "a", {"k"}),
        (owed, "a", {"k"}),
        (claimed, "a", {"k"}),
        (forgotten, "a", {"k"}),
    ],
)
async def test_renew(
    bench: Bench, before: Callable[[Bench], object], owner: str, lost: set[str]
) -> None:
    """A lease is prolonged for its owner, taken back when nobody took it, and lost otherwise."""
    await before(bench)  # type: ignore[misc]
    assert await bench.ledger.renew([("k", owner)], LEASE) == lost
    if not lost:
        bench.advance(LEASE / 2)
        assert isinstance(await bench.ledger.reserve("k", "other", LEASE), Held)


OTHER = Job(JOB.category, b"other", JOB.retention, JOB.grace)


@pytest.mark.parametrize(
    ("before", "delivered", "stands"),
    [
        (free, True, Recorded(b"other", 1)),
        (reserved, False, Recorded(b"other", 0)),
        (lapsed, True, Recorded(b"other", 1)),
        (kept, True, Recorded(JOB.meta, 2)),
        (kept, False, Recorded(JOB.meta, 1)),
        (expired, True, Recorded(b"other", 1)),
        (owed, True, Recorded(JOB.meta, 1)),
        (owed, False, Recorded(JOB.meta, 0)),
        (claimed, True, Recorded(b"other", 1)),
        (forgotten, True, Recorded(b"other", 1)),
    ],
)
async def test_record(
    bench: Bench, before: Callable[[Bench], object], delivered: bool, stands: Recorded
) -> None:
    """The first record wins, whoever reserved; a second one reads what stands."""
    await before(bench)  # type: ignore[misc]
    assert await bench.ledger.record("k", "late", OTHER, delivered=delivered) == stands


@pytest.mark.parametrize(
    ("before", "owner", "then"),
    [
        (reserved, "a", Reserved()),
        (reserved, "b", Held(LEASE)),
        (kept, "a", Recorded(JOB.meta, 2)),
        (owed, "a", Recorded(JOB.meta, 1)),
        (free, "a", Reserved()),
    ],
)
async def test_release(
    bench: Bench, before: Callable[[Bench], object], owner: str, then: object
) -> None:
    """Only the owner frees its key, and only while nothing is recorded."""
    await before(bench)  # type: ignore[misc]
    await bench.ledger.release("k", owner)
    assert type(await bench.ledger.reserve("k", "c", LEASE)) is type(then)


async def test_a_generation_outlives_a_create_that_failed(bench: Bench) -> None:
    """After an orphan's deletion every create of the key says so, until its retention ends."""
    await forgotten(bench)
    assert await bench.ledger.reserve("k", "b", LEASE) == Reserved(1)
    await bench.ledger.release("k", "b")
    assert await bench.ledger.reserve("k", "c", LEASE) == Reserved(1)
    bench.advance(LEASE)
    assert await bench.ledger.reserve("k", "d", LEASE) == Reserved(1)
    await bench.ledger.release("k", "d")
    bench.advance(JOB.retention)
    assert await bench.ledger.reserve("k", "e", LEASE) == Reserved()


@pytest.mark.parametrize(("delivery", "orphaned"), [(1, True), (2, False), (0, False)])
async def test_withdraw(bench: Bench, delivery: int, orphaned: bool) -> None:
    """A hand-out is taken back unless there was a later one; then the grace begins."""
    await kept(bench)
    await bench.ledger.withdraw("k", delivery, 10.0)
    assert await bench.ledger.orphans("s", LEASE, 9) == []
    bench.advance(10.0)
    assert bool(await bench.ledger.orphans("s", LEASE, 9)) is orphaned


async def test_withdraw_after_a_repeat_changes_nothing(bench: Bench) -> None:
    """A job that a second caller got is not deleted because the first had gone."""
    await kept(bench)
    assert await bench.ledger.reserve("k", "b", LEASE) == Recorded(JOB.meta, 2)
    await bench.ledger.withdraw("k", 1, 0.0)
    assert await bench.ledger.orphans("s", LEASE, 9) == []


@pytest.mark.parametrize("before", [free, reserved, lapsed, kept, expired, owed, forgotten])
async def test_no_orphan_before_its_time(bench: Bench, before: Callable[[Bench], object]) -> None:
    """Only what is owed and past its grace is claimed."""
    await before(bench)  # type: ignore[misc]
    assert await bench.ledger.orphans("s", LEASE, 9) == []


async def test_a_claim_is_one_deleters_until_it_ends(bench: Bench) -> None:
    """Two deleters never hold one orphan, a dead one's comes again, and only its holder ends it."""
    await claimed(bench)
    assert await bench.ledger.orphans("t", LEASE, 9) == []
    bench.advance(LEASE)
    assert await bench.ledger.orphans("t", LEASE, 9) == [Orphan("k", JOB.category, JOB.meta, 2)]
    await bench.ledger.forget("k", "s")
    assert isinstance(await bench.ledger.reserve("k", "b", LEASE), Held)
    await bench.ledger.forget("k", "t")
    assert await bench.ledger.reserve("k", "b", LEASE) == Reserved(1)


async def test_orphans_are_claimed_once_and_in_portions(bench: Bench) -> None:
    """Deleters that ask at the same time share the orphans without an overlap."""
    keys = {f"k{n}" for n in range(40)}
    for key in keys:
        await bench.ledger.record(key, "a", JOB, delivered=False)
    bench.advance(JOB.grace)
    asked = [bench.ledger.orphans(f"s{n}", LEASE, 10) for n in range(6)]
    found = [orphan.key for portion in await asyncio.gather(*asked) for orphan in portion]
    assert len(found) == len(keys)
    assert set(found) == keys


async def test_an_orphan_outlives_the_retention(bench: Bench) -> None:
    """What must be deleted is not forgotten because no one swept for long."""
    await owed(bench)
    bench.advance(JOB.retention * 3)
    assert [orphan.key for orphan in await bench.ledger.orphans("s", LEASE, 9)] == ["k"]


async def test_of_many_askers_one_creates(bench: Bench) -> None:
    """Of 50 owners that ask for each of 20 keys at once, one gets each."""
    asked = [
        bench.ledger.reserve(f"k{key}", f"o{owner}", LEASE)
        for key in range(20)
        for owner in range(50)
    ]
    found = await asyncio.gather(*asked)
    assert sum(isinstance(one, Reserved) for one in found) == 20
    assert sum(isinstance(one, Held) for one in found) == 980


@pytest.mark.parametrize("meta", [b"", b"\x00\xff\r\n", b"x" * 65536])
async def test_metas_come_back_byte_for_byte(bench: Bench, meta: bytes) -> None:
    """Any bytes are remembered as they are, the empty ones too."""
    job = Job(JOB.category, meta, JOB.retention, JOB.grace)
    await bench.ledger.record("k", "a", job, delivered=False)
    bench.advance(JOB.grace)
    assert [one.meta for one in await bench.ledger.orphans("s", LEASE, 9)] == [meta]


async def test_ping_and_close(bench: Bench) -> None:
    """A ledger answers, and closes twice."""
    await bench.ledger.ping()
    await bench.ledger.close()
    await bench.ledger.close()


async def test_memory_is_bounded() -> None:
    """The least recently asked for leaves first; running creates and orphans never leave."""
    now = [0.0]
    ledger = MemoryLedger(capacity=4, clock=lambda: now[0])
    await ledger.reserve("running", "a", LEASE)
    await ledger.record("owed", "a", JOB, delivered=False)
    for key in ("k1", "k2"):
        await ledger.record(key, "a", JOB, delivered=True)
    assert isinstance(await ledger.reserve("k1", "b", LEASE), Recorded)
    await ledger.record("k3", "a", JOB, delivered=True)
    assert len(ledger) == 4
    assert isinstance(await ledger.reserve("k1", "b", LEASE), Recorded)
    assert isinstance(await ledger.reserve("k2", "b", LEASE), Reserved)
    assert isinstance(await ledger.reserve("running", "b", LEASE), Held)


async def test_memory_lets_go_of_what_ended() -> None:
    """Entries whose time is over leave by themselves, without being asked for."""
    now = [0.0]
    ledger = MemoryLedger(clock=lambda: now[0])
    for number in range(1000):
        await ledger.reserve(f"k{number}", "a", LEASE)
        if number % 2:
            await ledger.record(f"k{number}", "a", JOB, delivered=True)
    assert len(ledger) == 1000
    now[0] = JOB.retention + 120
    for _ in range(40):
        await ledger.orphans("s", LEASE, 1)
    assert len(ledger) == 0
