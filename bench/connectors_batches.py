"""Connectors beside a backend that takes its time: asked for each job, or for many at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from bench import behaviour
from bench.connectors_ours import Job
from connector_service import AsyncConnectorBase, ConnectorRegistry, Phase, Resource

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MANY", "ONE", "TAKES"]

ONE, MANY = "v1_one", "v1_many"
TAKES = (0, 10, 50, 200)  # ms until the backend answers; a connector for each, by its name


class One(behaviour.Async, AsyncConnectorBase):
    """Asks its backend for each job; every answer tells how often the backend was asked."""

    job: ClassVar[Any] = Job
    resource: ClassVar[Any] = Resource
    phases: ClassVar[Any] = Phase
    takes: ClassVar[int]
    _asked = 0

    async def get(self, resource_meta: Job, **kwargs: Any) -> Any:
        """Ask for one job."""
        return await self._ask()

    async def _ask(self) -> Resource:
        self._asked += 1
        if self.takes:
            await asyncio.sleep(self.takes / 1000)
        return Resource(Phase.RUNNING, message=str(self._asked))


class Many(One):
    """Asks its backend for all jobs that are polled together."""

    async def get_many(self, resource_metas: Sequence[Job], **kwargs: Any) -> list[Resource]:
        """Ask for them all."""
        return [await self._ask()] * len(resource_metas)


for _kind, _prefix in ((One, ONE), (Many, MANY)):
    for _takes in TAKES:
        _name = f"{_prefix}_{_takes}"
        _own: Any = type(_name, (_kind,), {"takes": _takes})
        ConnectorRegistry.register(_own(task_type_name=_name, metadata_type=Job))
