"""What a local job is run by: this process's connectors, or a service elsewhere."""

from __future__ import annotations

import functools
import os
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec
from flyteidl.admin import agent_pb2
from flyteidl2.connector import connector_pb2
from flyteidl2.core.security_pb2 import Connection
from google.protobuf import json_format

from connector_service import config as settings
from connector_service.client import Client
from connector_service.codec.convert import MESSAGES, FlyteProtocol, reread
from connector_service.errors import (
    ConnectorFault,
    ConnectorNotFoundError,
    ConnectorServiceError,
    InvalidInputError,
)
from connector_service.hosts.inline import InlineHost
from connector_service.runtime.call import Call, Status
from connector_service.runtime.dispatcher import Dispatcher
from connector_service.runtime.hooks import Hooks
from connector_service.runtime.invoker import Invoker
from connector_service.sdk.method import Operation
from connector_service.sdk.registry import ConnectorRegistry, Registry
from connector_service.sdk.resource import TaskCategory
from connector_service.sdk.secrets import get_connector_secret, redact
from connector_service.server.parts import configure, load_plugins, refuse_idle
from connector_service.wire.status import classify

if TYPE_CHECKING:
    from collections.abc import Callable

    from flyteidl.core.literals_pb2 import LiteralMap
    from flyteidl.core.tasks_pb2 import TaskTemplate

    from connector_service.sdk.connector import ConnectorBase

__all__ = ["Backend", "InProcess", "Remote", "category_of", "local_registry"]

_REQUESTS: dict[str, Any] = {
    FlyteProtocol.FLYTE1: agent_pb2,
    FlyteProtocol.FLYTE2: connector_pb2,
}


class Backend(Protocol):
    """The operations that one run needs, in Flyte 1's messages; entered and left once."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_exc: object) -> None: ...

    async def is_sync(self, task: TaskTemplate) -> bool:
        """Tell how the task's type is served; raise ``ConnectorNotFoundError`` if it is not."""

    async def create(
        self, task: TaskTemplate, inputs: LiteralMap, prefix: str, metadata: Any
    ) -> bytes:
        """Start a job and return its resource meta."""

    async def get(self, task: TaskTemplate, meta: bytes, prefix: str) -> agent_pb2.Resource:
        """Poll the job."""

    async def delete(self, task: TaskTemplate, meta: bytes) -> None:
        """Stop the job."""

    async def do(
        self, task: TaskTemplate, inputs: LiteralMap, prefix: str, metadata: Any
    ) -> agent_pb2.Resource:
        """Do the task's work within the call."""


def category_of(task: TaskTemplate) -> TaskCategory:
    """Return the category under which a task's connector is found."""
    return TaskCategory(task.type, task.task_type_version)


