"""pytest-grpc's fixtures over our real server: its channel and stub, a port that we serve.

Where its model does not fit, and what is overridden for it:

- Its ``grpc_server`` is a synchronous ``grpc.server``. Ours is asyncio's: a synchronous server
  would take the coroutine that a handler returns for the response, and never await it.
- Its ``--grpc-fake-server`` calls handlers without a port. Its context has neither a deadline nor
  ``read`` and ``write``, so it knows no stream, and its ``abort`` is not awaited.
- Its stubs are synchronous. What a test must see while a call is open is in ``test_v1.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from flyteidl.admin.agent_pb2 import (
    CreateRequestHeader,
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteTaskRequest,
    DeleteTaskResponse,
    ExecuteTaskSyncRequest,
    ExecuteTaskSyncResponse,
    ExecuteTaskSyncResponseHeader,
    GetTaskLogsRequest,
    GetTaskLogsResponse,
    GetTaskLogsResponseBody,
    GetTaskRequest,
    GetTaskResponse,
    ListAgentsRequest,
)
from flyteidl.admin.agent_pb2 import Resource as ResourceMessage
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.service.agent_pb2_grpc import (
    AgentMetadataServiceStub,
    AsyncAgentServiceStub,
    SyncAgentServiceStub,
)

from connector_service import AsyncConnectorBase, Resource, ResourceMeta, SyncConnectorBase
from connector_service.testing import serve_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connector_service.testing import Served


@dataclass
class Job(ResourceMeta):
    key: str


class Remote(AsyncConnectorBase):
    """An async connector: one method of each style."""

    def __init__(self) -> None:
        super().__init__(task_type_name="remote", metadata_type=Job)

    async def create(self, output_prefix: str) -> Job:
        return Job(output_prefix)

    def get(self, resource_meta: Job) -> Resource:
        return Resource(TaskExecution.RUNNING, message=resource_meta.key)

    async def delete(self, resource_meta: Job) -> None:
        pass

    def get_logs(self, resource_meta: Job, lines: int) -> Iterator[GetTaskLogsResponse]:
        for line in range(lines):
            yield GetTaskLogsResponse(body=GetTaskLogsResponseBody(results=[str(line)]))


class Local(SyncConnectorBase):
    """A sync connector."""

    def __init__(self) -> None:
        super().__init__(task_type_name="local")

    async def do(self, output_prefix: str) -> Resource:
        return Resource(TaskExecution.SUCCEEDED, message=output_prefix)


@pytest.fixture(scope="module")
def served(pytestconfig: pytest.Config) -> Iterator[Served]:
    if pytestconfig.getoption("grpc-fake"):
        pytest.skip("pytest-grpc's fake server knows no asyncio and no streams")
    with serve_in_thread(Remote(), Local()) as service:
        yield service


@pytest.fixture(scope="module")
def grpc_addr(served: Served) -> str:
    """Lead pytest-grpc's channel to our port."""
    return served.endpoint


@pytest.fixture(scope="module")
def grpc_server(served: Served) -> object:
    """Stand in for pytest-grpc's own server, which then is never made."""
    return served.service


@pytest.fixture(scope="module")
def grpc_stub_cls() -> type:
    return AsyncAgentServiceStub


def test_a_synchronous_client_takes_a_job_through_its_life(grpc_stub: Any) -> None:
    """A blocking stub creates, polls and deletes a job of a connector with mixed styles."""
    template = TaskTemplate(type="remote")
    created = grpc_stub.CreateTask(CreateTaskRequest(template=template, output_prefix="mem://out"))
    assert created == CreateTaskResponse(resource_meta=b'{"key": "mem://out"}')
    job = {"task_type": "remote", "resource_meta": created.resource_meta}
    assert grpc_stub.GetTask(GetTaskRequest(**job)) == GetTaskResponse(
        resource=ResourceMessage(phase=TaskExecution.RUNNING, message="mem://out")
    )
    assert grpc_stub.DeleteTask(DeleteTaskRequest(**job)) == DeleteTaskResponse()


def test_a_synchronous_client_iterates_a_log(grpc_stub: Any) -> None:
    """A blocking stub reads every message of the stream, in order."""
    request = GetTaskLogsRequest(task_type="remote", resource_meta=b'{"key": "1"}', lines=3)
    lines = [message.body.results[0] for message in grpc_stub.GetTaskLogs(request)]
    assert lines == ["0", "1", "2"]


def test_a_synchronous_client_executes_a_task(grpc_channel: grpc.Channel) -> None:
    """A blocking stub sends header and inputs, and gets one message."""
    stub: Any = SyncAgentServiceStub(grpc_channel)
    header = CreateRequestHeader(template=TaskTemplate(type="local"), output_prefix="mem://out")
    messages = [
        ExecuteTaskSyncRequest(header=header),
        ExecuteTaskSyncRequest(inputs=LiteralMap()),
    ]
    assert list(stub.ExecuteTaskSync(iter(messages))) == [
        ExecuteTaskSyncResponse(
            header=ExecuteTaskSyncResponseHeader(
                resource=ResourceMessage(phase=TaskExecution.SUCCEEDED, message="mem://out")
            )
        )
    ]


def test_a_synchronous_client_meets_the_same_refusals(grpc_stub: Any) -> None:
    """A blocking stub sees the code and the sentence of the status table."""
    with pytest.raises(grpc.RpcError) as refused:
        grpc_stub.GetTask(GetTaskRequest(task_type="nobody"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert refused.value.details() == (
        "No connector for task type 'nobody' version 0; registered: local v0, remote v0."
    )


def test_channels_of_the_plugin_reach_every_service(grpc_create_channel: Any) -> None:
    """A fresh channel a round, as Flyte 1's propeller opens for its discovery, sees all."""
    for _ in range(3):
        with grpc_create_channel() as channel:
            stub: Any = AgentMetadataServiceStub(channel)
            agents = stub.ListAgents(ListAgentsRequest()).agents
            assert [(agent.name, agent.is_sync) for agent in agents] == [
                ("Local", True),
                ("Remote", False),
            ]
