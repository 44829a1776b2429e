"""The operations of a running service, called over gRPC as Flyte calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.service import agent_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from connector_service.wire.introspection import (
    SERVICE,
    ListPluginsRequest,
    ListPluginsResponse,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from flyteidl.core.tasks_pb2 import TaskTemplate

    from connector_service.sdk.resource import TaskCategory

__all__ = ["Client"]

_MAX_MESSAGE = 64 * 1024 * 1024


class Client:
    """One connection to a service; an asynchronous context manager.

    Every method takes its time limit from ``timeout`` (seconds) given here, and raises
    ``grpc.aio.AioRpcError`` when the call is refused.
    """

    def __init__(self, endpoint: str, *, timeout: float | None = 10.0) -> None:
        """Take a gRPC target (``127.0.0.1:8000``, ``dns:///...``, ``unix:...``)."""
        self.endpoint = endpoint
        self._timeout = timeout
        self._channel = grpc.aio.insecure_channel(
            endpoint,
            options=(
                ("grpc.max_receive_message_length", _MAX_MESSAGE),
                ("grpc.max_send_message_length", _MAX_MESSAGE),
                # A client on this machine never means a proxy of the environment.
                ("grpc.enable_http_proxy", 0),
            ),
        )
        self._async_agent: Any = agent_pb2_grpc.AsyncAgentServiceStub(self._channel)
        self._sync_agent: Any = agent_pb2_grpc.SyncAgentServiceStub(self._channel)
        self._metadata: Any = agent_pb2_grpc.AgentMetadataServiceStub(self._channel)
        self._list_plugins: Any = self._channel.unary_unary(
            f"/{SERVICE.full_name}/ListPlugins",
            request_serializer=ListPluginsRequest.SerializeToString,
            response_deserializer=ListPluginsResponse.FromString,
        )
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def create(
        self,
        template: TaskTemplate,
        inputs: LiteralMap | None = None,
        *,
        output_prefix: str = "",
        task_execution_metadata: agent_pb2.TaskExecutionMetadata | None = None,
    ) -> bytes:
        """Start a job and return its resource meta."""
        response = await self._async_agent.CreateTask(
            agent_pb2.CreateTaskRequest(
                template=template,
                inputs=inputs if inputs is not None else LiteralMap(),
                output_prefix=output_prefix,
                task_execution_metadata=task_execution_metadata,
            ),
            timeout=self._timeout,
        )
        meta: bytes = response.resource_meta
        return meta

    async def get(
        self, category: TaskCategory, resource_meta: bytes, *, output_prefix: str = ""
    ) -> agent_pb2.Resource:
        """Poll a job."""
        request = agent_pb2.GetTaskRequest(
            **_job(category, resource_meta), output_prefix=output_prefix
        )
        resource: agent_pb2.Resource = (
            await self._async_agent.GetTask(request, timeout=self._timeout)
        ).resource
        return resource

    async def delete(self, category: TaskCategory, resource_meta: bytes) -> None:
        """Stop a job."""
        request = agent_pb2.DeleteTaskRequest(**_job(category, resource_meta))
        await self._async_agent.DeleteTask(request, timeout=self._timeout)

    async def get_metrics(
        self, category: TaskCategory, resource_meta: bytes, *, queries: Sequence[str] = ()
    ) -> agent_pb2.GetTaskMetricsResponse:
        """Read a job's metrics."""
        request = agent_pb2.GetTaskMetricsRequest(**_job(category, resource_meta), queries=queries)
        response: agent_pb2.GetTaskMetricsResponse = await self._async_agent.GetTaskMetrics(
            request, timeout=self._timeout
        )
        return response

    async def get_logs(
        self, category: TaskCategory, resource_meta: bytes, *, lines: int = 0, token: str = ""
    ) -> AsyncIterator[agent_pb2.GetTaskLogsResponse]:
        """Stream a job's log."""
        request = agent_pb2.GetTaskLogsRequest(
            **_job(category, resource_meta), lines=lines, token=token
        )
        async for message in self._async_agent.GetTaskLogs(request, timeout=self._timeout):
            yield message

    async def do(
        self,
        template: TaskTemplate,
        inputs: LiteralMap | None = None,
        *,
        output_prefix: str = "",
        task_execution_metadata: agent_pb2.TaskExecutionMetadata | None = None,
    ) -> agent_pb2.Resource:
        """Do a task's work within the call."""
        header = agent_pb2.CreateRequestHeader(
            template=template,
            output_prefix=output_prefix,
            task_execution_metadata=task_execution_metadata,
        )
        call = self._sync_agent.ExecuteTaskSync(
            iter(
                (
                    agent_pb2.ExecuteTaskSyncRequest(header=header),
                    agent_pb2.ExecuteTaskSyncRequest(
                        inputs=inputs if inputs is not None else LiteralMap()
                    ),
                )
            ),
            timeout=self._timeout,
        )
        resource: agent_pb2.Resource | None = None
        async for message in call:
            resource = message.header.resource
        if resource is None:
            raise RuntimeError(f"{self.endpoint} ended ExecuteTaskSync without a message.")
        return resource

    async def list_agents(self) -> list[agent_pb2.Agent]:
        """Describe every connector of the service."""
        response = await self._metadata.ListAgents(
            agent_pb2.ListAgentsRequest(), timeout=self._timeout
        )
        return list(response.agents)

    async def get_agent(self, name: str) -> agent_pb2.Agent:
        """Describe the connector called ``name``."""
        request = agent_pb2.GetAgentRequest(name=name)
        agent: agent_pb2.Agent = (
            await self._metadata.GetAgent(request, timeout=self._timeout)
        ).agent
        return agent

    async def list_plugins(self) -> list[Any]:
        """Tell what became of every plugin; only our own service answers this."""
        response = await self._list_plugins(ListPluginsRequest(), timeout=self._timeout)
        return list(response.plugins)

    async def health(self, service: str = "") -> str:
        """Return a service's health by name: SERVING, NOT_SERVING."""
        response = await self._health.Check(
            health_pb2.HealthCheckRequest(service=service), timeout=self._timeout
        )
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def _job(category: TaskCategory, resource_meta: bytes) -> dict[str, Any]:
    """Fill what identifies a job, the deprecated ``task_type`` too, as propeller does."""
    return {
        "task_type": category.name,
        "task_category": agent_pb2.TaskCategory(name=category.name, version=category.version),
        "resource_meta": resource_meta,
    }