class InProcess:
    """The daemon's dispatcher over connectors of this process, without a port.

    A connector of Flyte 2's shape is called in Flyte 2's protocol, with the connection that its
    executor reads from the template's ``custom``; the secrets come from this environment.
    """

    def __init__(self, registry: Registry | None = None, *, timeout: float | None = None) -> None:
        """Take the connectors, by default ``local_registry()``'s, and each call's time limit."""
        self._registry = local_registry() if registry is None else registry
        self._timeout = timeout
        self._errors: dict[int, BaseException] = {}
        self._invoker = Invoker()
        host = InlineHost(self._registry, self._invoker)
        self._dispatcher = Dispatcher([host], self._classify, Hooks([]))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._invoker.shutdown()

    def connector(self, task: TaskTemplate) -> ConnectorBase:
        """Return the connector of a task; raises as ``is_sync``."""
        return self._registry.resolve(category_of(task)).connector

    async def is_sync(self, task: TaskTemplate) -> bool:
        """Tell how the task's type is served.

        Raises:
            ConnectorNotFoundError: By nobody; it names what is registered.
        """
        return self._registry.resolve(category_of(task)).is_sync

    async def create(
        self, task: TaskTemplate, inputs: LiteralMap, prefix: str, metadata: Any
    ) -> bytes:
        """Start a job and return its resource meta.

        Raises:
            ConnectorFault: The connector raised what is no error of ours; it is the cause.
        """
        meta: bytes = await self._start(Operation.CREATE, task, inputs, prefix, metadata)
        return meta

    async def do(
        self, task: TaskTemplate, inputs: LiteralMap, prefix: str, metadata: Any
    ) -> agent_pb2.Resource:
        """Do the task's work; raises as ``create``."""
        done = await self._start(Operation.DO, task, inputs, prefix, metadata)
        return reread(done, agent_pb2.Resource)

    async def get(self, task: TaskTemplate, meta: bytes, prefix: str) -> agent_pb2.Resource:
        """Poll the job; raises as ``create``."""
        resource = await self._ask(Operation.GET, task, resource_meta=meta, output_prefix=prefix)
        return reread(resource, agent_pb2.Resource)

    async def delete(self, task: TaskTemplate, meta: bytes) -> None:
        """Stop the job; raises as ``create``."""
        await self._ask(Operation.DELETE, task, resource_meta=meta)

    async def _start(
        self, operation: Operation, task: TaskTemplate, inputs: LiteralMap, prefix: str, meta: Any
    ) -> Any:
        messages = MESSAGES[self._protocol(task)]
        return await self._ask(
            operation,
            task,
            template=reread(task, messages.task_template),
            inputs=reread(inputs, messages.inputs),
            output_prefix=prefix,
            task_execution_metadata=reread(meta, messages.task_execution_metadata),
        )

    async def _ask(self, operation: Operation, task: TaskTemplate, **fields: Any) -> Any:
        protocol = self._protocol(task)
        # Both protocols name their requests alike; what `do` reads, CreateTaskRequest has.
        name = {Operation.GET: "GetTaskRequest", Operation.DELETE: "DeleteTaskRequest"}.get(
            operation, "CreateTaskRequest"
        )
        if protocol is FlyteProtocol.FLYTE2:
            fields["connection"] = _connection(task)
        message = getattr(_REQUESTS[protocol], name)(**fields)
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        call = Call(protocol, operation, category_of(task), message, deadline=deadline)
        try:
            outcome = await self._dispatcher.dispatch(call)
            if outcome.status is not None:
                raise _error(call, outcome.status, self._errors.get(id(call)))
            return outcome.value
        finally:
            self._errors.pop(id(call), None)

    def _protocol(self, task: TaskTemplate) -> FlyteProtocol:
        return self._registry.resolve(category_of(task)).shape

    def _classify(self, error: BaseException, call: Call) -> Status:
        """Keep the exception: who runs a connector locally wants to see it."""
        self._errors[id(call)] = error
        return classify(error, call)


class Remote:
    """A running service, of this release or of any other kind that speaks the protocol."""

    def __init__(self, endpoint: str, connect: Callable[[str], Client] = Client) -> None:
        """Take where it is, and how to connect: a client belongs to the loop it is made in."""
        self._connect = functools.partial(connect, endpoint)
        self._client: Any = None

    async def __aenter__(self) -> Self:
        self._client = self._connect()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._client.close()

    async def is_sync(self, task: TaskTemplate) -> bool:
        """Tell how the task's type is served.

        Raises:
            ConnectorNotFoundError: By nobody there; it names what is.
            grpc.aio.AioRpcError: The call was refused, as any other.
        """
        offered: dict[TaskCategory, bool] = {
            TaskCategory(category.name, category.version): agent.is_sync
            for agent in await self._client.list_agents()
            for category in agent.supported_task_categories
        }
        category = category_of(task)
        if category not in offered:
            raise ConnectorNotFoundError(
                f"task type {category.spoken}", (known.listed for known in offered)
            )
        return offered[category]

    async def create(
        self, task: TaskTemplate, inputs: LiteralMap, prefix: str, metadata: Any
    ) -> bytes:
        """Start a job and return its resource meta."""
        meta: bytes = await self._client.create(
            task, inputs, output_prefix=prefix, task_execution_metadata=metadata
        )
        return meta

    async def do(
        self, task: TaskTemplate, inputs: LiteralMap, prefix: str, metadata: Any
    ) -> agent_pb2.Resource:
        """Do the task's work within the call."""
        done: agent_pb2.Resource = await self._client.do(
            task, inputs, output_prefix=prefix, task_execution_metadata=metadata
        )
        return done

    async def get(self, task: TaskTemplate, meta: bytes, prefix: str) -> agent_pb2.Resource:
        """Poll the job."""
        resource: agent_pb2.Resource = await self._client.get(
            category_of(task), meta, output_prefix=prefix
        )
        return resource

    async def delete(self, task: TaskTemplate, meta: bytes) -> None:
        """Stop the job."""
        await self._client.delete(category_of(task), meta)


