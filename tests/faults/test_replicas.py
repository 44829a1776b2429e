"""Two services, one Redis, a backend of their own: each job is created once, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from faults.remote import TASK_TYPE, Remote
from faults.service import Service
from flyteidl.admin import agent_pb2
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.service.agent_pb2_grpc import AgentMetadataServiceStub, AsyncAgentServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from runtime.redis_server import RedisServer

JOBS = 1000
AT_ONCE = 50
PATIENCE = 60.0  # seconds; a lease of a killed replica is 15 of them
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
TEMPLATE = TaskTemplate(type=TASK_TYPE)
CATEGORY = agent_pb2.TaskCategory(name=TASK_TYPE)


class Caller:
    """A client of one replica; what is UNAVAILABLE it asks for again, as propeller would."""

    def __init__(self, endpoint: str) -> None:
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 500))
        self.channel = grpc.aio.insecure_channel(endpoint, options=options)
        self.jobs: Any = AsyncAgentServiceStub(self.channel)

    async def create(self, prefix: str, *, timeout: float = 10.0) -> bytes:  # noqa: ASYNC109
        request = agent_pb2.CreateTaskRequest(template=TEMPLATE, output_prefix=prefix, inputs={})
        response = await self.jobs.CreateTask(request, timeout=timeout)
        meta: bytes = response.resource_meta
        return meta

    async def create_patiently(self, prefix: str) -> bytes:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await self.create(prefix)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not UNAVAILABLE:
                        raise
                await asyncio.sleep(0.2)


@dataclass
class Replicas:
    """Two services that share a ledger, a caller of each, and what stands behind them."""

    redis: RedisServer
    backend: Remote
    services: tuple[Service, Service]
    callers: tuple[Caller, Caller]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", durable=True)
    server.start()
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def replicas(
    redis: RedisServer, folder: Path, *flags: str, **faults: object
) -> AsyncIterator[Replicas]:
    """Run two services on the ledger in ``redis``."""
    backend = Remote(**faults)
    shared = (f"--ledger-url={redis.url}", *flags)
    services = (
        Service(backend, folder / "one", *shared),
        Service(backend, folder / "two", *shared),
    )
    callers = []
    try:
        for service in services:
            service.start()
        callers = [Caller(service.endpoint) for service in services]
        yield Replicas(redis, backend, services, (callers[0], callers[1]))
    finally:
        for caller in callers:
            await caller.channel.close()
        for service in services:
            service.kill()
        backend.close()


async def raced(caller: Caller, seed: int, answers: dict[str, bytes]) -> None:
    """Create every job through one replica, in an order of its own."""
    order = list(range(JOBS))
    random.Random(seed).shuffle(order)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            answers[f"n{number}"] = await caller.create_patiently(f"n{number}")

    async with asyncio.TaskGroup() as group:
        for number in order:
            group.create_task(one(number))


async def test_duplicates_raced_through_both_make_one_job_each(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Without any help from the backend: exactly 1,000 jobs, and both callers get the same."""
    async with replicas(redis, tmp_path, latency=0.005, honours_keys=0) as at:
        first: dict[str, bytes] = {}
        second: dict[str, bytes] = {}
        async with asyncio.TaskGroup() as group:
            group.create_task(raced(at.callers[0], 1, first))
            group.create_task(raced(at.callers[1], 2, second))
        assert first == second
        assert len(await at.backend.jobs()) == len(set(first.values())) == JOBS


async def test_the_survivor_answers_all_when_the_other_is_killed(
    redis: RedisServer, tmp_path: Path
) -> None:
    """One is killed half-way: exactly 1,000 jobs, and what it had answered still holds."""
    async with replicas(redis, tmp_path, latency=0.02) as at:
        first: dict[str, bytes] = {}
        second: dict[str, bytes] = {}

        async def kill_half_way() -> int:
            while len(first | second) < JOBS // 2:  # noqa: ASYNC110 - the callers' progress
                await asyncio.sleep(0.002)
            made = len(await at.backend.jobs())
            await asyncio.to_thread(at.services[0].kill)
            doomed.cancel()
            return made

        async with asyncio.TaskGroup() as group:
            doomed = group.create_task(raced(at.callers[0], 1, first))
            group.create_task(raced(at.callers[1], 2, second))
            killed = group.create_task(kill_half_way())
        assert JOBS // 2 <= killed.result() < JOBS
        assert 0 < len(first) < JOBS
        assert len(second) == JOBS
        assert first.items() <= second.items()
        assert len(await at.backend.jobs()) == JOBS


@pytest.mark.parametrize("choice", ["refuse", "continue"])
async def test_without_redis_creates_follow_the_choice_and_nothing_else_changes(
    redis: RedisServer, tmp_path: Path, choice: str
) -> None:
    """Creates are UNAVAILABLE, or run and are counted; polls, deletes, the list, health go on."""
    async with replicas(redis, tmp_path, f"--ledger-down={choice}") as at:
        caller, service = at.callers[0], at.services[0]
        metas = [await caller.create(f"before{n}") for n in range(20)]
        redis.kill()
        if choice == "refuse":
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await caller.create("during")
            assert refused.value.code() is UNAVAILABLE
        else:
            assert await caller.create("during")
        counted = "connector_service_unguarded_creates_total"
        unguarded = await asyncio.to_thread(service.metric, counted, task_type=TASK_TYPE)
        assert unguarded == (choice == "continue")
        assert len(await at.backend.jobs()) == 20 + (choice == "continue")

        listing: Any = AgentMetadataServiceStub(caller.channel)
        health: Any = health_pb2_grpc.HealthStub(caller.channel)
        loop = asyncio.get_running_loop()
        slowest = 0.0
        for meta in metas:
            began = loop.time()
            polled = await caller.jobs.GetTask(
                agent_pb2.GetTaskRequest(task_category=CATEGORY, resource_meta=meta), timeout=5
            )
            assert polled.resource.phase == agent_pb2.Resource(phase="RUNNING").phase
            await caller.jobs.DeleteTask(
                agent_pb2.DeleteTaskRequest(task_category=CATEGORY, resource_meta=meta), timeout=5
            )
            listed = await listing.ListAgents(agent_pb2.ListAgentsRequest(), timeout=5)
            assert [agent.name for agent in listed.agents] == ["Remote"]
            healthy = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert healthy.status == health_pb2.HealthCheckResponse.SERVING
            slowest = max(slowest, loop.time() - began)
        # None of them waited for Redis, whose time limit alone is a second.
        assert slowest < 1.0
        cancelled = [job for job in await at.backend.jobs() if job["state"] == "CANCELLED"]
        assert len(cancelled) == 20

        redis.start()
        assert await caller.create_patiently("after") == await at.callers[1].create("after")
        # What was answered before is remembered by a Redis that keeps its data.
        assert await at.callers[1].create("before0") == metas[0]
