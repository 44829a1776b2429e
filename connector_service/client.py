"""The operations of a running service, called over gRPC as Flyte calls them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc
import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.service import agent_pb2 as service_pb2
from flyteidl.service import agent_pb2_grpc
from flyteidl2.connector import connector_pb2, service_pb2_grpc
from flyteidl2.connector import service_pb2 as service2_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from connector_service.codec.convert import MESSAGES, FlyteProtocol, Messages, reread
from connector_service.errors import (
    InvalidRequestError,
    UnsupportedOperationError,
    WrongKindError,
)
from connector_service.sdk.resource import TaskCategory, is_terminal_phase
from connector_service.wire.introspection import METHODS, SERVICE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from flyteidl.core.tasks_pb2 import TaskTemplate
    from flyteidl2.core.security_pb2 import Connection
    from google.protobuf.message import Message

__all__ = ["Client"]

_log = logging.getLogger(__name__)

_MAX_MESSAGE = 64 * 1024 * 1024
# The server is out of reach, which says nothing of what it serves.
_OUT_OF_REACH = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_FLYTE1 = MESSAGES[FlyteProtocol.FLYTE1]


class _Speech(NamedTuple):
    """One protocol's words: its requests, its messages, and the stubs of one connection."""

    protocol: FlyteProtocol
    requests: Any
    messages: Messages
    jobs: Any
    metadata: Any