_preparing = threading.Lock()
_configured: dict[int, ConnectorBase] = {}  # kept, so that no other object gets the number


def local_registry() -> Registry:
    """Return what a local job can be run by: the installed plugins, then whatever is registered.

    Plugins are loaded once a process, by the settings that the service would start with in this
    environment and folder. A connector registered by hand wins over a plugin's.

    Raises:
        OperatorError: The settings are wrong, or a connector refused its options.
    """
    with _preparing:
        registry = Registry()
        registry.update(list(_installed()))
        for agent in ConnectorRegistry.list_connectors():
            for category in agent.supported_task_categories:
                connector = ConnectorRegistry.get_connector(category.name, category.version)
                registry.register(connector, override=True)
        _configure(registry)
        return registry


@functools.cache
def _installed() -> Registry:
    registry = Registry()
    _, idle = load_plugins(_settings(), registry)
    refuse_idle(idle)
    return registry


def _settings() -> settings.Config:
    return settings.load(environ=os.environ)


def _configure(registry: Registry) -> None:
    """Give connectors their options before their first call, once each, as the service does."""
    fresh = Registry()
    fresh.update([one for one in registry if id(one.connector) not in _configured])
    if not len(fresh):
        return
    chosen = _settings()
    names = {registration.category.name for registration in fresh}
    sections = {name: options for name, options in chosen.connectors.items() if name in names}
    configure(msgspec.structs.replace(chosen, connectors=sections), fresh)
    _configured.update({id(one.connector): one.connector for one in fresh})


def _connection(task: TaskTemplate) -> Connection:
    """Read the connection as Flyte 2's executor does: custom names the secrets, we look them up."""
    custom = json_format.MessageToDict(task.custom)
    wanted: dict[str, Any] = {key: custom[key] for key in ("secrets", "configs") if key in custom}
    try:
        connection = json_format.ParseDict(wanted, Connection(task_type=task.type))
    except json_format.ParseError as error:
        raise InvalidInputError(f"The template's custom holds no connection: {error}.") from None
    for name, key in connection.secrets.items():
        connection.secrets[name] = get_connector_secret(key)
    return connection


def _error(call: Call, status: Status, error: BaseException | None) -> BaseException:
    """Return what to raise for a refused call: errors that speak as they are, others wrapped."""
    if isinstance(error, ConnectorServiceError) and not isinstance(error, ConnectorFault):
        return error
    cause = (error.__cause__ or error) if isinstance(error, ConnectorFault) else error
    if cause is None:
        return ConnectorFault(status.details)
    what = traceback.format_exception_only(cause)[-1].strip()
    frames = traceback.extract_tb(cause.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    category = call.category.spoken if call.category else "none"
    fault = ConnectorFault(f"{call.operation} of task type {category} raised {redact(what)}{where}")
    fault.__cause__ = cause
    return fault
