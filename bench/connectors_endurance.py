"""Connectors of the mixed load: jobs that end after some seconds, faults, slow calls and streams.

``mix_hosted`` alone is registered in a process host, where this module is loaded a second time.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flyteidl.admin import agent_pb2

from connector_service import (
    AsyncConnector,
    AsyncConnectorBase,
    ConnectorRegistry,
    Phase,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
)
from connector_service.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["HOSTED", "LINES"]

HOSTED = "BENCH_HOSTED"  # variable that a process host sets
LINES = 5  # messages of one log stream
_LASTS = 3.0  # seconds of a job
_SLOW = (0.2, 1.0)  # seconds of a call
_SPAN = 10**7  # milliseconds after which numbers come again


def _now() -> int:
    return time.monotonic_ns() // 1_000_000 % _SPAN


@dataclass
class Job(ResourceMeta):
    """A job of the mixed load."""

    job: str


class Mixed:
    """Its jobs end by themselves; their number says when they began, in milliseconds."""

    async def create(self, task_template: Any, inputs: Any = None, **kwargs: Any) -> Job:
        """Begin a job; every input is read."""
        return Job(f"{_now():07d}{random.randrange(1000):03d}")  # noqa: S311

    async def get(self, resource_meta: Job, **kwargs: Any) -> Resource:
        """Answer with outputs when the time is over."""
        age = (_now() - int(resource_meta.job[:7])) % _SPAN / 1000
        if age < _LASTS:
            return Resource(Phase.RUNNING, message=f"since {age:.0f} s")
        return Resource(Phase.SUCCEEDED, outputs={"rows": 42, "text": "a result"})

    async def delete(self, resource_meta: Job, **kwargs: Any) -> None:
        """Do nothing."""

    async def get_logs(self, resource_meta: Job, **kwargs: Any) -> AsyncIterator[Any]:
        """Stream some lines."""
        for number in range(LINES):
            await asyncio.sleep(0.01)
            body = agent_pb2.GetTaskLogsResponseBody(results=[f"line {number}"])
            yield agent_pb2.GetTaskLogsResponse(body=body)


class Plain(Mixed):
    """The same from threads."""

    def get(self, resource_meta: Job, **kwargs: Any) -> Resource:  # type: ignore[override]
        """Answer from a thread."""
        return Resource(Phase.RUNNING)


class Slow(Mixed):
    """Takes so long that clients leave."""

    async def create(self, task_template: Any, inputs: Any = None, **kwargs: Any) -> Job:
        """Begin a job after a while."""
        await asyncio.sleep(random.uniform(*_SLOW))  # noqa: S311
        return await super().create(task_template)


class Faulty(Mixed):
    """Fails in every way."""

    async def create(self, task_template: Any, inputs: Any = None, **kwargs: Any) -> Job:
        """Refuse for good."""
        raise PermanentError("The backend refuses this job.")

    async def get(self, resource_meta: Job, **kwargs: Any) -> Resource:
        """Err, as a bug does."""
        raise KeyError(resource_meta.job)


class Lookup(SyncConnectorBase):
    """Answers at once."""

    async def do(
        self, task_template: Any, output_prefix: str, inputs: Any = None, **kwargs: Any
    ) -> Resource:
        """Answer."""
        return Resource(Phase.SUCCEEDED, outputs={"rows": 42})


def _register(kind: type, shape: Any, name: str) -> None:
    if shape is AsyncConnector:
        one: Any = type(name, (kind, shape), {"task_type_name": name, "metadata_type": Job})()
    else:
        one = type(name, (kind, shape), {})(task_type_name=name, metadata_type=Job)
    ConnectorRegistry.register(one)


if HOSTED in os.environ:
    _register(Mixed, AsyncConnectorBase, "mix_hosted")
else:
    _register(Mixed, AsyncConnectorBase, "mix_1")
    _register(Mixed, AsyncConnector, "mix_2")
    _register(Plain, AsyncConnectorBase, "mix_plain")
    _register(Slow, AsyncConnectorBase, "mix_slow")
    _register(Faulty, AsyncConnectorBase, "mix_faulty")
    ConnectorRegistry.register(Lookup(task_type_name="mix_sync"))
