"""What a method takes, read from a call of either protocol, and what it returned, written back.

Where the connector's shape and the call's protocol agree, nothing is re-read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from connector_service.codec.convert import MESSAGES, FlyteProtocol, read, reread, variables
from connector_service.codec.plans import Plan, Plans
from connector_service.errors import (
    AuthorError,
    ConnectorServiceError,
    InvalidInputError,
    InvalidMetaError,
    InvalidRequestError,
)
from connector_service.sdk.method import ARGUMENTS, Method, Operation
from connector_service.sdk.resource import Resource, quick_decode
from connector_service.sdk.secrets import mask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connector_service.runtime.batch import Batches
    from connector_service.runtime.call import Call
    from connector_service.runtime.route import Runner
    from connector_service.sdk.registry import Registration

__all__ = ["Crossing", "Values"]

_FLYTE2 = FlyteProtocol.FLYTE2
_LARGE = 64 * 1024  # bytes of inputs; they may hold thousands of literals
_COPIED = 2 * 1024 * 1024  # bytes of inputs that are copied in a millisecond
_FEW = 4096  # values
_SHORT_WAY = {Operation.GET, Operation.DELETE}  # they may bring a connection, and little else
_STARTING = {Operation.CREATE, Operation.DO}
_SHORT = 256  # characters of a message that is kept with its phase


class Crossing:
    """How calls of one operation reach one connector's method; what never changes, found once."""

    __slots__ = ("_takes", "inputs", "method", "read", "registration", "run", "together", "write")

    def __init__(self, registration: Registration, method: Method) -> None:
        """Take the connector and the method."""
        self.method = method
        self.registration = registration
        # How polls are answered many at a time, where the connector can.
        self.together: tuple[Crossing, Batches] | None = None
        # Runs a call by it until a deadline; whoever made this says how.
        self.run: Runner
        readers = {name: _READERS[name](registration) for name in method.takes}
        self._takes = tuple(readers.items())
        # What reads the inputs, where the method takes them as Python values.
        inputs = readers.get("inputs")
        self.inputs = inputs if isinstance(inputs, Values) else None
        # Reads what the method takes from a call. Raises InvalidRequestError where the resource
        # meta, the inputs or the connection do not fit.
        self.read: Callable[[Call], Mapping[str, Any]] = self._read
        if (
            method.operation in _SHORT_WAY
            and "resource_meta" in method.takes
            and not method.demands
        ):
            self.read = _poll(registration, method, self._read)
        elif method.operation in _STARTING and not method.demands:
            self.read = _start(registration, method, inputs, self._read)
        # Writes what the method returned to a call: bytes for create, nothing for delete, else a
        # message. Raises AuthorError where that is not what the operation returns.
        self.write: Callable[[Any, Call], Any] = functools.partial(
            _WRITERS.get(method.operation, _write_nothing), registration
        )

    def _read(self, call: Call) -> dict[str, Any]:
        arguments = {}
        for name, reader in self._takes:
            arguments[name] = reader(call)
        return self._connected(arguments, call)

    def read_others(self, inputs: Any, call: Call) -> dict[str, Any]:
        """Read what the method takes beside inputs that are known already; raises as ``read``."""
        arguments = {
            name: inputs if name == "inputs" else reader(call) for name, reader in self._takes
        }
        return self._connected(arguments, call)

    def _connected(self, arguments: dict[str, Any], call: Call) -> dict[str, Any]:
        method = self.method
        if call.protocol == _FLYTE2 or method.demands:
            connection = getattr(call.message, "connection", None)
            if connection is not None or method.demands:
                arguments.update(_connection(method, connection, self.registration))
        return arguments

    def write_item(self, item: Any, call: Call) -> Message:
        """Write one message of a log; raises as ``write``."""
        return _message(MESSAGES[call.protocol].logs, self.registration, item, call)


# --- reading -----------------------------------------------------------------------------------


_Reader = Callable[["Call"], Any]


class Values:
    """Reads inputs as Python values; large ones on any thread, where that takes long."""

    def __init__(self) -> None:
        self._plans = Plans()

    def __call__(self, call: Call) -> dict[str, Any]:
        """Read them."""
        plan = self._find(call)
        values = plan.read(_encoded(call))
        return plan.decode(_parse(call, _FLYTE2)) if values is None else values

    def are_large(self, call: Call) -> bool:
        """Tell whether they may take long to read."""
        return call.inputs_data is not None and len(call.inputs_data) >= _LARGE

    def try_quickly(self, call: Call) -> dict[str, Any] | None:
        """Read large ones if that takes a millisecond or so; else return None."""
        declared, data = call.message.template.interface.inputs, _encoded(call)
        if len(data) > _COPIED or len(declared.variables) > _FEW:
            return None
        return self._find(call).read(data, _FEW)

    def _find(self, call: Call) -> Plan:
        return self._plans.find(call.message.template.interface.inputs, call.template_data)


def _encoded(call: Call) -> bytes | memoryview:
    if call.inputs_data is not None:
        return call.inputs_data
    message: Message = call.message.inputs if call.inputs is None else call.inputs
    return message.SerializeToString()


def _inputs(registration: Registration) -> _Reader:
    shape = registration.shape
    return Values() if shape is _FLYTE2 else lambda call: _parse(call, shape)


