"""What a method takes, read from a call of either protocol, and what it returned, written back.

Where the connector's shape and the call's protocol agree, nothing is re-read.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from connector_service.codec.convert import MESSAGES, FlyteProtocol, read, reread, variables
from connector_service.codec.literals import from_literal_map
from connector_service.errors import (
    AuthorError,
    ConnectorServiceError,
    InvalidInputError,
    InvalidMetaError,
    InvalidRequestError,
)
from connector_service.sdk.method import ARGUMENTS, Method, Operation
from connector_service.sdk.resource import Resource
from connector_service.sdk.secrets import mask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from connector_service.runtime.call import Call
    from connector_service.sdk.registry import Registration

__all__ = ["read_arguments", "write_item", "write_value"]


def read_arguments(method: Method, call: Call, registration: Registration) -> dict[str, Any]:
    """Read what ``method`` takes.

    Raises:
        InvalidRequestError: The resource meta, the inputs or the connection do not fit.
    """
    arguments = {name: _READERS[name](call, registration) for name in method.takes}
    connection = getattr(call.message, "connection", None)
    if connection is not None or method.demands:
        arguments.update(_connection(method, connection, registration))
    return arguments


def write_value(registration: Registration, value: Any, call: Call) -> Any:
    """Write what a method returned: bytes for create, a message of the call's protocol, nothing.

    Raises:
        AuthorError: It is not what the operation returns.
    """
    return _WRITERS[call.operation](registration, value, call)


def write_item(registration: Registration, item: Any, call: Call) -> Message:
    """Write one message of a log; raises as ``write_value``."""
    return _message(MESSAGES[call.protocol].logs, registration, item, call)


# --- reading -----------------------------------------------------------------------------------


def _inputs(call: Call, registration: Registration) -> Any:
    kind = MESSAGES[registration.shape].inputs
    if call.inputs_data is not None:
        try:
            inputs: Any = read(call.inputs_data, kind)
        except DecodeError:
            raise InvalidRequestError(f"The inputs of {call.operation} are damaged.") from None
    else:
        inputs = reread(call.message.inputs if call.inputs is None else call.inputs, kind)
    if registration.shape is FlyteProtocol.FLYTE1:
        return inputs
    return from_literal_map(inputs, variables(call.message.template.interface.inputs))


def _meta(call: Call, registration: Registration) -> Any:
    connector: Any = registration.connector
    try:
        return connector.metadata_type.decode(call.message.resource_meta)
    except ConnectorServiceError:
        raise
    except Exception as error:
        # An author's own decode() may raise anything; the bytes came from the caller.
        raise InvalidMetaError(
            f"The resource meta is not one of {connector.name}'s: {type(error).__name__}."
        ) from error


def _time(message: Any, field: str) -> Any:
    return getattr(message, field).ToDatetime(tzinfo=UTC) if message.HasField(field) else None


_READERS: Mapping[str, Callable[[Call, Registration], Any]] = {
    "task_template": lambda call, registration: reread(
        call.message.template, MESSAGES[registration.shape].task_template
    ),
    "inputs": _inputs,
    "output_prefix": lambda call, _: call.message.output_prefix,
    "idempotency_key": lambda call, _: call.idempotency_key,
    "task_execution_metadata": lambda call, registration: reread(
        call.message.task_execution_metadata,
        MESSAGES[registration.shape].task_execution_metadata,
    ),
    "resource_meta": _meta,
    "queries": lambda call, _: list(call.message.queries),
    "start_time": lambda call, _: _time(call.message, "start_time"),
    "end_time": lambda call, _: _time(call.message, "end_time"),
    "step": lambda call, _: (
        call.message.step.ToTimedelta() if call.message.HasField("step") else None
    ),
    "lines": lambda call, _: call.message.lines,
    "token": lambda call, _: call.message.token,
}


def _connection(method: Method, connection: Any, registration: Registration) -> dict[str, str]:
    """Read a task's connection as keyword arguments; a secret wins over a config of its name."""
    given: dict[str, str] = {}
    if connection is not None:
        given = {**connection.configs, **connection.secrets}
        for value in connection.secrets.values():
            mask(value)
    name, operation = registration.connector.name, method.operation
    if taken := sorted(given.keys() & set(ARGUMENTS[operation])):
        raise InvalidRequestError(
            f"The task's connection has the key {taken[0]!r}, which is a parameter of"
            f" {operation} itself; rename it in custom.secrets or custom.configs."
        )
    if missing := sorted(set(method.demands) - given.keys()):
        raise InvalidRequestError(
            f"{name}.{operation} needs {', '.join(missing)} from the task's connection; set it in"
            f" custom.secrets or custom.configs."
        )
    if method.takes_any:
        return given
    return {key: value for key, value in given.items() if key in method.named}


# --- writing -----------------------------------------------------------------------------------


def _write_meta(registration: Registration, value: Any, call: Call) -> bytes:
    encode = getattr(value, "encode", None)
    data = encode() if callable(encode) and not isinstance(value, str) else value
    if isinstance(data, bytes):
        return data
    raise _unexpected("ResourceMeta", registration, value, call)


def _write_resource(registration: Registration, value: Any, call: Call) -> Message:
    if not isinstance(value, Resource):
        return _message(MESSAGES[call.protocol].resource, registration, value, call)
    starts = call.operation is Operation.DO
    declared = variables(call.message.template.interface.outputs) if starts else None
    try:
        message: Message = value.to_message(call.protocol, declared)
        return message
    except InvalidInputError as error:
        # The connector's own value, not the caller's: its author must hear of it.
        raise AuthorError(f"{registration.connector.name}: {error}") from error


def _write_metrics(registration: Registration, value: Any, call: Call) -> Message:
    kind = MESSAGES[call.protocol].metrics
    return kind() if value is None else _message(kind, registration, value, call)


def _message(kind: type[Message], registration: Registration, value: Any, call: Call) -> Message:
    """Return a connector's message in the call's protocol; both name their messages alike."""
    if isinstance(value, Message) and type(value).DESCRIPTOR.name == kind.DESCRIPTOR.name:
        return reread(value, kind)
    raise _unexpected(kind.DESCRIPTOR.name, registration, value, call)


def _unexpected(wanted: str, registration: Registration, value: Any, call: Call) -> AuthorError:
    got = type(value).DESCRIPTOR.name if isinstance(value, Message) else type(value).__qualname__
    return AuthorError(
        f"{registration.connector.name}.{call.operation} returned {got}, not a {wanted}."
    )


_WRITERS: Mapping[Operation, Callable[[Registration, Any, Call], Any]] = {
    Operation.CREATE: _write_meta,
    Operation.GET: _write_resource,
    Operation.DELETE: lambda _registration, _value, _call: None,
    Operation.GET_METRICS: _write_metrics,
    Operation.DO: _write_resource,
}
