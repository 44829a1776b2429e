"""The measured connectors as Flyte 2's own service runs them; it awaits every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flyte.connectors import AsyncConnector, ConnectorRegistry, Resource, ResourceMeta
from flyteidl2.core.execution_pb2 import TaskExecution

from bench import behaviour


@dataclass
class Job(ResourceMeta):
    """A job of the bench."""

    job: str


_OWN: dict[str, Any] = {
    "job": Job,
    "resource": Resource,
    "phases": TaskExecution,
    "metadata_type": Job,
}

for _name, _kind in {"noop": behaviour.Async, "outputs": behaviour.Ended}.items():
    _named = {"name": _name, "task_type_name": f"v2_{_name}"}
    _class: Any = type(f"{_name}2", (_kind, AsyncConnector), _OWN | _named)
    ConnectorRegistry.register(_class())
