"""Each promise about faults, judged by the rules of Flyte's client over a real port."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from faults.backend import ALWAYS, Backend, BackendConnector, HttpError, State
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.tasks_pb2 import TaskTemplate
from propeller import End, Propeller, Task

import connector_service
from connector_service import (
    GoneError,
    InvalidInputError,
    PermanentError,
    Registry,
    Resource,
    SyncConnectorBase,
    TransientError,
    config,
)
from connector_service.server.server import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROOT = Path(connector_service.__file__).parent
WIRED = any(
    "runtime.absorb" in path.read_text(encoding="utf-8")
    for path in ROOT.rglob("*.py")
    if path.name != "absorb.py"
)
pytestmark = pytest.mark.skipif(not WIRED, reason="the dispatcher applies no policies yet")

SCRIPTED = TaskTemplate(type="scripted")
SYNC = TaskTemplate(type="scripted_sync")
BOTH = pytest.mark.parametrize("flyte", [1, 2])


class BadSqlError(Exception):
    """The backend library's own error, which the connector lists as permanent."""


class Scripted(BackendConnector):
    permanent_errors = (BadSqlError,)


class Scene:
    """A service with one scripted connector, its backend, and a client in front of it."""

    def __init__(self, backend: Backend, endpoint: str, clock: list[float]) -> None:
        self.backend = backend
        self.endpoint = endpoint
        self._clock = clock

    async def tick(self, seconds: float) -> None:
        """Let the backend's time pass; the service's own is real and hardly moves."""
        self._clock[0] += seconds
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def scene(
    *connectors: Any, honours_keys: bool = True, **section: Any
) -> AsyncIterator[Scene]:
    """Serve a scripted connector under ``[connectors.<type>]`` settings of this test."""
    clock = [0.0]
    backend = Backend(honours_keys=honours_keys, clock=lambda: clock[0])
    registry = Registry()
    for connector in (Scripted(backend), *connectors):
        registry.register(connector)
    settings = config.load(
        {"port": 0, "prometheus_port": 0, "drain_delay": 0.0, "grace": 2.0},
        environ={},
        file=os.devnull,
    )
    own = config.ConnectorSection(**{"create_timeout": 2.0, "delete_timeout": 2.0, **section})
    settings = msgspec.structs.replace(settings, connectors={"scripted": own, "scripted_sync": own})
    service = build(settings, registry)
    await service.startup()
    try:
        yield Scene(backend, f"127.0.0.1:{service.port}", clock)
    finally:
        await service.shutdown()


async def outcome(at: Scene, *, flyte: int, rounds: int = 20, retries: int = 0) -> Task:
    """Run one task to its end, as the client sees it."""
    task = Task("t", SCRIPTED, retries=retries)
    async with Propeller(at.endpoint, flyte=flyte) as client:
        await client.run([task], at.tick, rounds=rounds)
    return task


Raise = list[BaseException | None]
# Item 5, and what of item 4 concerns create: the faults, and how the task ends all the same.
SURVIVED: dict[str, dict[str, Raise]] = {
    "a refused connection at create": {"create": [ConnectionRefusedError()]},
    "a reset at create": {"create": [ConnectionResetError()]},
    "a 503 at create": {"create": [HttpError(503)]},
    "a 429 at create": {"create": [HttpError(429, retry_after="0.1")]},
    "a timeout at create": {"create": [TimeoutError()]},
    "a TransientError at create": {"create": [TransientError("busy")]},
    "seven refused polls": {"get": [ConnectionRefusedError()] * 7},
    "seven timeouts": {"get": [TimeoutError()] * 7},
    "seven 503": {"get": [HttpError(503)] * 7},
    "seven 401": {"get": [HttpError(401)] * 7},
    "seven bugs": {"get": [KeyError("status")] * 7},
    "seven exits": {"get": [SystemExit(1)] * 7},
    "seven words nobody knows": {"get": [ValueError("Unrecognized state: LUNCH")] * 7},
}


@BOTH
@pytest.mark.parametrize("name", SURVIVED)
async def test_a_task_survives(name: str, flyte: int) -> None:
    """No attempt is burnt and no poll fails in the client's books; there is one job, one end."""
    # One call of the connector a poll, so that the script lasts for seven polls.
    once = "create" not in SURVIVED[name]
    async with scene(retry_transient=not once, terminal_retention=0.0) as at:
        at.backend.faults.script = {key: list(steps) for key, steps in SURVIVED[name].items()}
        task = await outcome(at, flyte=flyte)
        assert (task.end, task.attempt, task.failed_polls) == (End.SUCCEEDED, 0, 0)
        assert len(at.backend.jobs) == 1
        assert all(not steps for steps in at.backend.faults.script.values())


