"""What each of the stores costs that know jobs, alone and filled to its bound and beyond."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution

from bench.process import free_port, listens, resident
from connector_service.codec.convert import FlyteProtocol
from connector_service.config import ConnectorSection
from connector_service.errors import UnavailableError
from connector_service.runtime.absorb import Polls
from connector_service.runtime.call import Call
from connector_service.runtime.ledger import Job
from connector_service.runtime.ledger_memory import MemoryLedger
from connector_service.runtime.ledger_sqlite import SqliteLedger
from connector_service.runtime.limits import Bulkhead
from connector_service.runtime.poll import Source
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from connector_service.runtime.ledger import Ledger

__all__ = ["STORES", "store"]

_CATEGORY = TaskCategory("spark")
_AT_ONCE = 64  # operations of a ledger that are on their way together
_TRACED = 50_000  # jobs; tracing makes everything slow
_OVER = 10_000  # jobs beyond the bound


class _Store(NamedTuple):
    """A store under test: what makes it know one job, how many it knows, its bytes on disk."""

    know: Callable[[int], Awaitable[object]]
    known: Callable[[], int] | None = None
    disk: Callable[[], int] | None = None
    at_once: int = 1


def store(name: str, jobs: int) -> dict[str, Any]:
    """Have a store know ``jobs`` jobs, and then some more; call it in a process of its own.

    Bytes are of each job that it keeps: ``resident`` is what the process grew by, ``traced`` what
    Python allocated, of fewer jobs. Microseconds are of processor time: of the first and the last
    tenth, and beyond the bound.
    """
    # Its client alone takes half a millisecond for each; the bytes are the same.
    return asyncio.run(_measure(name, jobs // 10 if "Redis" in name else jobs))


async def _measure(name: str, jobs: int) -> dict[str, Any]:
    async with STORES[name](jobs) as one:
        await _know(one, 0, 1)
        before, _ = resident(os.getpid())
        times = []
        for tenth in range(10):
            spent = time.process_time()
            await _know(one, 1 + tenth * jobs // 10, 1 + (tenth + 1) * jobs // 10)
            times.append((time.process_time() - spent) / (jobs // 10) * 1e6)
        full, _ = resident(os.getpid())
        held = one.known() if one.known else jobs
        disk = one.disk() if one.disk else 0
        spent = time.process_time()
        await _know(one, jobs + 1, jobs + 1 + _OVER)
        over = (time.process_time() - spent) / _OVER * 1e6
        after, _ = resident(os.getpid())
        known = one.known() if one.known else None
        in_python = one.disk is None
    async with STORES[name](jobs) as one:
        return {
            "store": name,
            "jobs": jobs,
            "known": held,
            "resident": (full - before) / held,
            "traced": await _traced(one, min(jobs, _TRACED)) if in_python else 0.0,
            "disk": disk / jobs,
            "first_us": times[0],
            "last_us": times[-1],
            "over_us": over,
            "over_bytes": after - full,
            "known_after": known,
        }


async def _traced(one: _Store, jobs: int) -> float:
    await _know(one, 0, 1)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    await _know(one, 1, jobs + 1)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / jobs


async def _know(one: _Store, first: int, last: int) -> None:
    for start in range(first, last, one.at_once):
        numbers = range(start, min(last, start + one.at_once))
        if one.at_once == 1:
            await one.know(start)
        else:
            await asyncio.gather(*map(one.know, numbers))


# --- polls -------------------------------------------------------------------------------------


def _polled(phase: int, error: str = "") -> Callable[[int], Any]:
    """Return a store of jobs that answer ``phase`` with 40 characters, or fail."""

    @contextlib.asynccontextmanager
    async def make(jobs: int) -> AsyncIterator[_Store]:
        polls = Polls(most_jobs=jobs)
        resource = agent_pb2.Resource(phase=phase, message="x" * 40)

        async def fetch(_call: Call, _deadline: float) -> Any:
            if error:
                raise UnavailableError(error)
            return resource

        async def delete(_call: Call) -> None: ...

        policy = ConnectorSection()
        bulkhead = Bulkhead("spark", policy.concurrency, policy.queue)
        source = Source(policy, bulkhead, fetch, delete)

        async def know(number: int) -> None:
            request = agent_pb2.GetTaskRequest(
                resource_meta=b'{"job": "%010d"}' % number, output_prefix=f"s3://b/{number:010d}/0"
            )
            call = Call(FlyteProtocol.FLYTE1, Operation.GET, _CATEGORY, request)
            await polls.poll(source, call)

        ended = phase == TaskExecution.SUCCEEDED
        kept: Any = polls._ends if ended else polls._jobs  # noqa: SLF001 - nothing else counts them
        yield _Store(know, lambda: len(kept))

    return make


# --- ledgers -----------------------------------------------------------------------------------


def _created(ledger: Ledger) -> Callable[[int], Awaitable[object]]:
    async def know(number: int) -> None:
        key = f"{number:032x}"
        await ledger.reserve(key, "owner", 30.0)
        job = Job(_CATEGORY, b'{"job": "%086d"}' % number, 3600.0, 120.0)
        await ledger.record(key, "owner", job, delivered=True)

    return know


@contextlib.asynccontextmanager
async def _memory(jobs: int) -> AsyncIterator[_Store]:
    ledger = MemoryLedger(jobs)
    yield _Store(_created(ledger), lambda: len(ledger))


@contextlib.asynccontextmanager
async def _sqlite(_jobs: int) -> AsyncIterator[_Store]:
    with tempfile.TemporaryDirectory() as folder:
        ledger = SqliteLedger(folder)
        await ledger.open()

        def disk() -> int:
            return sum(file.stat().st_size for file in Path(folder).iterdir())

        yield _Store(_created(ledger), None, disk, _AT_ONCE)
        await ledger.close()


@contextlib.asynccontextmanager
async def _redis(_jobs: int) -> AsyncIterator[_Store]:
    from connector_service.runtime.ledger_redis import RedisLedger  # noqa: PLC0415 - an extra

    with _redis_server() as (pid, port):
        ledger = RedisLedger(f"redis://127.0.0.1:{port}/0")
        await ledger.open()
        idle, _ = resident(pid)
        yield _Store(_created(ledger), None, lambda: resident(pid)[0] - idle, _AT_ONCE)
        await ledger.close()


@contextlib.contextmanager
def _redis_server() -> Iterator[tuple[int, int]]:
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(  # noqa: S603 - our own command
        [str(shutil.which("redis-server")), *options], stdout=subprocess.DEVNULL
    )
    try:
        while not listens(server.pid, port):
            time.sleep(0.01)
        yield server.pid, port
    finally:
        server.kill()
        server.wait()


STORES: dict[str, Callable[[int], Any]] = {
    "poll memory, running": _polled(TaskExecution.RUNNING),
    "poll memory, failing": _polled(TaskExecution.RUNNING, "The backend does not answer."),
    "poll memory, ended": _polled(TaskExecution.SUCCEEDED),
    "ledger in memory": _memory,
    "ledger in SQLite": _sqlite,
}
if shutil.which("redis-server"):
    STORES["ledger in Redis"] = _redis
