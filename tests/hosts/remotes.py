"""What tests of remote hosts share: peers' answers, calls, and waiting for a host to change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from flyteidl.admin import agent_pb2
from flyteidl2.connector import connector_pb2
from peers import JOBS

from connector_service.hosts.outer import HostStatus
from connector_service.hosts.remote import RemoteHost
from connector_service.runtime.call import Call
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory

MESSAGES: dict[str, Any] = {"flyteidl": agent_pb2, "flyteidl2": connector_pb2}

Remotes = Callable[..., Any]


class Changes:
    """Waits until what a host serves is as wanted, woken by its callback."""

    def __init__(self, remote: RemoteHost) -> None:
        self.remote = remote
        self.changed = asyncio.Event()
        self.count = 0
        remote.on_change(self.note)

    def note(self) -> None:
        self.count += 1
        self.changed.set()

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not wanted():
                self.changed.clear()
                await self.changed.wait()


async def becomes(remote: RemoteHost, status: HostStatus) -> None:
    """Wait for a status, which nobody is called back for."""
    async with asyncio.timeout(20):
        while remote.snapshot().status is not status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def agents(*given: Any) -> bytes:
    listed: bytes = agent_pb2.ListAgentsResponse(agents=given).SerializeToString()
    return listed


def agent(*types: str, sync: bool = False, name: str = "a") -> agent_pb2.Agent:
    return agent_pb2.Agent(
        name=name,
        is_sync=sync,
        supported_task_categories=[agent_pb2.TaskCategory(name=each) for each in types],
    )


def connectors(*types: str) -> bytes:
    categories = [connector_pb2.TaskCategory(name=each) for each in types]
    listed: bytes = connector_pb2.ListConnectorsResponse(
        connectors=[connector_pb2.Connector(name="c", supported_task_categories=categories)]
    ).SerializeToString()
    return listed


def call(operation: Operation, task_type: str, protocol: str = "flyteidl", **more: Any) -> Call:
    messages = MESSAGES[protocol]
    names = {
        Operation.CREATE: "CreateTaskRequest",
        Operation.GET: "GetTaskRequest",
        Operation.GET_LOGS: "GetTaskLogsRequest",
    }
    request = getattr(messages, names[operation])()
    if operation is Operation.CREATE:
        request.template.type = task_type
        request.output_prefix = "mem://out"
    else:
        request.resource_meta = b'{"job": "1"}'
        request.task_category.name = task_type
    deadline = time.monotonic() + 20
    return Call(protocol, operation, TaskCategory(task_type), request, deadline=deadline, **more)


def got(message: str = "m", phase: int = 2) -> bytes:
    response: bytes = agent_pb2.GetTaskResponse(
        resource=agent_pb2.Resource(phase=phase, message=message)  # type: ignore[arg-type]
    ).SerializeToString()
    return response


def types(remote: RemoteHost) -> set[str]:
    return {category.name for category in remote.categories()}


GET1 = f"{JOBS['flyteidl']}/GetTask"
GET2 = f"{JOBS['flyteidl2']}/GetTask"
