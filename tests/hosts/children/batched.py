"""A connector that answers many polls in one call; a child loads it as a module."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from connector_service import AsyncConnectorBase, ConnectorRegistry, GoneError, Resource
from connector_service import ResourceMeta as Meta
from connector_service.sdk.resource import Phase


@dataclass
class Job(Meta):
    """A job by its number."""

    number: int


class Batched(AsyncConnectorBase):
    """Tells with each answer how many calls there were."""

    name = "Batched"
    calls = 0

    def __init__(self) -> None:
        super().__init__(metadata_type=Job, task_type_name="batched")

    async def create(self, task_template, **kwargs):
        return Job(0)

    async def get(self, resource_meta, **kwargs):
        (answer,) = await self.get_many([resource_meta])
        return answer

    async def get_many(self, resource_metas, **kwargs):
        self.calls += 1
        calls = self.calls
        await asyncio.sleep(0.05)
        return [
            GoneError(f"{meta.number} was purged.")
            if meta.number == 7
            else Resource(Phase.RUNNING, message=f"{meta.number} in {calls}")
            for meta in resource_metas
        ]

    async def delete(self, resource_meta, **kwargs):
        return None


ConnectorRegistry.register(Batched())
