"""The caller leaves in mid-create: the job is kept for a repeat, and deleted when none comes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
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
from flyteidl.service.agent_pb2_grpc import AsyncAgentServiceStub

from connector_service import TaskCategory, config
from connector_service.runtime.guarantees import Guarantees
from connector_service.runtime.hooks import Happening, Hook, Hooks
from connector_service.runtime.ledger import Job, Reserved, State
from connector_service.runtime.ledger_memory import MemoryLedger

PATIENCE = 30.0
LATENCY = 1.0  # seconds between the job's beginning and the backend's answer
COUNTER = "connector_service_orphans_total"
REQUEST = agent_pb2.CreateTaskRequest(
    template=TaskTemplate(type=TASK_TYPE), output_prefix="mem://run/n0/0", inputs={}
)


@dataclass
class Scene:
    """A service, its backend, and what a caller does to leave."""

    service: Service
    backend: Remote

    def channel(self) -> grpc.aio.Channel:
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        return grpc.aio.insecure_channel(self.service.endpoint, options=options)

    async def create(self) -> bytes:
        """Create, or repeat the create, as a caller who stays."""
        async with self.channel() as channel:
            stub: Any = AsyncAgentServiceStub(channel)
            response = await stub.CreateTask(REQUEST, timeout=PATIENCE, wait_for_ready=True)
        meta: bytes = response.resource_meta
        return meta

    async def jobs(self) -> list[str]:
        return [job["state"] for job in await self.backend.jobs()]

    async def begun(self) -> None:
        await self.until(lambda: self._has(["RUNNING"]), "the job began")

    async def cancelled(self) -> None:
        await self.until(lambda: self._has(["CANCELLED"]), "the orphan was deleted")

    async def _has(self, states: list[str]) -> bool:
        return await self.jobs() == states

    async def counted(self, outcome: str) -> float:
        return await asyncio.to_thread(self.service.metric, COUNTER, outcome=outcome)

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not await condition():  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never: {what}; {self.service.log}") from None


@contextlib.asynccontextmanager
async def scene(folder: Path, *flags: str, **section: object) -> AsyncIterator[Scene]:
    backend = Remote(latency=LATENCY)
    service = Service(backend, folder / "service", *flags, **section)
    try:
        await asyncio.to_thread(service.start)
        yield Scene(service, backend)
    finally:
        service.kill()
        backend.close()


async def by_deadline(at: Scene) -> None:
    async with at.channel() as channel:
        stub: Any = AsyncAgentServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.CreateTask(REQUEST, timeout=LATENCY / 2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def by_cancel(at: Scene) -> None:
    async with at.channel() as channel:
        stub: Any = AsyncAgentServiceStub(channel)
        call = stub.CreateTask(REQUEST, timeout=PATIENCE)
        waiting = asyncio.ensure_future(_outcome(call))
        await at.begun()
        call.cancel()
        await waiting


async def by_disconnect(at: Scene) -> None:
    channel = at.channel()
    stub: Any = AsyncAgentServiceStub(channel)
    waiting = asyncio.ensure_future(_outcome(stub.CreateTask(REQUEST, timeout=PATIENCE)))
    await at.begun()
    await channel.close()
    await waiting


async def _outcome(call: Any) -> None:
    with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await call
        raise AssertionError("the caller did not leave")


LEAVING = pytest.mark.parametrize("leave", [by_deadline, by_cancel, by_disconnect])
Leave = Callable[[Scene], Awaitable[None]]


@LEAVING
async def test_a_repeat_gets_the_job_that_was_left(leave: Leave, tmp_path: Path) -> None:
    """The create goes on without its caller; the repeat joins it or gets its answer."""
    async with scene(tmp_path, orphan_grace=600) as at:
        await leave(at)
        joined = await at.create()
        assert await at.create() == joined
        assert await at.jobs() == ["RUNNING"]
        assert await at.counted("deleted") == 0


@LEAVING
async def test_without_a_repeat_the_job_is_deleted(leave: Leave, tmp_path: Path) -> None:
    """After the grace the backend's job is cancelled, said in the log and counted."""
    async with scene(tmp_path, orphan_grace=0.5) as at:
        await leave(at)
        await at.cancelled()

        async def counted() -> bool:
            return await at.counted("deleted") == 1

        await at.until(counted, "the deletion was counted")
        assert "orphan_deleted" in at.service.log
        # Who asks after that gets a job of its own, not the deleted one.
        await at.create()
        assert await at.jobs() == ["CANCELLED", "RUNNING"]


