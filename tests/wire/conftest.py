"""What the tests of the wire share: connectors made of functions, and every RPC by name."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.tasks_pb2 import TaskTemplate

from connector_service import (
    AsyncConnectorBase,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
    TaskCategory,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from connector_service import ConnectorBase
    from connector_service.client import Client

DEFAULTS: dict[str, Any] = {
    "create": lambda self, task_template: Meta("1"),
    "get": lambda self, resource_meta: Resource(TaskExecution.SUCCEEDED),
    "delete": lambda self, resource_meta: None,
    "do": lambda self, task_template: Resource(TaskExecution.SUCCEEDED),
}


@dataclass
class Meta(ResourceMeta):
    job: str


@pytest.fixture
def fake() -> Callable[..., ConnectorBase]:
    """Make an async connector for task type "fake" out of methods; ``do`` makes a sync one."""

    def make(name: str = "Fake", task_type: str = "", version: int = 0, **own: Any) -> Any:
        is_sync = "do" in own
        base = SyncConnectorBase if is_sync else AsyncConnectorBase
        methods = {key: value for key, value in DEFAULTS.items() if (key == "do") == is_sync}
        kind = type("Fake", (base,), {**methods, **own, "name": name})
        arguments: dict[str, Any] = {} if is_sync else {"metadata_type": Meta}
        return kind(
            task_type_name=task_type or ("fake_sync" if is_sync else "fake"),
            task_type_version=version,
            **arguments,
        )

    return make


@pytest.fixture
def ask() -> Callable[..., Any]:
    """Call one operation by its name, as the client would, with a valid request."""

    async def call(
        client: Client,
        operation: str,
        task_type: str | None = None,
        version: int = 0,
        meta: bytes = b'{"job": "1"}',
    ) -> Any:
        name = task_type or ("fake_sync" if operation == "do" else "fake")
        template = TaskTemplate(type=name, task_type_version=version)
        category = TaskCategory(name, version)
        match operation:
            case "create" | "do":
                return await getattr(client, operation)(template, output_prefix="mem://out")
            case "get" | "delete" | "get_metrics":
                return await getattr(client, operation)(category, meta)
            case "get_logs":
                return [message async for message in client.get_logs(category, meta)]
        raise AssertionError(operation)

    return call


class CallLog(logging.Handler):
    """The log records of ended calls, to be awaited one by one."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._queue: asyncio.Queue[logging.LogRecord] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._queue.put_nowait(record)

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return await self._queue.get()

    @property
    def empty(self) -> bool:
        return self._queue.empty()


@pytest.fixture
def call_log() -> Iterator[CallLog]:
    """Listen to what the service logs of each call, whatever the level."""
    logger = logging.getLogger("connector_service.calls")
    handler = CallLog()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)
