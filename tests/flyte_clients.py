"""Both of Flyte's clients, as Flyte's own stubs make them, and connectors in either shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl.service import agent_pb2_grpc
from flyteidl2.connector import connector_pb2, service_pb2_grpc

from connector_service import AsyncConnector, AsyncConnectorBase, Resource, ResourceMeta
from connector_service.sdk.resource import Phase


@dataclass
class Meta(ResourceMeta):
    job: str


class Flyte:
    """One of Flyte's two clients: its own stubs and messages, filled as the Go client fills them.

    Requests are written as plain values and Flyte 1's messages; nothing of the service's own
    client or conversion is used.
    """

    def __init__(self, protocol: str, endpoint: str) -> None:
        self.protocol = protocol
        self.is_first = protocol == "flyteidl"
        self.channel = grpc.aio.insecure_channel(
            endpoint,
            options=(
                ("grpc.enable_http_proxy", 0),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
            ),
        )
        jobs: Any = agent_pb2_grpc if self.is_first else service_pb2_grpc
        self.messages: Any = agent_pb2 if self.is_first else connector_pb2
        self.service = "flyteidl.service.AsyncAgentService"
        if self.is_first:
            self.jobs = jobs.AsyncAgentServiceStub(self.channel)
            self.sync = jobs.SyncAgentServiceStub(self.channel)
            self.metadata = jobs.AgentMetadataServiceStub(self.channel)
        else:
            self.service = "flyteidl2.connector.AsyncConnectorService"
            self.jobs = jobs.AsyncConnectorServiceStub(self.channel)
            self.metadata = jobs.ConnectorMetadataServiceStub(self.channel)

    async def create(
        self, template: Any, inputs: Any = None, *, prefix: str = "mem://out", **more: Any
    ) -> bytes:
        request = self.messages.CreateTaskRequest(output_prefix=prefix, **more)
        request.inputs.MergeFromString(b"" if inputs is None else inputs.SerializeToString())
        request.template.MergeFromString(template.SerializeToString())
        request.task_execution_metadata.namespace = "flyte"
        request.task_execution_metadata.labels["a"] = "b"
        request.task_execution_metadata.task_execution_id.retry_attempt = 2
        meta: bytes = (await self.jobs.CreateTask(request, timeout=30)).resource_meta
        return meta

    async def get(self, meta: bytes, task_type: str = "crossed", **more: Any) -> Any:
        request = self.messages.GetTaskRequest(
            **self._job(meta, task_type), output_prefix="mem://out", **more
        )
        return (await self.jobs.GetTask(request, timeout=30)).resource

    async def delete(self, meta: bytes, task_type: str = "crossed", **more: Any) -> Any:
        request = self.messages.DeleteTaskRequest(**self._job(meta, task_type), **more)
        return await self.jobs.DeleteTask(request, timeout=30)

    async def metrics(self, meta: bytes, task_type: str = "crossed", **more: Any) -> Any:
        request = self.messages.GetTaskMetricsRequest(**self._job(meta, task_type), **more)
        return await self.jobs.GetTaskMetrics(request, timeout=30)

    async def logs(self, meta: bytes, task_type: str = "crossed", **more: Any) -> list[Any]:
        request = self.messages.GetTaskLogsRequest(**self._job(meta, task_type), **more)
        return [message async for message in self.jobs.GetTaskLogs(request, timeout=30)]

    async def do(self, template: Any, inputs: Any = None, *, prefix: str = "mem://out") -> Any:
        """Run a sync task as this client would: in one call, or by create and its first poll."""
        if not self.is_first:
            meta = await self.create(template, inputs, prefix=prefix)
            return await self.get(meta, template.type)
        request = agent_pb2.ExecuteTaskSyncRequest
        header = agent_pb2.CreateRequestHeader(template=template, output_prefix=prefix)
        given = agent_pb2.ExecuteTaskSyncRequest(inputs=inputs)
        given.inputs.SetInParent()
        call = self.sync.ExecuteTaskSync(iter((request(header=header), given)), timeout=30)
        (message,) = [message async for message in call]
        return message.header.resource

    def _job(self, meta: bytes, task_type: str) -> dict[str, Any]:
        job = {"task_category": self.messages.TaskCategory(name=task_type), "resource_meta": meta}
        return {**job, "task_type": task_type} if self.is_first else job


SHAPES: Mapping[str, type] = {"base": AsyncConnectorBase, "connector": AsyncConnector}


def make_connector(shape: str, task_type: str = "crossed", **methods: Any) -> Any:
    """Make an async connector of a shape out of functions; what is not given does the least."""
    own = {
        "create": lambda self, task_template: Meta("1"),
        "get": lambda self, resource_meta: Resource(Phase.SUCCEEDED),
        "delete": lambda self, resource_meta: None,
        **methods,
    }
    if shape == "base":
        kind = type("Crossed", (AsyncConnectorBase,), own)
        return kind(task_type_name=task_type, metadata_type=Meta)
    own |= {"task_type_name": task_type, "metadata_type": Meta}
    return type("Crossed", (AsyncConnector,), own)()
