"""Many polls from one call of a connector, as both of Flyte's clients see it over a real port."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from flyte_clients import Flyte, make_connector
from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl2.core.security_pb2 import Connection
from process_hosts import Hosts, until

from connector_service import PermanentError, Phase, Resource, TaskCategory
from connector_service.config import ConnectorSection
from connector_service.errors import GoneError
from connector_service.runtime import batch
from connector_service.runtime.call import Call
from connector_service.sdk.method import Operation
from connector_service.testing import Served, serve

PROTOCOLS = ["flyteidl", "flyteidl2"]
SHAPES = ["base", "connector"]
PATIENCE = 20.0
JOBS = 1_000
BARE = ConnectorSection(guarantees=False)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have polls wait for a call that is out however long a busy machine takes to send them."""
    monkeypatch.setattr(batch, "_OVERDUE", PATIENCE)


def meta(job: str) -> bytes:
    return json.dumps({"job": job}).encode()


class Backend:
    """What the connector asks; it counts, and answers when the gate is open."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.more: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.stopped = 0
        self.gate.set()

    async def status(self, jobs: list[str], **more: Any) -> list[Resource]:
        self.calls.append(jobs)
        self.more.append(more)
        self.begun.set()
        try:
            await self.gate.wait()
            await asyncio.sleep(0.01)  # a backend's round trip
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return [Resource(Phase.RUNNING, message=job) for job in jobs]

    async def hold(self, first: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
        """Close the gate, and have one poll stand before it."""
        self.gate.clear()
        self.begun.clear()
        task = asyncio.ensure_future(first())
        async with asyncio.timeout(PATIENCE):
            await self.begun.wait()
        return task


def batching(shape: str, backend: Backend, get_many: Any = None, **more: Any) -> Any:
    async def get(self: Any, resource_meta: Any, **kwargs: Any) -> Resource:
        (answer,) = await backend.status([resource_meta.job])
        return answer

    async def many(self: Any, resource_metas: Any, **kwargs: Any) -> list[Resource]:
        return await backend.status([one.job for one in resource_metas], **kwargs)

    return make_connector(shape, get=get, get_many=get_many or many, **more)


@asynccontextmanager
async def served(
    protocol: str, *connectors: Any, **options: Any
) -> AsyncIterator[tuple[Served, Flyte]]:
    async with serve(*connectors, **options) as one:
        flyte = Flyte(protocol, one.endpoint)
        async with flyte.channel:
            yield one, flyte


async def waiting(one: Served, polls: int) -> None:
    """Wait until so many polls are with the connector, or wait for a slot of it."""
    bulkhead = one.service._dispatcher.routes[TaskCategory("crossed")].bulkhead
    await until(lambda: bulkhead.running + bulkhead.waiting >= polls)


async def queued(one: Served, polls: int) -> None:
    """Wait until so many polls wait for a call that is out."""
    host: Any = one.service._dispatcher.routes[TaskCategory("crossed")].host

    def count() -> int:
        found = (known.together for known in host._crossings.values() if known.together)
        return sum(len(line._waiting) for _, batches in found for line in batches._lines.values())

    await until(lambda: count() == polls)


async def burst(one: Served, flyte: Flyte, backend: Backend) -> list[Any]:
    """Poll every job at once; the backend answers nobody before the last poll is there."""
    backend.gate.clear()
    polls = [asyncio.ensure_future(flyte.get(meta(str(number)))) for number in range(JOBS)]
    await waiting(one, JOBS)
    backend.gate.set()
    return await asyncio.gather(*polls)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_thousand_jobs_are_polled_in_few_calls(protocol: str, shape: str) -> None:
    """1,000 polls at once reach the backend as 20 calls at most, and each gets its own answer."""
    backend = Backend()
    policy = ConnectorSection(concurrency=JOBS, get_timeout=PATIENCE)
    async with served(protocol, batching(shape, backend), policy=policy) as (one, flyte):
        found = await burst(one, flyte, backend)
    assert [resource.message for resource in found] == [str(number) for number in range(JOBS)]
    assert {resource.phase for resource in found} == {TaskExecution.RUNNING}
    assert len(backend.calls) <= 20
    assert max(len(jobs) for jobs in backend.calls) <= 100
    assert sorted(int(job) for jobs in backend.calls for job in jobs) == list(range(JOBS))


async def test_with_the_default_slots_a_call_has_so_many_jobs() -> None:
    """``concurrency`` of 64 bounds a call; 1,000 polls are answered by few more than 16."""
    backend = Backend()
    policy = ConnectorSection(queue=JOBS, get_timeout=PATIENCE)
    async with served("flyteidl", batching("base", backend), policy=policy) as (one, flyte):
        await burst(one, flyte, backend)
    assert len(backend.calls) <= 24
    assert max(len(jobs) for jobs in backend.calls) <= 64


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_lone_poll_is_a_get(protocol: str, shape: str) -> None:
    """With no other poll there the connector's ``get`` answers, as without get_many."""
    backend = Backend()

    async def never(self: Any, resource_metas: Any) -> None:
        raise AssertionError

    async with served(protocol, batching(shape, backend, never), policy=BARE) as (_, flyte):
        assert (await flyte.get(meta("1"))).message == "1"
        assert (await flyte.get(meta("2"))).message == "2"
    assert backend.calls == [["1"], ["2"]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_failures_are_judged_one_by_one(protocol: str) -> None:
    """Each exception in the list meets the policies that one of ``get`` would meet."""
    backend = Backend()
    verdicts = {
        "gone": GoneError("Purged."),
        "refused": PermanentError("Not allowed."),
        "busy": ConnectionResetError("reset"),
        "exit": SystemExit(1),
        "class": ValueError,
        "none": None,
    }

    async def many(self: Any, resource_metas: Any) -> list[Any]:
        jobs = [one.job for one in resource_metas]
        backend.calls.append(jobs)
        fine = Resource(Phase.SUCCEEDED, outputs={"n": 1})
        return [verdicts.get(job, fine) for job in jobs]

    async with served(protocol, batching("base", backend, many)) as (one, flyte):
        first = await backend.hold(lambda: flyte.get(meta("first")))
        jobs = [*verdicts, "fine"]
        polls = [asyncio.ensure_future(flyte.get(meta(job))) for job in jobs]
        await waiting(one, 1 + len(jobs))
        backend.gate.set()
        found = dict(zip(jobs, await asyncio.gather(*polls), strict=True))
        await first
    assert sorted(backend.calls[1]) == sorted(jobs)
    phases = {job: TaskExecution.Phase.Name(resource.phase) for job, resource in found.items()}
    assert phases == {
        "gone": "RETRYABLE_FAILED",
        "refused": "FAILED",
        "busy": "RUNNING",
        "exit": "RUNNING",
        "class": "RUNNING",
        "none": "RUNNING",
        "fine": "SUCCEEDED",
    }
    assert "Purged" in found["gone"].message
    assert "Not allowed" in found["refused"].message
    assert found["fine"].HasField("outputs")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_list_of_the_wrong_length_fails_all(protocol: str) -> None:
    """Nobody gets another job's answer: all polls of that call fail."""
    backend = Backend()

    async def short(self: Any, resource_metas: Any) -> list[Any]:
        return [Resource(Phase.SUCCEEDED)]

    connector = batching("base", backend, short)
    async with served(protocol, connector, policy=BARE) as (one, flyte):
        first = await backend.hold(lambda: flyte.get(meta("first")))
        polls = [asyncio.ensure_future(flyte.get(meta(job))) for job in "ab"]
        await queued(one, 2)
        backend.gate.set()
        await asyncio.wait([first, *polls])
    for poll in polls:
        error = poll.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.INTERNAL
    assert first.result().message == "first"


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_get_many_that_raises_fails_all(protocol: str) -> None:
    """What it raises is every caller's error, and a patient job's last phase."""
    backend = Backend()

    async def raising(self: Any, resource_metas: Any) -> list[Any]:
        raise KeyError(len(resource_metas))

    async with served(protocol, batching("base", backend, raising)) as (one, flyte):
        first = await backend.hold(lambda: flyte.get(meta("first")))
        polls = [asyncio.ensure_future(flyte.get(meta(job))) for job in "ab"]
        await waiting(one, 3)
        backend.gate.set()
        found = await asyncio.gather(*polls)
        await first
    assert [resource.phase for resource in found] == [TaskExecution.RUNNING] * 2
    assert all("KeyError" in resource.message for resource in found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hostile", [b"", b"\xff\x00", b"[]", b'{"job": {}}', b"{" * 2_000])
async def test_a_meta_that_is_none_is_its_own_caller_s(shape: str, hostile: bytes) -> None:
    """One that cannot be decoded is refused by itself; the connector never hears of it."""
    backend = Backend()
    async with served("flyteidl", batching(shape, backend)) as (one, flyte):
        first = await backend.hold(lambda: flyte.get(meta("first")))
        polls = [asyncio.ensure_future(flyte.get(meta(job))) for job in "ab"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await flyte.get(hostile)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await waiting(one, 3)
        backend.gate.set()
        assert [resource.message for resource in await asyncio.gather(*polls)] == ["a", "b"]
        await first
    assert [sorted(call) for call in backend.calls] == [["first"], ["a", "b"]]


async def test_connections_are_not_mixed() -> None:
    """Polls go together when the keywords that get_many takes are equal, and only then."""
    backend = Backend()

    async def many(self: Any, resource_metas: Any, token: str = "none") -> list[Resource]:
        return await backend.status([one.job for one in resource_metas], token=token)

    connections = {
        "a1": {"token": "a", "region": "eu"},
        "a2": {"token": "a", "region": "us"},
        "b1": {"token": "b"},
        "b2": {"token": "b"},
    }
    async with served("flyteidl2", batching("connector", backend, many)) as (one, flyte):
        backend.gate.clear()

        def poll(job: str) -> asyncio.Task[Any]:
            return asyncio.create_task(
                flyte.get(meta(job), connection=Connection(secrets=connections[job[:2]]))
            )

        firsts = [poll("a1 first"), poll("b1 first")]
        await waiting(one, 2)
        polls = [poll(job) for job in connections]
        await waiting(one, 6)
        backend.gate.set()
        found = await asyncio.gather(*polls, *firsts)
    assert [resource.message for resource in found[:4]] == list(connections)
    calls = {
        tuple(sorted(jobs)): more for jobs, more in zip(backend.calls, backend.more, strict=True)
    }
    assert calls == {
        ("a1 first",): {},
        ("b1 first",): {},
        ("a1", "a2"): {"token": "a"},
        ("b1", "b2"): {"token": "b"},
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_caller_that_leaves_takes_only_itself_out(protocol: str) -> None:
    """The others of its call are answered."""
    backend = Backend()
    async with served(protocol, batching("base", backend), policy=BARE) as (one, flyte):
        first = await backend.hold(lambda: flyte.get(meta("first")))
        polls = [asyncio.ensure_future(flyte.get(meta(job))) for job in "abc"]
        await queued(one, 3)
        polls[1].cancel()
        await queued(one, 2)
        backend.gate.set()
        assert (await polls[0]).message == "a"
        assert (await polls[2]).message == "c"
        await first
    assert [sorted(call) for call in backend.calls] == [["first"], ["a", "c"]]


async def test_a_poll_past_its_deadline_is_absorbed_and_the_call_goes_on() -> None:
    """``get_timeout`` answers each poll with its last phase, though it waits for another's call."""
    backend = Backend()
    policy = ConnectorSection(get_timeout=0.3)
    async with served("flyteidl", batching("base", backend), policy=policy) as (_, flyte):
        await backend.hold(lambda: flyte.get(meta("first")))
        started = time.monotonic()
        late = await flyte.get(meta("late"))
        assert time.monotonic() - started < PATIENCE / 2
        assert late.phase == TaskExecution.RUNNING
        assert "deadline" in late.message
        backend.gate.set()
        assert (await flyte.get(meta("next"))).message == "next"


async def test_shutdown_leaves_no_call_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is out when the service stops is cancelled, and no task is left."""
    monkeypatch.setattr(batch, "_OVERDUE", 0.25)
    backend = Backend()
    before = asyncio.all_tasks()
    async with serve(batching("base", backend), grace=0.1) as one:
        flyte = Flyte("flyteidl", one.endpoint)
        first = await backend.hold(lambda: flyte.get(meta("first")))
        polls = [asyncio.ensure_future(flyte.get(meta(job))) for job in "ab"]
        await waiting(one, 3)
        await until(lambda: len(backend.calls) == 2)  # one that hangs holds up the next not long
    await asyncio.wait([first, *polls])
    await flyte.channel.close()
    async with asyncio.timeout(PATIENCE):
        while left := [task for task in asyncio.all_tasks() - before if "_ask" in str(task)]:
            await asyncio.wait(left)
    assert backend.stopped == 2


async def test_the_metric_tells_how_many_go_together() -> None:
    """``connector_service_batched_polls`` counts calls, and sums the polls that they answered."""
    backend = Backend()
    async with served("flyteidl", batching("base", backend)) as (one, flyte):
        first = await backend.hold(lambda: flyte.get(meta("first")))
        polls = [asyncio.ensure_future(flyte.get(meta(job))) for job in "abc"]
        await waiting(one, 4)
        backend.gate.set()
        await asyncio.gather(first, *polls)
        registry = one.service.metrics.registry
        labels = {"task_type": "crossed"}
        name = "connector_service_batched_polls"
        assert registry.get_sample_value(f"{name}_count", labels) == 2
        assert registry.get_sample_value(f"{name}_sum", labels) == 4


async def test_connectors_in_a_child_batch_too(hosts: Hosts) -> None:
    """A process host of our own connectors answers many polls from one call in the child."""
    host, _ = await hosts.started("batched", sources=("module:batched",))

    async def poll(number: int) -> Any:
        request = agent_pb2.GetTaskRequest(
            task_category=agent_pb2.TaskCategory(name="batched"),
            resource_meta=json.dumps({"number": number}).encode(),
        )
        deadline = time.monotonic() + PATIENCE
        category = TaskCategory("batched")
        return await host.run(Call("flyteidl", Operation.GET, category, request, deadline=deadline))

    found: list[Any] = await asyncio.gather(*map(poll, range(100)), return_exceptions=True)
    gone = found.pop(7)
    assert isinstance(gone, GoneError)
    assert str(gone) == "7 was purged."
    told = [resource.message.split(" in ") for resource in found]
    assert [int(number) for number, _ in told] == [n for n in range(100) if n != 7]
    assert max(int(calls) for _, calls in told) <= 20
