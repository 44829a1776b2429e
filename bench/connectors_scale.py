"""Connectors whose calls stay: held until they are let go, or for a time; and many idle ones."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any, ClassVar

from bench import behaviour
from bench.connectors_ours import Job
from connector_service import AsyncConnectorBase, ConnectorRegistry, Phase, Resource

__all__ = ["GO", "MANY"]

GO = "go"  # the job whose poll lets all held ones go
MANY = "BENCH_CONNECTORS"  # variable: how many connectors are registered


class Noop(behaviour.Async, AsyncConnectorBase):
    """Answers at once."""

    job: ClassVar[Any] = Job
    resource: ClassVar[Any] = Resource
    phases: ClassVar[Any] = Phase


class Held(Noop):
    """Answers when it is told to; the job "count" tells how many wait."""

    _waiting = 0
    _go: asyncio.Event | None = None

    async def get(self, resource_meta: Job, **kwargs: Any) -> Any:
        """Wait for the poll of ``GO``."""
        if resource_meta.job == behaviour.COUNT:
            return Resource(Phase.RUNNING, message=str(self._waiting))
        self._go = self._go or asyncio.Event()
        if resource_meta.job == GO:
            self._go.set()
            self._go = None
            return Resource(Phase.RUNNING)
        go = self._go
        self._waiting += 1
        await go.wait()
        self._waiting -= 1
        return Resource(Phase.RUNNING)


class Slow(Noop):
    """Answers after ``seconds`` on the average, spread evenly."""

    seconds: ClassVar[float]

    async def get(self, resource_meta: Job, **kwargs: Any) -> Any:
        """Wait without holding anything."""
        await asyncio.sleep(self.seconds * random.uniform(0.75, 1.25))  # noqa: S311
        return Resource(Phase.RUNNING)


def _register(kind: type[AsyncConnectorBase], name: str, **own: Any) -> None:
    one: Any = type(name, (kind,), own)
    ConnectorRegistry.register(one(task_type_name=name, metadata_type=Job))


_register(Held, "v1_held")
_register(Slow, "v1_slow", seconds=8.0)
_register(Slow, "v1_short", seconds=0.008)
for _number in range(int(os.environ.get(MANY, "0"))):
    _register(Noop, f"v1_many_{_number}")
