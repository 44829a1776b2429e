"""Creating once: who gets which answer, whatever callers, ledgers and other replicas do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from runtime.ledgers import LEASE, Bench

from connector_service.config import ConnectorSection
from connector_service.errors import (
    ConnectorNotFoundError,
    DeadlineError,
    GoneError,
    LedgerDownError,
    PermanentError,
    TransientError,
    UnavailableError,
)
from connector_service.runtime.ledger import Held, Job, Orphan, Recorded, Reserved
from connector_service.runtime.ledger_memory import MemoryLedger
from connector_service.runtime.once import CreateOnce, idempotency_key
from connector_service.runtime.orphans import Sweeper
from connector_service.sdk.resource import TaskCategory

CATEGORY = TaskCategory("spark", 1)
KEY = idempotency_key(CATEGORY, "s3://bucket/run/node/0")
LIMITS = ConnectorSection(create_limit=60.0, create_retention=3600.0, orphan_grace=120.0)
DOWN = LedgerDownError("The ledger is down.")


class Backend:
    """A backend whose creates wait to be let through, and which counts its jobs."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.jobs: list[bytes] = []
        self.deleted: list[bytes] = []
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.fault: Exception | None = None
        self.delete_faults: list[Exception] = []

    async def create(self, key: str) -> bytes:
        self.keys.append(key)
        self.begun.set()
        await self.go.wait()
        if self.fault is not None:
            raise self.fault
        self.jobs.append(f"job-{len(self.jobs) + 1}".encode())
        return self.jobs[-1]

    async def delete(self, category: TaskCategory, meta: bytes) -> None:
        assert category == CATEGORY
        if self.delete_faults:
            raise self.delete_faults.pop(0)
        self.deleted.append(meta)


class Faulty(MemoryLedger):
    """A ledger that is down for the operations named in ``down``, and can be held up."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock=clock)
        self.down: set[str] = set()
        self.asked = asyncio.Event()
        self.through = asyncio.Event()
        self.through.set()

    async def _pass(self, name: str) -> None:
        self.asked.set()
        await self.through.wait()
        if name in self.down:
            raise DOWN

    async def reserve(self, key: str, owner: str, lease: float) -> Reserved | Recorded | Held:
        await self._pass("reserve")
        return await super().reserve(key, owner, lease)

    async def record(self, key: str, owner: str, job: Job, *, delivered: bool) -> Recorded:
        await self._pass("record")
        return await super().record(key, owner, job, delivered=delivered)

    async def release(self, key: str, owner: str) -> None:
        await self._pass("release")
        await super().release(key, owner)

    async def renew(self, held: object, lease: float) -> set[str]:
        await self._pass("renew")
        return await super().renew(held, lease)  # type: ignore[arg-type]

    async def orphans(self, owner: str, lease: float, limit: int) -> list[Orphan]:
        await self._pass("orphans")
        return await super().orphans(owner, lease, limit)


class World:
    """One ledger, one backend, and as many replicas as a test wants."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ledger = Faulty(lambda: self.now)
        self.bench = Bench(self.ledger, self.advance)
        self.backend = Backend()
        self.slept: asyncio.Queue[float] = asyncio.Queue()
        self.orphans: list[str] = []
        self.unguarded: list[TaskCategory] = []
        self.replicas: list[CreateOnce] = []
        self.sweeper = Sweeper(
            self.ledger,
            self.backend.delete,
            on_orphan=lambda _category, outcome: self.orphans.append(outcome),
        )

    def advance(self, seconds: float) -> None:
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        """Let simulated time pass, and everybody else run."""
        self.now += seconds
        self.slept.put_nowait(seconds)
        await asyncio.sleep(0)

    def replica(self, ledger_down: str = "refuse") -> CreateOnce:
        made = CreateOnce(
            self.ledger,
            ledger_down=ledger_down,  # type: ignore[arg-type]
            on_unguarded=self.unguarded.append,
            clock=lambda: self.now,
            sleep=self.sleep,
        )
        self.replicas.append(made)
        return made

    def call(
        self, replica: CreateOnce, *, seconds: float | None = None, key: str = KEY
    ) -> asyncio.Task[bytes]:
        deadline = None if seconds is None else self.now + seconds
        return asyncio.create_task(
            replica.create(CATEGORY, key, self.backend.create, LIMITS, deadline=deadline)
        )

    async def settled(self, replica: CreateOnce) -> None:
        """Wait until the replica has nothing running."""
        while replica.running:  # noqa: ASYNC110 - the end of its tasks has no event
            await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.ledger.through.set()
    for replica in made.replicas:
        await replica.close(0)