@BOTH
async def test_polls_are_absorbed_for_hours(flyte: int) -> None:
    """An outage of the backend of an hour is a RUNNING task for an hour, then its true end."""
    async with scene(retry_transient=False) as at:
        at.backend.faults.outages = [(30.0, 3630.0)]
        task = await outcome(at, flyte=flyte, rounds=200)
        assert (task.end, task.failed_polls) == (End.SUCCEEDED, 0)


@BOTH
async def test_patience_ends_with_a_deleted_job(flyte: int) -> None:
    """When the grace is over the job is deleted first, then the attempt is given back."""
    async with scene(unknown_status_grace=0.0, retry_transient=False) as at:
        at.backend.faults.outages = []
        at.backend.faults.script = {"get": [ConnectionRefusedError()]}
        task = await outcome(at, flyte=flyte, retries=1)
        assert (task.end, task.attempt) == (End.SUCCEEDED, 1)
        first, second = at.backend.jobs.values()
        assert (first.state, second.state) == (State.CANCELLED, State.SUCCEEDED)


@BOTH
async def test_a_job_that_is_gone_is_tried_again(flyte: int) -> None:
    """GoneError costs an attempt at once, and the next one runs."""
    async with scene() as at:
        at.backend.faults.script = {"get": [GoneError("Reclaimed.")]}
        task = await outcome(at, flyte=flyte, retries=1)
        assert (task.end, task.attempt) == (End.SUCCEEDED, 1)


@BOTH
@pytest.mark.parametrize(
    "error",
    [PermanentError("Bad SQL."), InvalidInputError("Bad SQL."), BadSqlError("Bad SQL.")],
    ids=lambda error: type(error).__name__,
)
async def test_what_failed_for_good_at_create_spends_no_retry(error: Exception, flyte: int) -> None:
    """The task is FAILED in its first attempt, with the message; nothing is left to delete."""
    async with scene() as at:
        at.backend.faults.script = {"create": [error] * 5}
        task = await outcome(at, flyte=flyte, retries=3)
        assert (task.end, task.attempt) == (End.FAILED, 0)
        assert task.message == "Bad SQL."
        assert at.backend.calls == {"create": 1}
        async with Propeller(at.endpoint, flyte=flyte) as client:
            await client.abort(task)
        assert at.backend.calls == {"create": 1}


@BOTH
async def test_a_fault_that_outlasts_the_deadline_costs_one_attempt(flyte: int) -> None:
    """UNAVAILABLE comes before the client's own deadline, and the next attempt may succeed."""
    async with scene(create_timeout=0.5) as at:
        at.backend.faults.outages = [(0.0, ALWAYS)]
        task = Task("t", SCRIPTED, retries=1)
        async with Propeller(at.endpoint, flyte=flyte) as client:
            await client.launch(task)
            assert (task.end, task.attempt) == (None, 1)
            at.backend.faults.outages = []
            await client.run([task], at.tick, rounds=10)
        assert task.end is End.SUCCEEDED


@BOTH
@pytest.mark.parametrize("phase", [TaskExecution.UNDEFINED, 99])
async def test_a_phase_that_nobody_knows_is_running(phase: Any, flyte: int) -> None:
    """Neither burns an attempt nor fails a round: the task goes on."""

    class Vague(Scripted):
        async def get(self, resource_meta: Any) -> Resource:
            found = await super().get(resource_meta)
            return Resource(phase) if found.phase == TaskExecution.RUNNING else found

    backend = Backend()
    clock = [0.0]
    backend._clock = lambda: clock[0]
    async with scene(Vague(backend, "vague")) as at:
        task = Task("t", TaskTemplate(type="vague"))

        async def tick(seconds: float) -> None:
            clock[0] += seconds

        async with Propeller(at.endpoint, flyte=flyte) as client:
            await client.run([task], tick, rounds=10)
        assert (task.end, task.attempt) == (End.SUCCEEDED, 0)
        assert TaskExecution.RUNNING in task.phases


