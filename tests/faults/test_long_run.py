"""Thousands of jobs through a backend that fails and a service that is killed: each ends once.

The backend is a process of its own and keeps the truth; it fails 30 % of all calls (502, 503, 504,
connections that end without an answer), answers 429 with Retry-After in bursts, and is away three
times, when nobody listens. An honouring one also loses the answers to some creates that it did.
The service is the installed daemon with ``--state-dir``; it is killed with SIGKILL and started
again ten times, always while creates are on their way.

Time runs sixtyfold: the client polls each job every half second instead of every thirty, the
backend is away for two seconds instead of two minutes, and jobs take about a minute, one second of
ours. The service's own deadlines and retries are not scaled, so creates have it no easier.

The client is the propeller model with its rules: a task has one attempt, which any failed create
burns; six failed polls end it. Half of it is Flyte 1, half Flyte 2, which deletes what has ended.
It has the service config that the project ships (``deploy/propeller.yaml``): it waits for a
connection and sends a call that was UNAVAILABLE again, four times at most, which for a create means
with the same output prefix; a try that met a kill is not counted, since kills are seconds apart
here. Its ten pollers are not modelled: they bound how fast it learns of an end, and no count below.
On top of that it does what at-least-once delivery allows: some creates are left in the middle and
asked for again, some are repeated after their answer came, and some tasks are aborted.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from faults.remote import TASK_TYPE, Remote, truth
from faults.service import Service
from flyteidl.core.tasks_pb2 import TaskTemplate
from propeller import MOST_FAILED_POLLS, POLL_EVERY, End, Propeller, Task

SCALE = 60.0
KILLS = 10
OUTAGES = 3
AWAY = 120.0 / SCALE  # seconds
BURST = 30.0 / SCALE
RATE = 60  # tasks begun a second, whatever becomes of those before
AT_ONCE = 500  # tasks that have begun and not ended, at most
# Seconds around a kill in which a job may be born and not recorded: the backend's answer takes
# 0.02, the record some more on a busy machine; a request in the socket outlives who sent it.
WINDOW = 0.5
WITHIN = 150.0  # seconds for one run, many times what it takes
TRIES, FIRST_WAIT, MOST_WAIT = 4, 0.2, 2.0  # of the service config's retryPolicy
LOSSES = (End.RETRIES_EXHAUSTED, End.CACHE_FAILED, End.HUNG, End.SYSTEM_FAILED, End.ABORT_FAILED)
TRUE_ENDS = {End.SUCCEEDED: "SUCCEEDED", End.FAILED: "FAILED"}


class Shipped(Propeller):
    """The client with the project's service config: it waits, and repeats what is UNAVAILABLE."""

    def __init__(self, endpoint: str, kills: Callable[[], int], *, flyte: int) -> None:
        self._kills = kills
        super().__init__(
            endpoint,
            flyte=flyte,
            # Longer than propeller's 10 s: on a busy machine a restart is slow, and not scaled.
            timeout=30.0,
            options=(
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.enable_retries", 0),  # done here, where they can be counted
            ),
        )

    def _unary(self, service: str, method: str) -> Any:
        call = super()._unary(service, method)

        async def patient(request: Any, *, timeout: float) -> Any:  # noqa: ASYNC109 - gRPC's name
            until = time.monotonic() + timeout
            tried = 0
            while True:
                kills = self._kills()
                try:
                    left = max(0.01, until - time.monotonic())
                    return await call(request, timeout=left, wait_for_ready=True)
                except grpc.aio.AioRpcError as error:
                    # A try that met a kill does not count: unscaled, kills are minutes apart, and
                    # no call of 30 s lives through four of them.
                    tried += self._kills() == kills
                    if not _unavailable(error) or tried == TRIES:
                        raise
                    await asyncio.sleep(min(MOST_WAIT, FIRST_WAIT * 2**tried))

        return patient


def _unavailable(error: grpc.aio.AioRpcError) -> bool:
    """Tell what grpc-go, Flyte's own, calls UNAVAILABLE.

    A connection that is reset in mid-call is UNKNOWN, "Stream removed", in grpc's C++ core alone.
    """
    reset = error.code() is grpc.StatusCode.UNKNOWN and "Stream removed" in (error.details() or "")
    return reset or error.code() is grpc.StatusCode.UNAVAILABLE