async def gone(task: asyncio.Task[bytes]) -> None:
    """Leave as a client that disconnects."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_duplicates_join_one_create(world: World) -> None:
    """Concurrent duplicates run one create and all get its bytes."""
    replica = world.replica()
    calls = [world.call(replica) for _ in range(100)]
    await world.backend.begun.wait()
    world.backend.go.set()
    assert set(await asyncio.gather(*calls)) == {b"job-1"}
    assert world.backend.keys == [KEY]


async def test_a_create_that_never_waits_is_answered_at_once(world: World) -> None:
    """It needs no task, is remembered as any other, and a repeat gets its answer."""
    replica = world.replica()
    world.backend.go.set()
    first = replica.create(CATEGORY, KEY, world.backend.create, LIMITS)
    with pytest.raises(StopIteration) as ended:
        first.send(None)
    assert ended.value.value == b"job-1"
    assert replica.running == 0
    assert await world.call(replica) == b"job-1"
    assert world.backend.keys == [KEY]


@pytest.mark.parametrize(
    ("fault", "heard"),
    [(PermanentError("no"), PermanentError), (asyncio.CancelledError(), UnavailableError)],
    ids=["an error", "a cancellation of itself"],
)
async def test_a_create_that_fails_at_once_frees_its_caller(
    world: World, fault: BaseException, heard: type[Exception]
) -> None:
    """The caller hears it, and is not taken for one who has left."""

    async def run(_key: str) -> bytes:
        raise fault

    with pytest.raises(heard):
        await world.replica().create(CATEGORY, KEY, run, LIMITS)
    caller = asyncio.current_task()
    assert caller is not None
    assert not caller.cancelling()


async def test_a_repeat_gets_the_first_answer(world: World) -> None:
    """Within the retention a repeat, here or at another replica, gets the same bytes."""
    world.backend.go.set()
    first, second = world.replica(), world.replica()
    for replica in (first, first, second):
        assert await world.call(replica) == b"job-1"
    world.advance(LIMITS.create_retention + 1)
    assert await world.call(second) == b"job-2"
    assert world.backend.keys == [KEY, KEY]


@pytest.mark.parametrize("keys", [("", ""), (KEY, "another")])
async def test_what_does_not_join(world: World, keys: tuple[str, str]) -> None:
    """Creates without an output prefix, or with different ones, have nothing in common."""
    world.backend.go.set()
    replica = world.replica()
    answers = [await world.call(replica, key=key) for key in keys]
    assert answers == [b"job-1", b"job-2"]
    assert world.backend.keys == list(keys)


async def test_a_create_without_a_key_ends_with_its_caller(world: World) -> None:
    """Nobody could ask for its answer again, so it is cancelled."""
    replica = world.replica()
    call = world.call(replica, key="")
    await world.backend.begun.wait()
    await gone(call)
    await world.settled(replica)
    assert world.backend.jobs == []


async def test_each_caller_has_its_own_deadline(world: World) -> None:
    """One caller's deadline does not end the create of another."""
    replica = world.replica()
    patient = world.call(replica)
    hasty = world.call(replica, seconds=0.01)
    with pytest.raises(DeadlineError, match="goes on"):
        await hasty
    world.backend.go.set()
    assert await patient == b"job-1"
    assert world.backend.keys == [KEY]


async def test_a_call_past_its_deadline_never_begins(world: World) -> None:
    """Nothing is reserved for a caller that has gone already."""
    with pytest.raises(DeadlineError, match="before"):
        await world.call(world.replica(), seconds=-1)
    assert len(world.ledger) == 0


@pytest.mark.parametrize(
    "fault", [PermanentError("no"), TransientError("busy"), TimeoutError(), ValueError("bug")]
)
async def test_a_failing_create_frees_its_key(world: World, fault: Exception) -> None:
    """Every joined caller gets the error, and the next create begins anew."""
    replica = world.replica()
    world.backend.fault = fault
    calls = [world.call(replica) for _ in range(3)]
    await world.backend.begun.wait()
    world.backend.go.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert errors == [fault] * 3
    world.backend.fault = None
    assert await world.call(world.replica()) == b"job-1"
    assert world.backend.keys == [KEY, KEY]


