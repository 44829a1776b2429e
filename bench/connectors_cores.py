"""A connector whose polls cost processor time, and nothing else."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from bench import behaviour
from connector_service import (
    AsyncConnectorBase,
    ConnectorRegistry,
    Phase,
    Resource,
    ResourceMeta,
)

__all__ = ["BURN"]

BURN = 0.005  # seconds of processor time for each poll


@dataclass
class Job(ResourceMeta):
    """A job of the bench."""

    job: str


class Burning(behaviour.Async, AsyncConnectorBase):
    """Computes for a while, in Python, on the loop that it is called on."""

    job: ClassVar[Any] = Job
    resource: ClassVar[Any] = Resource
    phases: ClassVar[Any] = Phase

    async def get(self, resource_meta: Job, **kwargs: Any) -> Any:
        """Compute."""
        until = time.thread_time() + BURN
        while time.thread_time() < until:
            pass
        return Resource(Phase.RUNNING)


ConnectorRegistry.register(Burning(task_type_name="v1_burning", metadata_type=Job))
