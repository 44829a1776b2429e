"""What is measured in our service: connectors that do nothing, in both shapes.

Task types are named by shape: ``v1_`` is Flyte 1's, ``v2_`` Flyte 2's. Each shape counts the polls
that reached it, and tells the count as the message of the job "count": so the bench knows that
its calls were not answered from memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from connector_service import (
    AsyncConnector,
    AsyncConnectorBase,
    ConnectorRegistry,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
)
from connector_service.sdk.resource import Phase

OUTPUTS = {"text": "a result", "more": "another result", "count": 42, "ratio": 0.5}
BLOCKING = 1.0  # seconds


@dataclass
class Job(ResourceMeta):
    """A job of the bench."""

    job: str


class _Polled:
    """Answers polls and counts them."""

    polls = 0
    phase = Phase.RUNNING
    outputs: dict[str, Any] | None = None

    def answer(self, meta: Job) -> Resource:
        """Answer one poll."""
        if meta.job == "count":
            return Resource(Phase.RUNNING, message=str(self.polls))
        self.polls += 1
        return Resource(self.phase, outputs=self.outputs)


class _Async(_Polled):
    async def create(
        self,
        task_template: Any,
        output_prefix: str,
        inputs: Any = None,
        task_execution_metadata: Any = None,
        **kwargs: Any,
    ) -> Job:
        """Take every argument, and start nothing."""
        self.polls += 1
        return Job("0000000000")

    async def get(self, resource_meta: Job, **kwargs: Any) -> Resource:
        """Answer at once."""
        return self.answer(resource_meta)

    async def delete(self, resource_meta: Job, **kwargs: Any) -> None:
        """Do nothing."""


class _Plain(_Polled):
    def create(self, task_template: Any, **kwargs: Any) -> Job:
        """Start nothing."""
        return Job("0000000000")

    def get(self, resource_meta: Job, **kwargs: Any) -> Resource:
        """Answer at once, from a thread."""
        return self.answer(resource_meta)

    def delete(self, resource_meta: Job, **kwargs: Any) -> None:
        """Do nothing."""


class _Ended:
    phase = Phase.SUCCEEDED
    outputs = OUTPUTS


class _Blocking(_Plain):
    def get(self, resource_meta: Job, **kwargs: Any) -> Resource:
        """Hold its thread."""
        if resource_meta.job != "count":
            time.sleep(BLOCKING)
        return self.answer(resource_meta)


class Lookup(SyncConnectorBase):
    """A sync connector that answers at once."""

    async def do(
        self, task_template: Any, output_prefix: str, inputs: Any = None, **kwargs: Any
    ) -> Resource:
        """Answer with outputs."""
        return Resource(Phase.SUCCEEDED, outputs=OUTPUTS)


_KINDS: dict[str, tuple[type, ...]] = {
    "noop": (_Async,),
    "outputs": (_Ended, _Async),
    "plain": (_Plain,),
    "blocking": (_Blocking,),
}

for _name, _bases in _KINDS.items():
    _first: Any = type(f"{_name}1", (*_bases, AsyncConnectorBase), {})
    ConnectorRegistry.register(_first(task_type_name=f"v1_{_name}", metadata_type=Job))
    _own = {"task_type_name": f"v2_{_name}", "metadata_type": Job}
    _second: Any = type(f"{_name}2", (*_bases, AsyncConnector), _own)
    ConnectorRegistry.register(_second())
ConnectorRegistry.register(Lookup(task_type_name="v1_sync"))
