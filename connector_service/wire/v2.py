"""Flyte 2's services (flyteidl2): each request becomes a call, each outcome a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flyteidl2.connector import connector_pb2, service_pb2

from connector_service.codec.convert import FlyteProtocol
from connector_service.sdk.method import Operation
from connector_service.wire.jobs import Jobs, about
from connector_service.wire.status import answer

if TYPE_CHECKING:
    import grpc.aio
    from flyteidl.admin.agent_pb2 import Agent
    from google.protobuf.descriptor import ServiceDescriptor

    from connector_service.runtime.dispatcher import Dispatcher
    from connector_service.wire.binding import Methods

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["Metadata", "add_methods", "services"]

_PROTOCOL = FlyteProtocol.FLYTE2
_SERVICES = service_pb2.DESCRIPTOR.services_by_name


def services() -> tuple[ServiceDescriptor, ...]:
    """Return the services of this protocol, as health and reflection name them."""
    return tuple(_SERVICES.values())


def add_methods(methods: Methods, dispatcher: Dispatcher) -> None:
    """Put Flyte 2's two services in ``methods``; it has none for sync tasks."""
    methods.add(_SERVICES["AsyncConnectorService"], Jobs(dispatcher, _PROTOCOL, connector_pb2))
    metadata = _SERVICES["ConnectorMetadataService"]
    methods.add(metadata, Metadata(dispatcher))


class Metadata:
    """flyteidl2.connector.ConnectorMetadataService."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Take the dispatcher that answers."""
        self._dispatcher = dispatcher

    async def GetConnector(
        self, request: connector_pb2.GetConnectorRequest, context: Context
    ) -> connector_pb2.GetConnectorResponse:
        """Describe one connector."""
        call = about(_PROTOCOL, Operation.DESCRIBE, request, context)
        agent = await answer(context, await self._dispatcher.dispatch(call))
        return connector_pb2.GetConnectorResponse(connector=_connector(agent))

    async def ListConnectors(
        self, request: connector_pb2.ListConnectorsRequest, context: Context
    ) -> connector_pb2.ListConnectorsResponse:
        """Describe every connector; the executor asks every 10 s and believes the answer."""
        call = about(_PROTOCOL, Operation.LIST, request, context)
        agents = await answer(context, await self._dispatcher.dispatch(call))
        connectors = [_connector(agent) for agent in agents]
        return connector_pb2.ListConnectorsResponse(connectors=connectors)


def _connector(agent: Agent) -> connector_pb2.Connector:
    return connector_pb2.Connector(
        name=agent.name,
        supported_task_categories=[
            connector_pb2.TaskCategory(name=category.name, version=category.version)
            for category in agent.supported_task_categories
        ],
    )