class Sync(SyncConnectorBase):
    """A sync connector that does what it is told."""

    def __init__(self, answer: Any) -> None:
        super().__init__(task_type_name="scripted_sync")
        self._answer = answer

    async def do(self, task_template: Any, output_prefix: str, inputs: Any = None) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("answer", "end", "code"),
    [
        (Resource(TaskExecution.SUCCEEDED), End.SUCCEEDED, ""),
        (Resource(TaskExecution.RUNNING), End.RETRIES_EXHAUSTED, ""),
        (PermanentError("No.", code="NoModel"), End.FAILED, "NoModel"),
        (InvalidInputError("No."), End.FAILED, "InvalidInput"),
        (ConnectionRefusedError(), End.RETRIES_EXHAUSTED, ""),
        (KeyError("x"), End.RETRIES_EXHAUSTED, ""),
    ],
    ids=["success", "not an end", "permanent", "input", "transient", "bug"],
)
async def test_a_sync_task_ends_and_never_panics_the_client(
    answer: Any, end: End, code: str
) -> None:
    """A user's failure is FAILED with its code; only what may be retried burns an attempt."""
    async with scene(Sync(answer), do_timeout=0.5) as at:
        task = Task("t", SYNC)
        async with Propeller(at.endpoint) as client:
            await client.execute_sync(task)
            assert client.workers == 10
        assert (task.end, task.code) == (end, code)


@BOTH
async def test_a_sync_type_can_be_created(flyte: int) -> None:
    """A client that sends CreateTask for a sync type finds the result in the meta it got."""
    failing = Sync(PermanentError("No.", code="NoModel"))
    async with scene(failing) as at, Propeller(at.endpoint, flyte=flyte) as client:
        task = Task("t", SYNC, retries=2)
        await client.launch(task)
        assert (task.end, task.attempt, task.message) == (End.FAILED, 0, "No.")


def _vanish(backend: Backend, job_id: str) -> None:
    backend.vanish(job_id)


def _finish(backend: Backend, job_id: str) -> None:
    backend.jobs[job_id].state = State.SUCCEEDED


def _blip(backend: Backend, _job_id: str) -> None:
    backend.faults.script = {"delete": [HttpError(503), ConnectionResetError()]}


def _gone(backend: Backend, _job_id: str) -> None:
    backend.faults.script = {"delete": [GoneError("No such job.")]}


DELETES: dict[str, tuple[Callable[[Backend, str], None], bool]] = {
    "a finished job": (_finish, True),
    "a job reported gone": (_gone, True),
    "two transient faults": (_blip, True),
}


@BOTH
@pytest.mark.parametrize("name", DELETES)
async def test_a_delete_is_ok(name: str, flyte: int) -> None:
    """Missing, finished and repeated deletes are OK at the first call; faults are retried."""
    prepare, ok = DELETES[name]
    async with scene() as at, Propeller(at.endpoint, flyte=flyte) as client:
        task = Task("t", SCRIPTED)
        await client.launch(task)
        (job_id,) = at.backend.jobs
        prepare(at.backend, job_id)
        for _ in range(2):
            await client.abort(task)
            assert (task.end is End.ABORTED) is ok
        assert client.failed_calls == 0


@BOTH
async def test_what_the_client_would_drop_is_said_here(flyte: int) -> None:
    """A reply over 4 MiB is a failure with a sentence, not six dropped replies and a hang."""

    class Large(Scripted):
        async def get(self, resource_meta: Any) -> Resource:
            return Resource(TaskExecution.SUCCEEDED, outputs={"o": "x" * (5 << 20)})

    async with (
        scene(Large(Backend(), "large")) as at,
        Propeller(at.endpoint, flyte=flyte) as client,
    ):
        task = Task("t", TaskTemplate(type="large"))
        await client.launch(task)
        assert task.end is End.FAILED
        assert "outputs.pb" in task.message


@BOTH
async def test_a_long_message_is_cut(flyte: int) -> None:
    """Flyte 2 repeats a round for ever over a message of 32 KiB: ours has 4."""

    class Chatty(Scripted):
        async def get(self, resource_meta: Any) -> Resource:
            return Resource(TaskExecution.FAILED, message="BEGIN" + "x" * 100_000 + "END")

    async with scene(Chatty(Backend(), "chatty")) as at:
        async with Propeller(at.endpoint, flyte=flyte) as client:
            task = Task("t", TaskTemplate(type="chatty"))
            await client.launch(task)
        assert len(task.message) <= 4096
        assert (task.message[:5], task.message[-3:]) == ("BEGIN", "END")


async def test_without_the_guarantees_the_losses_are_real() -> None:
    """Passed straight through, the same faults kill tasks: the model counts as the client does."""
    async with scene(guarantees=False) as at:
        at.backend.faults.script = {"get": [None, *[HttpError(503)] * 6]}
        at.backend.duration = 600.0
        assert (await outcome(at, flyte=1)).end is End.HUNG
    async with scene(guarantees=False) as at:
        at.backend.faults.script = {"create": [ConnectionRefusedError()]}
        assert (await outcome(at, flyte=1)).end is End.RETRIES_EXHAUSTED
    async with scene(guarantees=False) as at:
        at.backend.faults.script = {"create": [PermanentError("Bad SQL.")] * 4}
        assert (await outcome(at, flyte=1, retries=3)).attempt == 3