@dataclass
class Run:
    """One run: who is on the way, what the clients saw, and in the end the verdict."""

    name: str
    backend: Remote
    service: Service
    tasks: list[Task]
    creating: set[str] = field(default_factory=set)  # output prefixes
    cut_short: list[set[str]] = field(default_factory=list)  # those of `creating` at each kill
    killed: list[tuple[float, float]] = field(default_factory=list)  # from when to when
    begun: int = 0
    counts: dict[str, Any] = field(default_factory=dict)

    async def play(self) -> None:
        """Run every task to its end, with the disturbances on their way."""
        started = time.monotonic()
        gate = asyncio.Semaphore(AT_ONCE)
        async with (
            asyncio.timeout(WITHIN),
            Shipped(self.service.endpoint, lambda: len(self.cut_short), flyte=1) as first,
            Shipped(self.service.endpoint, lambda: len(self.cut_short), flyte=2) as second,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._disturb())
            for number, task in enumerate(self.tasks):
                await asyncio.sleep(started + number / RATE - time.monotonic())
                await gate.acquire()
                self.begun = number + 1
                client = (first, second)[number % 2]
                one = group.create_task(self._live(client, task, number))
                one.add_done_callback(lambda _: gate.release())
        await self._judge(time.monotonic() - started)

    async def _live(self, client: Propeller, task: Task, number: int) -> None:
        """Live one task's life at the client."""
        prefix = task.output_prefix
        self.creating.add(prefix)
        if number % 25 == 3:
            await self._leave(client, task)
        await client.launch(task)
        self.creating.discard(prefix)
        if number % 25 == 7 and task.meta is not None:
            await client.deliver_again(task)
        if number % 25 == 11 and task.meta is not None:
            await client.abort(task)
        while not task.done:
            await asyncio.sleep(POLL_EVERY / SCALE)
            await client.poll(task)
        await client.collect(task)

    async def _leave(self, client: Propeller, task: Task) -> None:
        """Ask for the job and leave in the middle: the launch that follows is the repeat."""
        leaving = asyncio.create_task(
            client._create(client._create_request(task), timeout=30.0)  # type: ignore[arg-type]
        )
        await asyncio.wait({leaving}, timeout=random.uniform(0.005, 0.05))
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

    async def _disturb(self) -> None:
        """Kill the service ten times, with bursts between and outages across some of the kills."""
        step = len(self.tasks) / (KILLS + 1)
        for kill in range(1, KILLS + 1):
            await self._until(lambda at=(kill - 0.5) * step: self.begun >= at)
            await self.backend.set(burst=1)
            await asyncio.sleep(BURST)
            await self.backend.set(burst=0)
            await self._until(lambda at=kill * step: self.begun >= at and self.creating)
            if kill % 3 == 0:
                await self.backend.set(away=1)
                back = asyncio.create_task(asyncio.sleep(AWAY))
                # Some outages begin with a kill, some see one in their middle.
                await asyncio.sleep(AWAY / 2 if kill % 2 else 0.0)
                await self._kill()
                await back
                await self.backend.set(away=0)
            else:
                await self._kill()

    async def _kill(self) -> None:
        self.cut_short.append(set(self.creating))
        began = time.monotonic()
        await asyncio.to_thread(self.service.kill)
        self.killed.append((began, time.monotonic()))
        await asyncio.to_thread(self.service.start)

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():  # noqa: ASYNC110 - of several counts, each changed all the time
            await asyncio.sleep(0.002)

    # --- the verdict ---------------------------------------------------------------------------

    async def _judge(self, seconds: float) -> None:
        """Compare what the clients believe with what the backend knows."""
        found = await self.backend.truth()
        jobs = {job["id"]: job for job in found["jobs"]}
        followed = {_job(task.meta): task for task in self.tasks if task.meta is not None}
        wrong = [
            task
            for task in self.tasks
            if task.end in TRUE_ENDS
            and not (
                task.meta is not None
                and jobs[_job(task.meta)]["state"]
                == TRUE_ENDS[task.end]
                == truth(task.output_prefix)
            )
        ]
        # Of a task that was aborted the job is cancelled, or had ended before.
        running_on = [
            task
            for task in self.tasks
            if task.end is End.ABORTED
            and task.meta is not None
            and jobs[_job(task.meta)]["state"] == "RUNNING"
        ]
        made = Counter(job["name"] for job in jobs.values())
        # Of a name's jobs the last is followed; those before it were born into a crash window.
        latest = {job["name"]: job["id"] for job in jobs.values()}
        doubles = [job for job in jobs.values() if latest[job["name"]] != job["id"]]
        self.counts = {
            "jobs": len(self.tasks),
            "true ends": sum(task.end in TRUE_ENDS for task in self.tasks) - len(wrong),
            "aborted": sum(task.end is End.ABORTED for task in self.tasks),
            "lost": sum(task.end in LOSSES for task in self.tasks),
            "wrong": len(wrong) + len(running_on),
            "failed polls": sum(task.failed_polls for task in self.tasks),
            "duplicates": sum(made.values()) - len(made),
            "unexplained": sum(not self._by_a_kill(job) for job in doubles),
            "orphans": sum(
                job["state"] != "CANCELLED" for job in jobs.values() if job["id"] not in followed
            ),
            "told twice": sum(len(task.leaked) for task in self.tasks),
            "kills": len(self.cut_short),
            "in flight": sum(map(len, self.cut_short)),
            "backend calls": sum(found["calls"].values()),
            "failed": sum(found["failed"].values()),
            "seconds": round(seconds),
        }

    def _by_a_kill(self, job: dict[str, Any]) -> bool:
        """Tell whether a kill came between a job's birth and our record of it."""
        return any(
            began - WINDOW <= job["born"] <= ended + WINDOW and job["name"] in cut_short
            for (began, ended), cut_short in zip(self.killed, self.cut_short, strict=True)
        )