async def test_a_deletion_that_fails_is_tried_again(tmp_path: Path) -> None:
    """A backend that is away when the grace ends costs nothing but time."""
    async with scene(tmp_path, orphan_grace=0.5, delete_timeout=0.5) as at:
        await by_cancel(at)
        await at.backend.set(error_rate=1.0)

        async def retried() -> bool:
            return await at.counted("retried") >= 1

        await at.until(retried, "a first deletion failed")
        assert await at.jobs() == ["RUNNING"]
        assert await at.counted("failed") == await at.counted("deleted") == 0
        await at.backend.set(error_rate=0.0)
        # The next claim comes after a minute, or with the next life of a service on this folder;
        # test_an_orphan_outlives_the_service has that.


@pytest.mark.parametrize("repeat", [True, False], ids=["a repeat", "no repeat"])
async def test_an_orphan_outlives_the_service(repeat: bool, tmp_path: Path) -> None:
    """What is owed when the service is killed is owed by its next life."""
    grace = 600.0 if repeat else 3.0
    state = f"--state-dir={tmp_path / 'state'}"
    async with scene(tmp_path, state, orphan_grace=grace) as at:
        await by_cancel(at)
        (job,) = await at.backend.jobs()
        await at.until(lambda: recorded(tmp_path), "the job was recorded")
        await asyncio.to_thread(at.service.kill)
        await asyncio.to_thread(at.service.start)
        if repeat:
            assert job["id"].encode() in await at.create()
            assert await at.jobs() == ["RUNNING"]
        else:
            await at.cancelled()
            await at.until(lambda: logged(at, "orphan_deleted"), "the deletion was logged")


async def test_a_failed_deletion_is_taken_up_by_the_next_life(tmp_path: Path) -> None:
    """A claim of a process that was killed is free at once for the next one."""
    state = f"--state-dir={tmp_path / 'state'}"
    async with scene(tmp_path, state, orphan_grace=0.5, delete_timeout=0.5) as at:
        await by_cancel(at)
        await at.backend.set(error_rate=1.0)
        await at.until(lambda: logged(at, "orphan_not_deleted_yet"), "a first deletion failed")
        await asyncio.to_thread(at.service.kill)
        await at.backend.set(error_rate=0.0)
        await asyncio.to_thread(at.service.start)
        await at.cancelled()


async def test_a_kill_in_mid_create_leaves_the_job_to_the_repeat(tmp_path: Path) -> None:
    """Killed before anything was recorded: the repeat finds the job by its idempotency key."""
    state = f"--state-dir={tmp_path / 'state'}"
    async with scene(tmp_path, state) as at:
        async with at.channel() as channel:
            stub: Any = AsyncAgentServiceStub(channel)
            waiting = asyncio.ensure_future(_outcome(stub.CreateTask(REQUEST, timeout=PATIENCE)))
            await at.begun()
            await asyncio.to_thread(at.service.kill)
            await waiting
        await asyncio.to_thread(at.service.start)
        (job,) = await at.backend.jobs()
        assert job["id"].encode() in await at.create()
        assert await at.jobs() == ["RUNNING"]


class Listener(Hook):
    """Keeps what the guarantees tell."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def happened(self, happening: Happening) -> None:
        self.told.append((happening.kind, happening.detail))


async def test_a_service_without_the_connector_leaves_the_orphan_to_another() -> None:
    """It cannot delete the job, and must not say that it did: the job would run on, forgotten."""
    listener, ledger = Listener(), MemoryLedger()
    guarantees = Guarantees(ledger, config.Ledger(), Hooks([listener]))
    job = Job(TaskCategory(TASK_TYPE, 0), b'{"job": "job-0"}', 3600.0, 0.0)
    await ledger.record("key", "a", job, delivered=False)
    assert await guarantees._sweeper.sweep() == 1
    assert listener.told == [("orphan", "retried")]
    # Claimed still, and so not free for a create either.
    assert not isinstance(await ledger.reserve("key", "b", 1.0), Reserved)


async def logged(at: Scene, event: str) -> bool:
    return event in at.service.log


async def recorded(folder: Path) -> bool:
    """Tell whether the ledger's file knows a job that is owed; read beside the service."""
    return await asyncio.to_thread(_owed, folder / "state" / "ledger.sqlite3") == 1


def _owed(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        (count,) = database.execute(
            "SELECT count(*) FROM jobs WHERE state = ?", (State.OWED,)
        ).fetchone()
    return int(count)