def _parse(call: Call, shape: FlyteProtocol) -> Any:
    kind = MESSAGES[shape].inputs
    if call.inputs_data is None:
        return reread(call.message.inputs if call.inputs is None else call.inputs, kind)
    try:
        # What is unknown matters where it would be seen, and is the other protocol's.
        unknown = shape not in (_FLYTE2, call.protocol)
        return read(call.inputs_data, kind, discard=unknown)
    except DecodeError:
        raise InvalidRequestError(f"The inputs of {call.operation} are damaged.") from None


def _meta(registration: Registration) -> _Reader:
    connector: Any = registration.connector
    decode = connector.metadata_type.decode

    def meta(call: Call) -> Any:
        try:
            return decode(call.message.resource_meta)
        except ConnectorServiceError:
            raise
        except Exception as error:
            # An author's own decode() may raise anything; the bytes came from the caller.
            raise InvalidMetaError(
                f"The resource meta is not one of {connector.name}'s: {type(error).__name__}."
            ) from error

    return meta


def _poll(
    registration: Registration, method: Method, read_all: Callable[[Call], Mapping[str, Any]]
) -> Callable[[Call], Mapping[str, Any]]:
    """Read what polls and deletes take; what is unusual goes the long way."""
    connector: Any = registration.connector
    decode = quick_decode(connector.metadata_type)

    prefixed = "output_prefix" in method.takes

    def read_poll(call: Call) -> Mapping[str, Any]:
        message = call.message
        if call.protocol == _FLYTE2 and message.HasField("connection"):
            return read_all(call)
        try:
            meta = decode(message.resource_meta)
        except Exception:  # noqa: BLE001 - the long way says what is wrong
            return read_all(call)
        if prefixed:
            return {"resource_meta": meta, "output_prefix": message.output_prefix}
        return {"resource_meta": meta}

    return read_poll


def _start(
    registration: Registration,
    method: Method,
    inputs: _Reader | None,
    read_all: Callable[[Call], Mapping[str, Any]],
) -> Callable[[Call], Mapping[str, Any]]:
    """Read what starts a job in the connector's protocol; what is unusual goes the long way."""
    shape = registration.shape
    template, prefix, _, metadata, key = (
        name in method.takes for name in ARGUMENTS[Operation.CREATE]
    )

    def read_start(call: Call) -> Mapping[str, Any]:
        message = call.message
        if call.protocol != shape or (shape is _FLYTE2 and message.HasField("connection")):
            return read_all(call)
        arguments: dict[str, Any] = {}
        if template:
            arguments["task_template"] = message.template
        if prefix:
            arguments["output_prefix"] = message.output_prefix
        if inputs is not None:
            arguments["inputs"] = inputs(call)
        if metadata:
            arguments["task_execution_metadata"] = message.task_execution_metadata
        if key:
            arguments["idempotency_key"] = call.idempotency_key
        return arguments

    return read_start


def _reread(field: str) -> Callable[[Registration], _Reader]:
    """Read a message of the request in the connector's shape, of a class of the same name."""

    def shaped(registration: Registration) -> _Reader:
        kind: type[Message] = getattr(MESSAGES[registration.shape], field)
        place = {"task_template": "template"}.get(field, field)
        return lambda call: reread(getattr(call.message, place), kind)

    return shaped


def _as(reader: _Reader) -> Callable[[Registration], _Reader]:
    return lambda _registration: reader


def _time(message: Any, field: str) -> Any:
    return getattr(message, field).ToDatetime(tzinfo=UTC) if message.HasField(field) else None


# Argument -> what makes its reader for one connector.
_READERS: Mapping[str, Callable[[Registration], _Reader]] = {
    "task_template": _reread("task_template"),
    "inputs": _inputs,
    "output_prefix": _as(lambda call: call.message.output_prefix),
    "idempotency_key": _as(lambda call: call.idempotency_key),
    "task_execution_metadata": _reread("task_execution_metadata"),
    "resource_meta": _meta,
    "resource_metas": _meta,  # each call brings one
    "queries": _as(lambda call: list(call.message.queries)),
    "start_time": _as(lambda call: _time(call.message, "start_time")),
    "end_time": _as(lambda call: _time(call.message, "end_time")),
    "step": _as(
        lambda call: call.message.step.ToTimedelta() if call.message.HasField("step") else None
    ),
    "lines": _as(lambda call: call.message.lines),
    "token": _as(lambda call: call.message.token),
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
    if (
        type(value) is Resource
        and value.outputs is None
        and not value.log_links
        and not value.custom_info
        and len(text := value.message or "") <= _SHORT
    ):
        return _bare(call.protocol, value.phase, text)
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


@functools.lru_cache(1024)
def _bare(protocol: str, phase: Any, message: str) -> Message:
    """Make a resource that is a phase and a text; the same message for the same, never changed."""
    return MESSAGES[protocol].resource(phase=phase, message=message)


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


def _write_nothing(_registration: Registration, _value: Any, _call: Call) -> None:
    return None


_Writer = Callable[["Registration", Any, "Call"], Any]
_WRITERS: Mapping[Operation, _Writer] = {
    Operation.CREATE: _write_meta,
    Operation.GET: _write_resource,
    Operation.GET_METRICS: _write_metrics,
    Operation.DO: _write_resource,
}