def _job(meta: bytes) -> str:
    found: str = json.loads(meta)["job"]
    return found


async def played(
    name: str, folder: Path, *, jobs: int, honours_keys: bool, **section: object
) -> Run:
    """Play one run from its start to its verdict."""
    backend = Remote(
        honours_keys=int(honours_keys),
        error_rate=0.3,
        # Without keys a lost answer is a second job, whatever a service does; that is a limit of
        # such backends, and would hide the crash window that is counted here.
        lost_answers=0.05 if honours_keys else 0.0,
        latency=0.02,
        duration=60.0 / SCALE,
    )
    service = Service(backend, folder, f"--state-dir={folder / 'state'}", **section)
    template = TaskTemplate(type=TASK_TYPE)
    try:
        run = Run(name, backend, service.start(), [Task(f"t{n}", template) for n in range(jobs)])
        await run.play()
    finally:
        service.kill()
        backend.close()
    return run


def show(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Print a run's counts, whether or not pytest captures."""
    with capsys.disabled():
        print(f"\n  {run.name}")  # noqa: T201
        print("    " + ", ".join(f"{name} {n}" for name, n in run.counts.items()))  # noqa: T201
        lost = [task for task in run.tasks if task.end in LOSSES]
        reasons = Counter(f"{task.code}: {task.message}" for task in lost)
        for reason, times in reasons.most_common(3):
            print(f"    lost, {times} times: {reason}")  # noqa: T201


async def test_every_job_ends_once_where_the_backend_honours_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None lost, none created twice, no orphan, and no poll failed: over ten kills."""
    run = await played("(a) the backend honours the key", tmp_path, jobs=2000, honours_keys=True)
    show(run, capsys)
    counts = run.counts
    assert counts["kills"] == KILLS
    assert counts["true ends"] + counts["aborted"] == counts["jobs"]
    for loss in ("lost", "wrong", "duplicates", "orphans", "told twice"):
        assert counts[loss] == 0, loss
    assert max(task.failed_polls for task in run.tasks) < MOST_FAILED_POLLS


async def test_only_the_crash_window_shows_where_the_backend_ignores_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every second job was on its way, and born, at a kill; none is lost, every end is true."""
    run = await played("(b) the backend ignores the key", tmp_path, jobs=2000, honours_keys=False)
    show(run, capsys)
    counts = run.counts
    assert counts["kills"] == KILLS
    assert counts["true ends"] + counts["aborted"] == counts["jobs"]
    for loss in ("lost", "wrong", "unexplained", "told twice"):
        assert counts[loss] == 0, loss
    assert counts["orphans"] <= counts["duplicates"] <= counts["in flight"]


async def test_the_same_script_loses_jobs_without_the_guarantees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passed straight through, the same faults lose tasks, make jobs twice and leave orphans."""
    run = await played(
        "(c) as (a), guarantees = false",
        tmp_path,
        jobs=2000,
        honours_keys=True,
        guarantees=False,
    )
    show(run, capsys)
    assert run.counts["kills"] == KILLS
    for loss in ("lost", "duplicates", "orphans"):
        assert run.counts[loss] > 0, loss
