"""What the tests of the runtime share: connectors made of functions, and a real dispatcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from flyteidl.admin.agent_pb2 import GetTaskLogsResponse, GetTaskLogsResponseBody
from flyteidl.core.execution_pb2 import TaskExecution

from connector_service import (
    AsyncConnectorBase,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from connector_service import ConnectorBase


@dataclass
class Meta(ResourceMeta):
    job: str


DEFAULTS: dict[str, Any] = {
    "create": lambda self, task_template: Meta("1"),
    "get": lambda self, resource_meta: Resource(TaskExecution.RUNNING),
    "delete": lambda self, resource_meta: None,
    "do": lambda self, task_template: Resource(TaskExecution.SUCCEEDED),
}


@pytest.fixture
def fake() -> Callable[..., ConnectorBase]:
    """Make an async connector out of methods; ``do`` makes a sync one."""

    def make(
        task_type: str = "fake", metadata_type: type[ResourceMeta] = Meta, **own: Any
    ) -> ConnectorBase:
        is_sync = "do" in own
        base = SyncConnectorBase if is_sync else AsyncConnectorBase
        methods = {key: value for key, value in DEFAULTS.items() if (key == "do") == is_sync}
        kind: Any = type("Fake", (base,), {**methods, **own, "name": task_type.title()})
        if is_sync:
            return kind(task_type_name=task_type)
        return kind(task_type_name=task_type, metadata_type=metadata_type)

    return make


@pytest.fixture
def line() -> Callable[[str], GetTaskLogsResponse]:
    """Make one message of a log."""
    return lambda text: GetTaskLogsResponse(body=GetTaskLogsResponseBody(results=[text]))