async def test_a_create_ends_at_its_limit(world: World) -> None:
    """A create that never ends is cut at `create_limit`, and its key is free again."""
    limits = ConnectorSection(create_limit=0.01)
    with pytest.raises(DeadlineError, match="create_limit"):
        await world.replica().create(CATEGORY, KEY, world.backend.create, limits)
    world.backend.go.set()
    assert await world.call(world.replica()) == b"job-1"


LEAVING = ["deadline", "cancel"]


@pytest.mark.parametrize("how", LEAVING)
async def test_a_deserted_create_is_owed_to_a_repeat(world: World, how: str) -> None:
    """The create goes on without callers; a repeat in the grace gets its bytes, for good."""
    replica = world.replica()
    call = world.call(replica, seconds=0.01 if how == "deadline" else None)
    await world.backend.begun.wait()
    if how == "deadline":
        with pytest.raises(DeadlineError):
            await call
    else:
        await gone(call)
    world.backend.go.set()
    await world.settled(replica)
    world.advance(LIMITS.orphan_grace - 1)
    assert await world.sweeper.sweep() == 0
    assert await world.call(world.replica()) == b"job-1"
    world.advance(LIMITS.orphan_grace * 2)
    assert await world.sweeper.sweep() == 0
    assert world.backend.deleted == []


async def test_a_repeat_joins_a_deserted_create(world: World) -> None:
    """A repeat that comes while the create still runs waits for it, and takes its answer."""
    replica = world.replica()
    call = world.call(replica)
    await world.backend.begun.wait()
    await gone(call)
    again = world.call(replica)
    world.backend.go.set()
    assert await again == b"job-1"
    await world.settled(replica)
    world.advance(LIMITS.orphan_grace * 2)
    assert await world.sweeper.sweep() == 0


async def test_an_orphan_is_deleted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Without a repeat the job is deleted, counted and logged; a late repeat is a new job.

    Its idempotency key differs, or the backend would answer with the job that was deleted.
    """
    replica = world.replica()
    call = world.call(replica)
    await world.backend.begun.wait()
    await gone(call)
    world.backend.go.set()
    await world.settled(replica)
    world.advance(LIMITS.orphan_grace)
    assert await world.sweeper.sweep() == 1
    assert world.backend.deleted == [b"job-1"]
    assert world.orphans == ["deleted"]
    assert "orphan_deleted" in caplog.messages
    assert await world.sweeper.sweep() == 0
    assert await world.call(replica) == b"job-2"
    assert world.backend.keys == [KEY, f"{KEY}-1"]


@pytest.mark.parametrize(
    ("faults", "outcomes", "deleted"),
    [
        ([GoneError("gone")], ["deleted"], []),
        ([TransientError("busy")], ["retried", "deleted"], [b"job-1"]),
        ([ConnectionError(), TimeoutError()], ["retried", "retried", "deleted"], [b"job-1"]),
        ([ConnectorNotFoundError("x", [])], ["retried", "deleted"], [b"job-1"]),
        ([PermanentError("no")], ["failed"], []),
        ([ValueError("bug")], ["failed"], []),
    ],
)
async def test_a_deletion_that_fails(
    world: World, faults: list[Exception], outcomes: list[str], deleted: list[bytes]
) -> None:
    """Transient faults are tried again when the claim is over, others are given up; all counted."""
    await world.ledger.record(KEY, "a", Job(CATEGORY, b"job-1", 3600.0, 0.0), delivered=False)
    world.backend.delete_faults = list(faults)
    for _ in range(5):
        await world.sweeper.sweep()
        world.advance(61)
    assert world.orphans == outcomes
    assert world.backend.deleted == deleted


async def test_a_caller_that_leaves_at_the_last_moment(world: World) -> None:
    """Recorded as delivered, and then nobody there: the hand-out is taken back."""
    replica = world.replica()
    call = world.call(replica)
    await world.backend.begun.wait()
    world.ledger.asked.clear()
    world.ledger.through.clear()
    world.backend.go.set()
    await world.ledger.asked.wait()
    await gone(call)
    world.ledger.through.set()
    await world.settled(replica)
    world.advance(LIMITS.orphan_grace)
    assert await world.sweeper.sweep() == 1
    assert world.backend.deleted == [b"job-1"]


async def test_a_caller_that_comes_at_the_last_moment(world: World) -> None:
    """Recorded as owed, and then somebody there: it is no orphan any more."""
    replica = world.replica()
    call = world.call(replica)
    await world.backend.begun.wait()
    await gone(call)
    world.ledger.asked.clear()
    world.ledger.through.clear()
    world.backend.go.set()
    await world.ledger.asked.wait()
    again = world.call(replica)
    await asyncio.sleep(0)
    world.ledger.through.set()
    assert await again == b"job-1"
    await world.settled(replica)
    world.advance(LIMITS.orphan_grace * 2)
    assert await world.sweeper.sweep() == 0


async def test_callers_that_leave_while_the_key_is_reserved(world: World) -> None:
    """Nothing is created for a caller that left before the create began."""
    replica = world.replica()
    world.ledger.through.clear()
    call = world.call(replica)
    await world.ledger.asked.wait()
    await gone(call)
    world.ledger.through.set()
    await world.settled(replica)
    assert world.backend.keys == []
    assert await world.ledger.reserve(KEY, "b", LEASE) == Reserved()


async def test_another_replica_waits_for_the_holder(world: World) -> None:
    """The second replica creates nothing, and has the first one's answer when it is there."""
    first, second = world.replica(), world.replica()
    one = world.call(first)
    await world.backend.begun.wait()
    other = world.call(second)
    await world.slept.get()
    world.backend.go.set()
    assert await asyncio.gather(one, other) == [b"job-1", b"job-1"]
    assert world.backend.keys == [KEY]


