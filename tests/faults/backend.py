"""A scripted backend and its connector: jobs, faults on demand, and the truth for the verdict."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from flyteidl.core.execution_pb2 import TaskExecution

from connector_service import AsyncConnectorBase, GoneError, Resource, ResourceMeta

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

ALWAYS = float("inf")


class HttpError(Exception):
    """What the backend's library raises: the status and headers of the response."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"HTTP {status}")
        self.response = SimpleNamespace(
            status_code=status,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )


class State(StrEnum):
    """A job's state, in the backend's own words."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass
class Job:
    """The truth about one job."""

    id: str
    name: str
    key: str | None
    ends_at: float
    ends_as: State = State.SUCCEEDED
    state: State = State.RUNNING


@dataclass
class Faults:
    """What goes wrong: each call draws from these in their order. Times are the backend's."""

    # Of all calls, this share fails with 503.
    error_rate: float = 0.0
    # Spans in which nothing is reached: connections are refused.
    outages: list[tuple[float, float]] = field(default_factory=list)
    # Spans in which calls are answered 429, with the Retry-After of the third item.
    bursts: list[tuple[float, float, float]] = field(default_factory=list)
    # Raised, in turn, by the next calls of an operation; None lets one pass.
    script: dict[str, list[BaseException | None]] = field(default_factory=dict)
    # Of all creates, this share does its work and loses the answer: the connection is reset.
    lost_answers: float = 0.0


class Backend:
    """Jobs that run by a clock; may be called from any thread.

    ``honours_keys`` says whether a repeated key finds the job that it made.
    """

    def __init__(
        self,
        *,
        honours_keys: bool = True,
        seed: int = 0,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Start without jobs and without faults."""
        self.honours_keys = honours_keys
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.jobs: dict[str, Job] = {}
        self.duration = 60.0
        self.ends_as: Callable[[str], State] = lambda _name: State.SUCCEEDED
        self._clock = clock
        self._random = random.Random(seed)
        self._by_key: dict[str, str] = {}
        self._lock = threading.Lock()

    # --- what the connector calls --------------------------------------------------------------

    def submit(self, name: str, key: str | None) -> str:
        """Start a job and return its id; one that the key has made already is returned again."""
        with self._lock:
            self._fail("create")
            job_id = self._by_key.get(key) if key is not None and self.honours_keys else None
            if job_id is None:
                job_id = f"job-{len(self.jobs)}"
                ends = self._clock() + self.duration
                self.jobs[job_id] = Job(job_id, name, key, ends, self.ends_as(name))
                if key is not None:
                    self._by_key[key] = job_id
            if self._random.random() < self.faults.lost_answers:
                self.failed["create"] += 1
                raise ConnectionResetError("the answer was lost")
            return job_id

    def status(self, job_id: str) -> State:
        """Return a job's state."""
        with self._lock:
            self._fail("get")
            if job_id not in self.jobs:
                raise HttpError(404)
            return self._now(self.jobs[job_id])

    def cancel(self, job_id: str) -> None:
        """Stop a job; one that has ended stays as it ended."""
        with self._lock:
            self._fail("delete")
            if job_id not in self.jobs:
                raise HttpError(404)
            job = self.jobs[job_id]
            if self._now(job) is State.RUNNING:
                job.state = State.CANCELLED

    # --- what the test asks --------------------------------------------------------------------

    def alive(self) -> list[Job]:
        """List the jobs that run."""
        with self._lock:
            return [job for job in self.jobs.values() if self._now(job) is State.RUNNING]

    def orphans(self, followed: Collection[str]) -> list[Job]:
        """List the jobs that run and that no client follows."""
        return [job for job in self.alive() if job.id not in followed]

    def duplicates(self) -> dict[str, int]:
        """Count, by name, the jobs that were made more than once for one output prefix."""
        made = Counter(job.name for job in self.jobs.values())
        return {name: count for name, count in made.items() if count > 1}

    def vanish(self, job_id: str) -> None:
        """Lose a job, as a cluster that was reclaimed does."""
        with self._lock:
            del self.jobs[job_id]

    # --- faults --------------------------------------------------------------------------------

    def _now(self, job: Job) -> State:
        if job.state is State.RUNNING and self._clock() >= job.ends_at:
            job.state = job.ends_as
        return job.state

    def _fail(self, operation: str) -> None:
        """Raise what the faults have for this call, if anything."""
        self.calls[operation] += 1
        error = self._drawn(operation)
        if error is not None:
            self.failed[operation] += 1
            raise error

    def _drawn(self, operation: str) -> BaseException | None:
        now, faults = self._clock(), self.faults
        if faults.script.get(operation):
            return faults.script[operation].pop(0)
        if any(start <= now < end for start, end in faults.outages):
            return ConnectionRefusedError("nobody listens")
        for start, end, retry_after in faults.bursts:
            if start <= now < end:
                return HttpError(429, retry_after=str(retry_after))
        if self._random.random() < faults.error_rate:
            return HttpError(503)
        return None


@dataclass
class JobMeta(ResourceMeta):
    """What identifies a job of the scripted backend."""

    job: str


_PHASES: dict[State, Any] = {
    State.RUNNING: TaskExecution.RUNNING,
    State.SUCCEEDED: TaskExecution.SUCCEEDED,
    State.FAILED: TaskExecution.FAILED,
    State.CANCELLED: TaskExecution.ABORTED,
}


class BackendConnector(AsyncConnectorBase):
    """A plain connector without a guarantee of its own: what it meets, it raises."""

    name = "Scripted"

    def __init__(self, backend: Backend, task_type: str = "scripted") -> None:
        """Take the backend it speaks to."""
        super().__init__(metadata_type=JobMeta, task_type_name=task_type)
        self.backend = backend

    async def create(  # type: ignore[override]
        self, task_template: Any, output_prefix: str, idempotency_key: str | None = None
    ) -> JobMeta:
        """Submit; the job is called by its output prefix."""
        return JobMeta(self.backend.submit(output_prefix, idempotency_key))

    async def get(self, resource_meta: JobMeta) -> Resource:  # type: ignore[override]
        """Translate the backend's state."""
        try:
            state = self.backend.status(resource_meta.job)
        except HttpError as error:
            if error.response.status_code == 404:
                raise GoneError(f"Job {resource_meta.job} no longer exists.") from error
            raise
        return Resource(_PHASES[state], message=f"{resource_meta.job} is {state}")

    async def delete(self, resource_meta: JobMeta) -> None:  # type: ignore[override]
        """Cancel, as naive code does: a job that is missing is an error of the backend's."""
        self.backend.cancel(resource_meta.job)
