"""Runs connector objects that live in this process."""

from __future__ import annotations

import contextlib
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeVar

from flyteidl.admin import agent_pb2
from google.protobuf.message import Message

from connector_service.errors import (
    AuthorError,
    ConnectorServiceError,
    InvalidInputError,
    InvalidMetaError,
    UnsupportedOperationError,
    WrongKindError,
)
from connector_service.runtime.invoker import contain
from connector_service.sdk.method import Method, Operation
from connector_service.sdk.resource import Resource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from flyteidl.admin.agent_pb2 import Agent

    from connector_service.runtime.call import Call
    from connector_service.runtime.invoker import Invoker
    from connector_service.sdk.connector import AsyncConnectorBase
    from connector_service.sdk.registry import Registration, Registry
    from connector_service.sdk.resource import ResourceMeta, TaskCategory

__all__ = ["InlineHost"]

_T = TypeVar("_T")


class InlineHost:
    """Decodes what a connector's method takes, has it invoked, encodes what it returns."""

    def __init__(self, registry: Registry, invoker: Invoker) -> None:
        """Take the connectors and who runs their code."""
        self._registry = registry
        self._invoker = invoker

    def categories(self) -> Sequence[TaskCategory]:
        """List what the registry holds."""
        return [registration.category for registration in self._registry]

    def agents(self) -> Sequence[Agent]:
        """Describe the registry's connectors."""
        return self._registry.list_connectors()

    async def run(self, call: Call) -> Any:
        """Run one operation: create gives bytes, get and do a Resource message, delete nothing."""
        registration = self._registry.resolve(call.category)  # type: ignore[arg-type]
        method = _method(registration, call.operation)
        arguments = contain(_arguments, method, call, registration)
        value = await self._invoker.invoke(method, arguments, call.deadline)
        return contain(_ENCODERS[call.operation], registration, value, call)

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> None:
        """Send every message of ``get_logs`` as the connector produces it."""
        registration = self._registry.resolve(call.category)  # type: ignore[arg-type]
        method = _method(registration, call.operation)
        arguments = contain(_arguments, method, call, registration)
        # Closed here and now: a caller who left while a message was being sent left us, not it.
        async with contextlib.aclosing(
            self._invoker.iterate(method, arguments, call.deadline)
        ) as items:
            async for item in items:
                await send(_expect(agent_pb2.GetTaskLogsResponse, registration, call, item))


def _method(registration: Registration, operation: Operation) -> Method:
    method = registration.methods.get(operation)
    if method is not None:
        return method
    name, category = registration.connector.name, registration.category.spoken
    if registration.is_sync and operation is not Operation.DO:
        raise WrongKindError(
            f"{name} serves task type {category} synchronously: call ExecuteTaskSync, not"
            f" {operation}; ListAgents says is_sync for it."
        )
    if operation is Operation.DO:
        raise WrongKindError(
            f"{name} serves task type {category} asynchronously: call CreateTask and GetTask, not"
            f" ExecuteTaskSync."
        )
    raise UnsupportedOperationError(f"{name} (task type {category}) has no {operation}.")


_READERS: Mapping[str, Callable[[Call, Registration], Any]] = {
    "task_template": lambda call, _: call.message.template,
    "inputs": lambda call, _: call.message.inputs if call.inputs is None else call.inputs,
    "output_prefix": lambda call, _: call.message.output_prefix,
    "task_execution_metadata": lambda call, _: call.message.task_execution_metadata,
    "resource_meta": lambda call, registration: _decode_meta(
        registration.connector,  # type: ignore[arg-type]
        call.message.resource_meta,
    ),
    "queries": lambda call, _: list(call.message.queries),
    "start_time": lambda call, _: _time(call.message, "start_time"),
    "end_time": lambda call, _: _time(call.message, "end_time"),
    "step": lambda call, _: (
        call.message.step.ToTimedelta() if call.message.HasField("step") else None
    ),
    "lines": lambda call, _: call.message.lines,
    "token": lambda call, _: call.message.token,
}


def _arguments(method: Method, call: Call, registration: Registration) -> dict[str, Any]:
    return {name: _READERS[name](call, registration) for name in method.takes}


def _decode_meta(connector: AsyncConnectorBase, data: bytes) -> ResourceMeta:
    try:
        return connector.metadata_type.decode(data)
    except ConnectorServiceError:
        raise
    except Exception as error:
        # An author's own decode() may raise anything; the bytes came from the caller.
        raise InvalidMetaError(
            f"The resource meta is not one of {connector.name}'s: {type(error).__name__}."
        ) from error


def _time(message: Any, field: str) -> Any:
    return getattr(message, field).ToDatetime(tzinfo=UTC) if message.HasField(field) else None


def _encode_meta(registration: Registration, value: Any, call: Call) -> bytes:
    encode = getattr(value, "encode", None)
    data = encode() if callable(encode) and not isinstance(value, str) else value
    return _expect(bytes, registration, call, data)


def _encode_resource(registration: Registration, value: Any, call: Call) -> agent_pb2.Resource:
    if isinstance(value, agent_pb2.Resource):
        return value
    resource = _expect(Resource, registration, call, value)
    outputs = call.message.template.interface.outputs.variables if call.inputs is not None else None
    try:
        return resource.to_flyte_idl(outputs)
    except InvalidInputError as error:
        # The connector's own value, not the caller's: its author must hear of it.
        raise AuthorError(f"{registration.connector.name}: {error}") from error


def _encode_metrics(
    registration: Registration, value: Any, call: Call
) -> agent_pb2.GetTaskMetricsResponse:
    if value is None:
        return agent_pb2.GetTaskMetricsResponse()
    return _expect(agent_pb2.GetTaskMetricsResponse, registration, call, value)


def _expect(kind: type[_T], registration: Registration, call: Call, value: Any) -> _T:
    if isinstance(value, kind):
        return value
    wanted = kind.__name__ if kind is not bytes else "ResourceMeta"
    got = (
        type(value).__qualname__ if not isinstance(value, Message) else type(value).DESCRIPTOR.name
    )
    raise AuthorError(
        f"{registration.connector.name}.{call.operation} returned {got}, not a {wanted}."
    )


_ENCODERS: Mapping[Operation, Callable[[Registration, Any, Call], Any]] = {
    Operation.CREATE: _encode_meta,
    Operation.GET: _encode_resource,
    Operation.DELETE: lambda _registration, _value, _call: None,
    Operation.GET_METRICS: _encode_metrics,
    Operation.DO: _encode_resource,
}