async def test_waiting_for_another_replica_ends_in_unavailable(world: World) -> None:
    """At its deadline the waiting caller is told to come back, and nothing of it is left."""
    await world.ledger.reserve(KEY, "another", 1e9)
    asleep = asyncio.Event()

    async def sleep(_: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    replica = CreateOnce(world.ledger, clock=lambda: world.now, sleep=sleep)
    call = world.call(replica, seconds=0.01)
    await asleep.wait()
    with pytest.raises(UnavailableError, match="Another replica"):
        await call
    await world.settled(replica)


async def test_a_dead_replicas_key_is_free_after_its_lease(world: World) -> None:
    """A replica that died in its create holds the key no longer than its lease."""
    await world.ledger.reserve(KEY, "dead", LEASE)
    world.backend.go.set()
    assert await world.call(world.replica()) == b"job-1"
    assert world.backend.keys == [KEY]


async def test_leases_are_renewed(world: World) -> None:
    """A create longer than its lease keeps its key."""
    replica = world.replica()
    call = world.call(replica)
    await world.backend.begun.wait()
    for _ in range(5):
        world.advance(LEASE * 0.9)
        await replica.renew()
    assert isinstance(await world.ledger.reserve(KEY, "other", LEASE), Held)
    world.backend.go.set()
    assert await call == b"job-1"
    await replica.renew()


@pytest.mark.parametrize("same", [True, False])
async def test_a_lost_lease_leaves_one_job(world: World, same: bool) -> None:
    """The first record wins; the other job is deleted, unless the backend made it the same."""
    first, second = world.replica(), world.replica()
    slow = world.call(first)
    await world.backend.begun.wait()
    world.ledger.down = {"renew"}
    world.advance(LEASE)
    await first.renew()
    world.ledger.down = set()
    quick = asyncio.create_task(
        second.create(CATEGORY, KEY, lambda _: _value(b"job-1" if same else b"quick"), LIMITS)
    )
    assert await quick == (b"job-1" if same else b"quick")
    await first.renew()
    world.backend.go.set()
    assert await slow == await quick
    await world.settled(first)
    assert await world.sweeper.sweep() == (0 if same else 1)
    assert world.backend.deleted == ([] if same else [b"job-1"])


async def _value(meta: bytes) -> bytes:
    return meta


async def test_refuse_without_the_ledger(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """With `refuse` no create runs, the caller may try again, and the log says it once."""
    world.ledger.down = {"reserve"}
    replica = world.replica()
    for _ in range(20):
        with pytest.raises(LedgerDownError):
            await world.call(replica)
    assert world.backend.keys == []
    assert caplog.messages.count("ledger_down") == 1


async def test_continue_without_the_ledger(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """With `continue` creates run, are counted, and are recorded when the ledger is back."""
    world.ledger.down = {"reserve", "record"}
    world.backend.go.set()
    replica = world.replica("continue")
    assert await world.call(replica) == b"job-1"
    assert await world.call(replica) == b"job-1"
    assert world.unguarded == [CATEGORY]
    assert caplog.messages.count("ledger_down") == 1
    world.ledger.down = set()
    await world.settled(replica)
    assert await world.call(world.replica()) == b"job-1"
    assert world.backend.keys == [KEY]


async def test_a_job_is_answered_though_it_cannot_be_recorded(world: World) -> None:
    """Down after the create, the ledger costs the caller nothing, and is told later."""
    replica = world.replica()
    call = world.call(replica)
    await world.backend.begun.wait()
    world.ledger.down = {"record", "release"}
    world.backend.go.set()
    assert await call == b"job-1"
    assert replica.running == 1
    world.ledger.down = set()
    await world.settled(replica)
    assert await world.ledger.reserve(KEY, "b", LEASE) == Recorded(b"job-1", 2)


async def test_closing_gives_creates_their_grace(world: World) -> None:
    """A detached create may finish and record itself; a new one is refused."""
    replica = world.replica()
    await replica.start()
    call = world.call(replica)
    await world.backend.begun.wait()
    await gone(call)
    closing = asyncio.create_task(replica.close(60))
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="leaving"):
        await world.call(replica, key="new")
    world.backend.go.set()
    await closing
    assert await world.ledger.reserve(KEY, "b", LEASE) == Recorded(b"job-1", 1)


async def test_closing_leaves_the_rest_reserved(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What did not finish is free after its lease, and its callers are told to ask again."""
    replica = world.replica()
    call = world.call(replica)
    await world.backend.begun.wait()
    await replica.close(0)
    with pytest.raises(UnavailableError, match="ask again"):
        await call
    assert isinstance(await world.ledger.reserve(KEY, "b", LEASE), Held)
    assert "creates_cut_short" in caplog.messages
    world.advance(LEASE)
    assert await world.ledger.reserve(KEY, "b", LEASE) == Reserved()


async def test_closing_before_a_create_took_its_first_step(world: World) -> None:
    """No caller waits for ever for a task that never began."""
    replica = world.replica()
    call = world.call(replica)
    await asyncio.sleep(0)
    await replica.close(0)
    with pytest.raises(UnavailableError, match="ask again"):
        await call


async def test_a_sweeper_outlives_a_ledger_that_is_down(world: World) -> None:
    """Sweeping goes on by itself, through a ledger that is down and a hook that raises."""
    rounds: list[float] = []
    done = asyncio.Event()

    async def sleep(seconds: float) -> None:
        rounds.append(seconds)
        world.ledger.down = {"orphans"} if len(rounds) < 3 else set()
        if len(rounds) == 5:
            done.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    def broken(_: TaskCategory, __: str) -> None:
        raise ValueError("a hook's bug")

    sweeper = Sweeper(world.ledger, world.backend.delete, on_orphan=broken, sleep=sleep)
    await world.ledger.record(KEY, "a", Job(CATEGORY, b"job-1", 3600.0, 0.0), delivered=False)
    await sweeper.start()
    await done.wait()
    await sweeper.close()
    assert world.backend.deleted == [b"job-1"]


@pytest.mark.parametrize(
    ("category", "prefix"),
    [
        (TaskCategory("spark", 1), "s3://b/1"),
        (TaskCategory("spark", 2), "s3://b/0"),
        (TaskCategory("ray", 1), "s3://b/0"),
        (TaskCategory("spark", 0), "1\0s3://b/0"),
        (TaskCategory("spark", 1), "s3://b/\ud800"),
    ],
)
def test_keys_differ(category: TaskCategory, prefix: str) -> None:
    """A key is 32 hexadecimal digits, and stands for one category and one prefix."""
    key = idempotency_key(category, prefix)
    assert len(key) == 32
    assert int(key, 16) >= 0
    assert key != idempotency_key(TaskCategory("spark", 1), "s3://b/0")
    assert key == idempotency_key(category, prefix)


def test_no_prefix_no_key() -> None:
    """Without an output prefix there is nothing to know a repeat by."""
    assert idempotency_key(CATEGORY, "") == ""
