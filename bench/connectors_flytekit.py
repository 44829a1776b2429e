"""The measured connectors as flytekit's own service runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flyteidl.core.execution_pb2 import TaskExecution
from flytekit.extend.backend.base_connector import (
    AsyncConnectorBase,
    ConnectorRegistry,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
)

from bench import behaviour


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
        return Resource(phase=TaskExecution.SUCCEEDED)


_OWN: dict[str, Any] = {"job": Job, "resource": Resource, "phases": TaskExecution}
_KINDS = {
    "noop": behaviour.Async,
    "outputs": behaviour.Ended,
    "plain": behaviour.Plain,
    "blocking": behaviour.Blocking,
}

for _name, _kind in _KINDS.items():
    _class: Any = type(f"{_name}1", (_kind, AsyncConnectorBase), {**_OWN, "name": _name})
    ConnectorRegistry.register(_class(task_type_name=f"v1_{_name}", metadata_type=Job))
ConnectorRegistry.register(Lookup(task_type_name="v1_sync"))
