"""What Flyte does with a job: poll it until it ended, through errors as its executor does."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from flyte_clients import Flyte

PATIENCE = 60.0
ENDED = {"SUCCEEDED", "FAILED", "ABORTED", "RETRYABLE_FAILED", "TIMED_OUT"}


@dataclass
class Seen:
    """The polls of one job, to its end or to the phase that was waited for."""

    resource: Any = None
    phases: list[str] = field(default_factory=list)
    errors: list[grpc.aio.AioRpcError] = field(default_factory=list)

    @property
    def phase(self) -> str:
        return self.phases[-1]


class Client(Flyte):
    """Flyte's client, that gives each job a prefix of its own and polls with it, as Flyte does.

    A plugin's meta alone may not tell its jobs apart: two sensors of one task have the same.
    """

    def __init__(self, protocol: str, endpoint: str) -> None:
        super().__init__(protocol, endpoint)
        self._elsewhere = f"mem://{uuid.uuid4()}"
        self._prefixes: dict[bytes, str] = {}

    async def create(
        self, template: Any, inputs: Any = None, *, prefix: str = "", **more: Any
    ) -> bytes:
        prefix = prefix or f"mem://{uuid.uuid4()}"
        meta = await super().create(template, inputs, prefix=prefix, **more)
        self._prefixes[meta] = prefix
        return meta

    async def get(self, meta: bytes, task_type: str = "", **more: Any) -> Any:
        prefix = self._prefixes.get(meta, self._elsewhere)
        job = self._job(meta, task_type)
        request = self.messages.GetTaskRequest(**job, output_prefix=prefix, **more)
        return (await self.jobs.GetTask(request, timeout=30)).resource


@contextlib.asynccontextmanager
async def calling(protocol: str, endpoint: str) -> AsyncIterator[Client]:
    """A client of Flyte's for as long as the block lasts."""
    client = Client(protocol, endpoint)
    try:
        yield client
    finally:
        await client.channel.close()


def template_of(client: Flyte, data: bytes) -> Any:
    """Read a task template as the client's protocol does."""
    template = client.messages.CreateTaskRequest().template
    template.ParseFromString(data)
    return template


def phase_name(resource: Any) -> str:
    """Return the phase's name in the resource's own protocol."""
    kind = resource.DESCRIPTOR.fields_by_name["phase"].enum_type
    name: str = kind.values_by_number[resource.phase].name
    return name


async def poll(
    client: Flyte, meta: bytes, task_type: str, *, until: set[str] = ENDED, **more: Any
) -> Seen:
    """Poll a job until it has one of the phases; an error is kept, and the job polled again."""
    seen = Seen()
    end = time.monotonic() + PATIENCE
    while not seen.phases or seen.phase not in until:
        assert time.monotonic() < end, f"never: {until}; was {seen.phases[-9:]} {seen.errors[-1:]}"
        if seen.phases or seen.errors:
            await asyncio.sleep(0.1)
        try:
            seen.resource = await client.get(meta, task_type, **more)
        except grpc.aio.AioRpcError as error:
            seen.errors.append(error)
            continue
        seen.phases.append(phase_name(seen.resource))
    return seen


async def listed(client: Flyte) -> set[str]:
    """Return the names of the task types that the service lists."""
    found = set()
    if client.is_first:
        request = client.messages.ListAgentsRequest()
        for agent in (await client.metadata.ListAgents(request, timeout=30)).agents:
            found |= {category.name for category in agent.supported_task_categories}
    else:
        request = client.messages.ListConnectorsRequest()
        for one in (await client.metadata.ListConnectors(request, timeout=30)).connectors:
            found |= {category.name for category in one.supported_task_categories}
    return found


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something outside holds; fail with ``what`` when it never does."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        await asyncio.sleep(0.05)
