"""Flyte 1's services (flyteidl): each request becomes a call, each outcome a response."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl.service import agent_pb2 as service_pb2

from connector_service.errors import InvalidRequestError
from connector_service.runtime.call import Call
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory
from connector_service.wire.binding import bind
from connector_service.wire.status import answer

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

    from connector_service.runtime.dispatcher import Dispatcher

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["PROTOCOL", "AsyncAgent", "Metadata", "SyncAgent", "add_to_server", "services"]

PROTOCOL = "flyteidl"

_MARGIN = 0.25  # seconds for the answer to reach the client before its deadline
_MARGIN_SHARE = 0.1  # of a short deadline

_SERVICES = service_pb2.DESCRIPTOR.services_by_name


def services() -> tuple[ServiceDescriptor, ...]:
    """Return the services of this protocol, as health and reflection name them."""
    return tuple(_SERVICES.values())


def add_to_server(server: grpc.aio.Server, dispatcher: Dispatcher) -> None:
    """Serve Flyte 1's three services on ``server``."""
    bind(server, _SERVICES["AsyncAgentService"], AsyncAgent(dispatcher))
    bind(server, _SERVICES["SyncAgentService"], SyncAgent(dispatcher))
    bind(server, _SERVICES["AgentMetadataService"], Metadata(dispatcher))


class AsyncAgent:
    """flyteidl.service.AsyncAgentService."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Take the dispatcher that answers."""
        self._dispatcher = dispatcher

    async def CreateTask(
        self, request: agent_pb2.CreateTaskRequest, context: Context
    ) -> agent_pb2.CreateTaskResponse:
        """Start a job."""
        outcome = await self._dispatcher.dispatch(_create(request, context))
        return agent_pb2.CreateTaskResponse(resource_meta=await answer(context, outcome))

    async def GetTask(
        self, request: agent_pb2.GetTaskRequest, context: Context
    ) -> agent_pb2.GetTaskResponse:
        """Poll a job."""
        outcome = await self._dispatcher.dispatch(_on_job(Operation.GET, request, context))
        return agent_pb2.GetTaskResponse(resource=await answer(context, outcome))

    async def DeleteTask(
        self, request: agent_pb2.DeleteTaskRequest, context: Context
    ) -> agent_pb2.DeleteTaskResponse:
        """Stop a job."""
        outcome = await self._dispatcher.dispatch(_on_job(Operation.DELETE, request, context))
        await answer(context, outcome)
        return agent_pb2.DeleteTaskResponse()

    async def GetTaskMetrics(
        self, request: agent_pb2.GetTaskMetricsRequest, context: Context
    ) -> agent_pb2.GetTaskMetricsResponse:
        """Read a job's metrics."""
        outcome = await self._dispatcher.dispatch(_on_job(Operation.GET_METRICS, request, context))
        response: agent_pb2.GetTaskMetricsResponse = await answer(context, outcome)
        return response

    async def GetTaskLogs(self, request: agent_pb2.GetTaskLogsRequest, context: Context) -> None:
        """Stream a job's log."""
        call = _on_job(Operation.GET_LOGS, request, context)
        await answer(context, await self._dispatcher.stream(call, context.write))


class SyncAgent:
    """flyteidl.service.SyncAgentService."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Take the dispatcher that answers."""
        self._dispatcher = dispatcher

    async def ExecuteTaskSync(self, _requests: object, context: Context) -> None:
        """Do the work of one task: exactly one header message back, then OK.

        The client stops reading after its first message; more would leak the stream.
        """
        outcome = await self._dispatcher.dispatch(await _do(context))
        header = agent_pb2.ExecuteTaskSyncResponseHeader(resource=await answer(context, outcome))
        await context.write(agent_pb2.ExecuteTaskSyncResponse(header=header))


class Metadata:
    """flyteidl.service.AgentMetadataService."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Take the dispatcher that answers."""
        self._dispatcher = dispatcher

    async def GetAgent(
        self, request: agent_pb2.GetAgentRequest, context: Context
    ) -> agent_pb2.GetAgentResponse:
        """Describe one connector."""
        outcome = await self._dispatcher.dispatch(_about(Operation.DESCRIBE, request, context))
        return agent_pb2.GetAgentResponse(agent=await answer(context, outcome))

    async def ListAgents(
        self, request: agent_pb2.ListAgentsRequest, context: Context
    ) -> agent_pb2.ListAgentsResponse:
        """Describe every connector; the client asks every 10 s and believes the answer."""
        outcome = await self._dispatcher.dispatch(_about(Operation.LIST, request, context))
        return agent_pb2.ListAgentsResponse(agents=await answer(context, outcome))


def _create(request: agent_pb2.CreateTaskRequest, context: Context) -> Call:
    return _started(Operation.CREATE, request, context)


def _on_job(operation: Operation, request: Any, context: Context) -> Call:
    """Read a call about a job: the task category, or the deprecated task type without one."""
    if request.task_category.name:
        category = TaskCategory(request.task_category.name, request.task_category.version)
    else:
        category = TaskCategory(request.task_type)
    return _call(operation, category, request, context, "task_category.name")


def _about(operation: Operation, request: Any, context: Context) -> Call:
    return Call(PROTOCOL, operation, None, request, deadline=_deadline(context))


async def _do(context: Context) -> Call:
    """Read the stream that the client must send: header, inputs, half-close."""
    header: agent_pb2.CreateRequestHeader | None = None
    for expected in ("header", "inputs"):
        message = await context.read()
        if message is grpc.aio.EOF:
            return _refused(header, f"the stream ended where {expected} was expected", context)
        got = message.WhichOneof("part") or "an empty message"
        if got != expected:
            return _refused(header, f"{got} came where {expected} was expected", context)
        if expected == "header":
            header = message.header
    inputs = message.inputs
    if await context.read() is not grpc.aio.EOF:
        return _refused(header, "a third message came where half-close was expected", context)
    return _started(Operation.DO, header, context, inputs)


def _refused(header: agent_pb2.CreateRequestHeader | None, problem: str, context: Context) -> Call:
    error = InvalidRequestError(f"ExecuteTaskSync wants header, inputs, half-close: {problem}.")
    template = header.template if header else None
    category = TaskCategory(template.type, template.task_type_version) if template else None
    return Call(PROTOCOL, Operation.DO, category, None, deadline=_deadline(context), problem=error)


def _started(operation: Operation, message: Any, context: Context, inputs: Any = None) -> Call:
    template = message.template
    category = TaskCategory(template.type, template.task_type_version)
    return _call(operation, category, message, context, "template.type", inputs=inputs)


def _call(
    operation: Operation,
    category: TaskCategory,
    message: Any,
    context: Context,
    field: str,
    *,
    inputs: Any = None,
) -> Call:
    problem = None if category.name else InvalidRequestError(f"{operation} has no {field}.")
    return Call(PROTOCOL, operation, category, message, inputs, _deadline(context), problem)


def _deadline(context: Context) -> float | None:
    """Return when to answer at the latest, on our monotonic clock; None without a deadline.

    It is a little before the client's own: our refusal says what happened, its timer does not.
    """
    remaining = context.time_remaining()
    if remaining is None:
        return None
    return time.monotonic() + remaining - min(_MARGIN, remaining * _MARGIN_SHARE)