class Client:
    """One connection to a service, in either protocol; an asynchronous context manager.

    Callers give and get Flyte 1's messages, whatever is spoken on the wire. Every method takes its
    time limit from ``timeout`` (seconds) given here, and raises ``grpc.aio.AioRpcError`` when the
    call is refused.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        protocol: str | None = None,
        timeout: float | None = 10.0,
        notice: Callable[[str], None] = _log.warning,
    ) -> None:
        """Take a gRPC target (``127.0.0.1:8000``, ``dns:///...``, ``unix:...``).

        ``protocol`` is ``flyteidl`` or ``flyteidl2``; None asks the server by reflection, once,
        and prefers Flyte 1's, which can say more. ``notice`` is told when that had to be guessed.
        """
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
        self._notice = notice
        self._sync_agent: Any = agent_pb2_grpc.SyncAgentServiceStub(self._channel)
        self._inside: Mapping[str, Any] = {
            name: self._channel.unary_unary(
                f"/{SERVICE.full_name}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            for name, (request, response) in METHODS.items()
        }
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        reflection: Any = reflection_pb2_grpc  # typed for synchronous channels alone
        self._reflection: Any = reflection.ServerReflectionStub(self._channel)
        self._protocol = None if protocol is None else FlyteProtocol(protocol)
        self._choosing = asyncio.Lock()
        self._speeches = _speeches(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def protocol(self) -> FlyteProtocol:
        """Return the protocol that is spoken; the first time, ask the server what it serves.

        A server without reflection is spoken to in Flyte 1's, and ``notice`` is told.

        Raises:
            UnsupportedOperationError: The server serves neither protocol.
        """
        async with self._choosing:
            if self._protocol is None:
                self._protocol = await self._ask()
        return self._protocol

    async def create(
        self,
        template: TaskTemplate,
        inputs: LiteralMap | None = None,
        *,
        output_prefix: str = "",
        task_execution_metadata: agent_pb2.TaskExecutionMetadata | None = None,
        connection: Connection | None = None,
    ) -> bytes:
        """Start a job and return its resource meta.

        Raises:
            InvalidRequestError: There is a ``connection``, which Flyte 1's protocol has not.
        """
        speech = await self._speech()
        messages = speech.messages
        request = speech.requests.CreateTaskRequest(
            template=reread(template, messages.task_template),
            inputs=reread(inputs if inputs is not None else LiteralMap(), messages.inputs),
            output_prefix=output_prefix,
            task_execution_metadata=(
                None
                if task_execution_metadata is None
                else reread(task_execution_metadata, messages.task_execution_metadata)
            ),
            **_connected(speech, connection),
        )
        meta: bytes = (await speech.jobs.CreateTask(request, timeout=self._timeout)).resource_meta
        return meta

    async def get(
        self,
        category: TaskCategory,
        resource_meta: bytes,
        *,
        output_prefix: str = "",
        connection: Connection | None = None,
    ) -> agent_pb2.Resource:
        """Poll a job; raises as ``create``."""
        speech = await self._speech()
        request = speech.requests.GetTaskRequest(
            **_job(speech, category, resource_meta),
            **_connected(speech, connection),
            output_prefix=output_prefix,
        )
        response = await speech.jobs.GetTask(request, timeout=self._timeout)
        return _as_flyte1(response.resource, "resource")

    async def delete(
        self, category: TaskCategory, resource_meta: bytes, *, connection: Connection | None = None
    ) -> None:
        """Stop a job; raises as ``create``."""
        speech = await self._speech()
        request = speech.requests.DeleteTaskRequest(
            **_job(speech, category, resource_meta), **_connected(speech, connection)
        )
        await speech.jobs.DeleteTask(request, timeout=self._timeout)

    async def get_metrics(
        self, category: TaskCategory, resource_meta: bytes, *, queries: Sequence[str] = ()
    ) -> agent_pb2.GetTaskMetricsResponse:
        """Read a job's metrics."""
        speech = await self._speech()
        request = speech.requests.GetTaskMetricsRequest(
            **_job(speech, category, resource_meta), queries=queries
        )
        response = await speech.jobs.GetTaskMetrics(request, timeout=self._timeout)
        return _as_flyte1(response, "metrics")

    async def get_logs(
        self, category: TaskCategory, resource_meta: bytes, *, lines: int = 0, token: str = ""
    ) -> AsyncIterator[agent_pb2.GetTaskLogsResponse]:
        """Stream a job's log."""
        speech = await self._speech()
        request = speech.requests.GetTaskLogsRequest(
            **_job(speech, category, resource_meta), lines=lines, token=token
        )
        async for message in speech.jobs.GetTaskLogs(request, timeout=self._timeout):
            yield _as_flyte1(message, "logs")

    async def do(
        self,
        template: TaskTemplate,
        inputs: LiteralMap | None = None,
        *,
        output_prefix: str = "",
        task_execution_metadata: agent_pb2.TaskExecutionMetadata | None = None,
        connection: Connection | None = None,
    ) -> agent_pb2.Resource:
        """Do a task's work within the call; over Flyte 2's protocol, within two.

        Raises:
            InvalidRequestError: As ``create``.
            WrongKindError: Over Flyte 2's protocol, which has no call for it, the task turned out
                to be a job that runs on; it was deleted.
        """
        speech = await self._speech()
        connected = _connected(speech, connection)
        if speech.protocol is FlyteProtocol.FLYTE2:
            return await self._create_and_get(
                template, inputs, output_prefix, task_execution_metadata, **connected
            )
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
        """Describe every connector of the service; Flyte 2's protocol does not tell ``is_sync``."""
        speech = await self._speech()
        if speech.protocol is FlyteProtocol.FLYTE2:
            request = connector_pb2.ListConnectorsRequest()
            listed = await speech.metadata.ListConnectors(request, timeout=self._timeout)
            return [_agent(connector) for connector in listed.connectors]
        response = await speech.metadata.ListAgents(
            agent_pb2.ListAgentsRequest(), timeout=self._timeout
        )
        return list(response.agents)

    async def get_agent(self, name: str) -> agent_pb2.Agent:
        """Describe the connector called ``name``; as ``list_agents``."""
        speech = await self._speech()
        if speech.protocol is FlyteProtocol.FLYTE2:
            wanted = connector_pb2.GetConnectorRequest(name=name)
            found = await speech.metadata.GetConnector(wanted, timeout=self._timeout)
            return _agent(found.connector)
        request = agent_pb2.GetAgentRequest(name=name)
        agent: agent_pb2.Agent = (
            await speech.metadata.GetAgent(request, timeout=self._timeout)
        ).agent
        return agent

    async def list_plugins(self) -> list[Any]:
        """Tell what became of every plugin; only our own service answers this."""
        return list((await self._introspect("ListPlugins")).plugins)

    async def list_hosts(self) -> list[Any]:
        """Tell how every host beside the service is; only our own service answers this."""
        return list((await self._introspect("ListHosts")).hosts)

    async def reload(self, host: str = "") -> list[Any]:
        """Reload one host, or all, over the service's unix socket; say what became of each."""
        return list((await self._introspect("Reload", host=host)).reloaded)

    async def _introspect(self, rpc: str, **fields: Any) -> Any:
        request, _ = METHODS[rpc]
        return await self._inside[rpc](request(**fields), timeout=self._timeout)

    async def health(self, service: str = "") -> str:
        """Return a service's health by name: SERVING, NOT_SERVING."""
        response = await self._health.Check(
            health_pb2.HealthCheckRequest(service=service), timeout=self._timeout
        )
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    async def _speech(self) -> _Speech:
        return self._speeches[await self.protocol()]

    async def _ask(self) -> FlyteProtocol:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        served: set[str] = set()
        try:
            async for response in self._reflection.ServerReflectionInfo(
                iter((request,)), timeout=self._timeout
            ):
                served |= {service.name for service in response.list_services_response.service}
        except grpc.aio.AioRpcError as error:
            if error.code() in _OUT_OF_REACH:
                raise
            self._notice(
                f"{self.endpoint} does not tell which protocol it serves ({error.code().name} to"
                f" reflection); trying {FlyteProtocol.FLYTE1}."
            )
            return FlyteProtocol.FLYTE1
        for protocol, service in _SERVICES.items():
            if service in served:
                return protocol
        raise UnsupportedOperationError(
            f"{self.endpoint} serves neither {' nor '.join(_SERVICES.values())};"
            f" it serves {', '.join(sorted(served)) or 'nothing'}."
        )

    async def _create_and_get(
        self,
        template: TaskTemplate,
        inputs: LiteralMap | None,
        output_prefix: str,
        task_execution_metadata: agent_pb2.TaskExecutionMetadata | None,
        connection: Connection | None = None,
    ) -> agent_pb2.Resource:
        category = TaskCategory(template.type, template.task_type_version)
        meta = await self.create(
            template,
            inputs,
            output_prefix=output_prefix,
            task_execution_metadata=task_execution_metadata,
            connection=connection,
        )
        resource = await self.get(
            category, meta, output_prefix=output_prefix, connection=connection
        )
        if not is_terminal_phase(resource.phase):
            await self.delete(category, meta, connection=connection)
            raise WrongKindError(
                f"Task type {category.spoken} runs as a job, which was deleted again: create it"
                f" and poll it."
            )
        return resource


_SERVICES = {
    FlyteProtocol.FLYTE1: service_pb2.DESCRIPTOR.services_by_name["AsyncAgentService"].full_name,
    FlyteProtocol.FLYTE2: (
        service2_pb2.DESCRIPTOR.services_by_name["AsyncConnectorService"].full_name
    ),
}


def _speeches(channel: grpc.aio.Channel) -> dict[FlyteProtocol, _Speech]:
    flyte1: Any = agent_pb2_grpc
    flyte2: Any = service_pb2_grpc
    return {
        FlyteProtocol.FLYTE1: _Speech(
            FlyteProtocol.FLYTE1,
            agent_pb2,
            MESSAGES[FlyteProtocol.FLYTE1],
            flyte1.AsyncAgentServiceStub(channel),
            flyte1.AgentMetadataServiceStub(channel),
        ),
        FlyteProtocol.FLYTE2: _Speech(
            FlyteProtocol.FLYTE2,
            connector_pb2,
            MESSAGES[FlyteProtocol.FLYTE2],
            flyte2.AsyncConnectorServiceStub(channel),
            flyte2.ConnectorMetadataServiceStub(channel),
        ),
    }


def _job(speech: _Speech, category: TaskCategory, resource_meta: bytes) -> dict[str, Any]:
    """Fill what identifies a job, Flyte 1's deprecated ``task_type`` too, as propeller does."""
    named = speech.requests.TaskCategory(name=category.name, version=category.version)
    job = {"task_category": named, "resource_meta": resource_meta}
    if speech.protocol is FlyteProtocol.FLYTE1:
        job["task_type"] = category.name
    return job


def _connected(speech: _Speech, connection: Connection | None) -> dict[str, Connection]:
    if connection is None:
        return {}
    if speech.protocol is FlyteProtocol.FLYTE1:
        raise InvalidRequestError(
            f"Flyte 1's protocol has no connection; a server that serves {FlyteProtocol.FLYTE2}"
            f" takes it over that."
        )
    return {"connection": connection}


def _as_flyte1(message: Message, kind: str) -> Any:
    return reread(message, getattr(_FLYTE1, kind))


def _agent(connector: connector_pb2.Connector) -> agent_pb2.Agent:
    categories = connector.supported_task_categories
    return agent_pb2.Agent(
        name=connector.name,
        supported_task_types=list(dict.fromkeys(category.name for category in categories)),
        supported_task_categories=[
            agent_pb2.TaskCategory(name=category.name, version=category.version)
            for category in categories
        ],
    )
