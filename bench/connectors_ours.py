"""What is measured in our service, in both shapes: ``v1_`` is Flyte 1's, ``v2_`` Flyte 2's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench import behaviour
from connector_service import (
    AsyncConnector,
    AsyncConnectorBase,
    ConnectorRegistry,
    Phase,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
)


@dataclass
class Job(ResourceMeta):
    """A job of the bench."""

    job: str


class Lookup(SyncConnectorBase):
    """Answers at once."""

    async def do(
        self, task_template: Any, output_prefix: str, inputs: Any = None, **kwargs: Any
    ) -> Resource:
        """Answer."""
        return Resource(Phase.SUCCEEDED)


_OWN: dict[str, Any] = {"job": Job, "resource": Resource, "phases": Phase}
_KINDS = {
    "noop": behaviour.Async,
    "outputs": behaviour.Ended,
    "plain": behaviour.Plain,
    "blocking": behaviour.Blocking,
}

for _name, _kind in _KINDS.items():
    _first: Any = type(f"{_name}1", (_kind, AsyncConnectorBase), _OWN)
    ConnectorRegistry.register(_first(task_type_name=f"v1_{_name}", metadata_type=Job))
    _named = {"task_type_name": f"v2_{_name}", "metadata_type": Job}
    _second: Any = type(f"{_name}2", (_kind, AsyncConnector), _OWN | _named)
    ConnectorRegistry.register(_second())
ConnectorRegistry.register(Lookup(task_type_name="v1_sync"))
