"""Flyte 1's services (flyteidl): each request becomes a call, each outcome a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl.service import agent_pb2 as service_pb2

from connector_service.codec.convert import FlyteProtocol
from connector_service.errors import InvalidRequestError
from connector_service.runtime.call import Call
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory
from connector_service.wire.jobs import Jobs, about, read_deadline, started
from connector_service.wire.status import answer, refuse, send

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

    from connector_service.runtime.dispatcher import Dispatcher
    from connector_service.wire.binding import Methods

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["Metadata", "SyncAgent", "add_methods", "services"]

_PROTOCOL = FlyteProtocol.FLYTE1
_SERVICES = service_pb2.DESCRIPTOR.services_by_name


def services() -> tuple[ServiceDescriptor, ...]:
    """Return the services of this protocol, as health and reflection name them."""
    return tuple(_SERVICES.values())


def add_methods(methods: Methods, dispatcher: Dispatcher) -> None:
    """Put Flyte 1's three services in ``methods``."""
    methods.add(_SERVICES["AsyncAgentService"], Jobs(dispatcher, _PROTOCOL, agent_pb2))
    methods.add(_SERVICES["SyncAgentService"], SyncAgent(dispatcher))
    metadata = _SERVICES["AgentMetadataService"]
    methods.add(metadata, Metadata(dispatcher))


class SyncAgent:
    """flyteidl.service.SyncAgentService."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Take the dispatcher that answers."""
        self._answer = dispatcher.answer

    async def ExecuteTaskSync(self, _requests: object, context: Context) -> None:
        """Do the work of one task: exactly one header message back, then OK.

        The client stops reading after its first message; more would leak the stream. What is sent
        is the resource, which its writer puts into the header of the response.
        """
        await send(context, await self._answer(await _do(context), refuse, context))


class Metadata:
    """flyteidl.service.AgentMetadataService."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Take the dispatcher that answers."""
        self._dispatcher = dispatcher

    async def GetAgent(
        self, request: agent_pb2.GetAgentRequest, context: Context
    ) -> agent_pb2.GetAgentResponse:
        """Describe one connector."""
        call = about(_PROTOCOL, Operation.DESCRIBE, request, context)
        outcome = await self._dispatcher.dispatch(call)
        return agent_pb2.GetAgentResponse(agent=await answer(context, outcome))

    async def ListAgents(
        self, request: agent_pb2.ListAgentsRequest, context: Context
    ) -> agent_pb2.ListAgentsResponse:
        """Describe every connector; the client asks every 10 s and believes the answer."""
        outcome = await self._dispatcher.dispatch(
            about(_PROTOCOL, Operation.LIST, request, context)
        )
        return agent_pb2.ListAgentsResponse(agents=await answer(context, outcome))


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
    return started(_PROTOCOL, Operation.DO, header, context, inputs)


def _refused(header: agent_pb2.CreateRequestHeader | None, problem: str, context: Context) -> Call:
    error = InvalidRequestError(f"ExecuteTaskSync wants header, inputs, half-close: {problem}.")
    template = header.template if header else None
    category = TaskCategory(template.type, template.task_type_version) if template else None
    deadline = read_deadline(context)
    return Call(_PROTOCOL, Operation.DO, category, None, deadline=deadline, problem=error)
