"""Forwards calls over gRPC to a service that speaks one of Flyte's protocols, or both.

The bytes of a request are valid in either protocol, so a peer that takes only the other one gets
them as they are, at that protocol's method; only its reply is re-read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl2.connector import connector_pb2
from google.protobuf.message import DecodeError

from connector_service.codec.convert import FlyteProtocol, begin_field, read
from connector_service.errors import DeadlineError
from connector_service.hosts.statuses import (
    CHILD,
    PeerError,
    lost,
    read_refusal,
    was_cancelled,
)
from connector_service.sdk.method import Operation
from connector_service.sdk.secrets import mask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from google.protobuf.message import Message

    from connector_service.hosts.statuses import Reading
    from connector_service.runtime.call import Call
    from connector_service.sdk.resource import TaskCategory

__all__ = ["IDEMPOTENCY_KEY", "Forwarder"]

# Metadata of a create; the same whenever the client repeats it.
IDEMPOTENCY_KEY = "connector-idempotency-key"

_SERVICES = {
    FlyteProtocol.FLYTE1: "flyteidl.service.AsyncAgentService",
    FlyteProtocol.FLYTE2: "flyteidl2.connector.AsyncConnectorService",
}
_OTHER = {
    FlyteProtocol.FLYTE1: FlyteProtocol.FLYTE2,
    FlyteProtocol.FLYTE2: FlyteProtocol.FLYTE1,
}
_UNARY = {
    Operation.CREATE: "CreateTask",
    Operation.GET: "GetTask",
    Operation.DELETE: "DeleteTask",
    Operation.GET_METRICS: "GetTaskMetrics",
}
_LOGS = "GetTaskLogs"
_SYNC = "/flyteidl.service.SyncAgentService/ExecuteTaskSync"
_RESPONSES: Mapping[tuple[str, Operation], type[Message]] = {
    (protocol, operation): getattr(messages, f"{name}Response")
    for protocol, messages in (
        (FlyteProtocol.FLYTE1, agent_pb2),
        (FlyteProtocol.FLYTE2, connector_pb2),
    )
    for operation, name in (*_UNARY.items(), (Operation.GET_LOGS, _LOGS))
}
# The numbers of fields that we write ourselves.
_INPUTS = 1  # of CreateTaskRequest
_TEMPLATE, _OUTPUT_PREFIX, _EXECUTION, _CONNECTION = 1, 2, 3, 5  # of CreateRequestHeader
_SYNC_HEADER, _SYNC_INPUTS = 1, 2  # of ExecuteTaskSyncRequest
_TO_END = 1.0  # seconds that a peer gets to end ExecuteTaskSync after its answer


class Forwarder:
    """Runs calls at the peer of one channel; it has no state but the channel's.

    ``protocols_of`` tells which of the protocols the peer takes for a task category. ``readings``
    are what its statuses mean: ``statuses.CHILD`` or ``statuses.REMOTE``.

    No call waits for a channel that is down: it fails at once as ``TransientError``, and the
    policies try again within the deadline. gRPC's own wait would begin a create after its caller
    had gone, and keep a bulkhead full of polls that nobody needs.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        name: str,
        protocols_of: Callable[[TaskCategory], Collection[str]],
        metadata: Sequence[tuple[str, str | bytes]] = (),
        readings: Mapping[grpc.StatusCode, Reading] = CHILD,
    ) -> None:
        """Take the channel, the host's name for people, and what every call carries."""
        self._name = name
        self._protocols_of = protocols_of
        self._given = tuple(metadata)
        self._metadata = grpc.aio.Metadata(*self._given)
        self._readings = readings
        # Without serializers: bytes in, bytes out. Made once, for each costs as much as a call.
        self._unary: dict[tuple[str, Operation], Any] = {
            (protocol, operation): channel.unary_unary(f"/{service}/{method}")
            for protocol, service in _SERVICES.items()
            for operation, method in _UNARY.items()
        }
        self._logs: dict[str, Any] = {
            protocol: channel.unary_stream(f"/{service}/{_LOGS}")
            for protocol, service in _SERVICES.items()
        }
        self._sync: Any = channel.stream_stream(_SYNC)

    async def run(self, call: Call) -> Any:
        """Run one operation: create gives bytes, get and do a Resource message, delete nothing.

        Raises:
            Exception: What the connector raised, as a child described it; else what the status
                means. ``CancelledError`` only when the caller left.
        """
        if call.operation is Operation.DO:
            return await self._do(call)
        spoken = self._spoken(call)
        data = await self._ask(call, self._unary[spoken, call.operation], _request(call))
        response = self._response(call, spoken, data)
        if call.operation is Operation.CREATE:
            return response.resource_meta
        if call.operation is Operation.GET:
            return self._resource(call, response)
        return None if call.operation is Operation.DELETE else response

    async def stream(self, call: Call, send: Callable[[Any], Awaitable[None]]) -> None:
        """Send every message of a log as it comes: the next is read when this one is sent."""
        spoken = self._spoken(call)
        stream: Any = None
        try:
            stream = self._logs[spoken](
                _request(call), timeout=_left(call), metadata=self._metadata
            )
            while True:
                try:
                    data = await stream.read()
                except (grpc.RpcError, grpc.aio.BaseError, asyncio.CancelledError) as error:
                    raise self._meaning(call, error) from None
                if data is grpc.aio.EOF:
                    return
                await send(self._response(call, spoken, data))
        except grpc.aio.UsageError:
            raise lost(self._name) from None
        finally:
            if stream is not None:
                stream.cancel()  # of one that has ended it is nothing

    async def _do(self, call: Call) -> Any:
        """Do a sync task's work: header, inputs, half-close, and one answer back."""
        stream: Any = None
        writing: asyncio.Task[None] | None = None
        try:
            requests = _sync_requests(call)
            stream = self._sync(timeout=_left(call), metadata=self._metadata)
            # Beside the reading: under a channel that is closed a write may wait for ever.
            writing = asyncio.create_task(_write(stream, requests))
            data = await stream.read()
            if data is grpc.aio.EOF:
                raise self._broken(call, "no message")
            await _ended(stream)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.CancelledError) as error:
            raise self._meaning(call, error) from None
        finally:
            if writing is not None:
                writing.cancel()
            if stream is not None:
                stream.cancel()  # of one that has ended it is nothing
        try:
            answer = agent_pb2.ExecuteTaskSyncResponse.FromString(data)
            if answer.header.HasField("resource"):
                resource = answer.header.resource
                if call.protocol == FlyteProtocol.FLYTE1:
                    return resource
                return read(resource.SerializeToString(), connector_pb2.Resource)
        except DecodeError:
            raise self._broken(call, "bytes that are no message") from None
        raise self._broken(call, "a message without a resource")

    def _spoken(self, call: Call) -> str:
        """Choose the protocol in which the peer is asked."""
        protocol = FlyteProtocol(call.protocol)
        taken = self._protocols_of(call.category)  # type: ignore[arg-type] # the wire saw to it
        return protocol if protocol in taken or not taken else _OTHER[protocol]

    async def _ask(self, call: Call, method: Any, request: bytes) -> bytes:
        metadata = self._metadata
        if call.operation is Operation.CREATE and call.idempotency_key:
            metadata = grpc.aio.Metadata(*self._given, (IDEMPOTENCY_KEY, call.idempotency_key))
        try:
            data: bytes = await method(request, timeout=_left(call), metadata=metadata)
            return data
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.CancelledError) as error:
            raise self._meaning(call, error) from None

    def _meaning(self, call: Call, error: BaseException) -> BaseException:
        """Return what to raise in place of what gRPC raised."""
        if isinstance(error, PeerError):
            return error
        if isinstance(error, grpc.aio.AioRpcError):
            return read_refusal(self._name, call, error, self._readings)
        if isinstance(error, asyncio.CancelledError) and was_cancelled():
            return error
        return lost(self._name)  # the channel was closed, which gRPC says in several ways

    def _response(self, call: Call, spoken: str, data: bytes) -> Any:
        """Decode a reply, once, into the call's protocol.

        Fields that we do not know pass where the peer speaks that protocol, being newer than we
        are; where it speaks the other they would mean something else, and are dropped.
        """
        kind = _RESPONSES[call.protocol, call.operation]
        try:
            return kind.FromString(data) if spoken == call.protocol else read(data, kind)
        except DecodeError:
            raise self._broken(call, "bytes that are no message") from None

    def _resource(self, call: Call, response: Any) -> Any:
        if not response.HasField("resource"):
            raise self._broken(call, "a message without a resource")
        return response.resource

    def _broken(self, call: Call, what: str) -> PeerError:
        return PeerError(
            self._name, grpc.StatusCode.INTERNAL, f"{call.operation} was answered with {what}."
        )


async def _write(stream: Any, requests: Sequence[bytes]) -> None:
    """Send what the peer reads; where it ends the call before that, reading tells why.

    An iterator of requests would cancel the call then, and ``write`` would put a status of
    grpc.aio's own in place of the peer's (grpc/aio/_call.py); what it calls does neither.
    """
    wire = getattr(stream, "_cython_call", None)
    send = getattr(wire, "send_serialized_message", stream.write)
    with contextlib.suppress(grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
        await stream.wait_for_connection()
        for request in requests:
            await send(request)
        await stream.done_writing()


async def _ended(stream: Any) -> None:
    """Let the peer end its stream in its own time, for a while; the answer is here."""
    with contextlib.suppress(TimeoutError, grpc.RpcError):
        async with asyncio.timeout(_TO_END):
            await stream.read()


def _left(call: Call) -> float | None:
    """Return the seconds until the call's deadline.

    Raises:
        DeadlineError: There are none.
    """
    if call.deadline is None:
        return None
    left = call.deadline - time.monotonic()
    if left <= 0:
        raise DeadlineError("The deadline passed before the call began.")
    return left


def _request(call: Call) -> bytes:
    """Write the request as it came, its inputs back in their place."""
    _mask_secrets(call)
    rest: bytes = call.message.SerializeToString()
    if call.inputs_data is None:
        return rest
    return b"".join((begin_field(_INPUTS, len(call.inputs_data)), call.inputs_data, rest))


def _sync_requests(call: Call) -> tuple[bytes, bytes]:
    """Write the two messages of ExecuteTaskSync, also for a create that becomes one."""
    _mask_secrets(call)
    message, inputs = call.message, call.inputs_data
    if call.inputs is not None:
        header = message.SerializeToString()
    else:
        fields = [
            (_TEMPLATE, message.template.SerializeToString()),
            (_OUTPUT_PREFIX, message.output_prefix.encode()),
        ]
        if message.HasField("task_execution_metadata"):
            fields.append((_EXECUTION, message.task_execution_metadata.SerializeToString()))
        # Only Flyte 2's header has it, under this number; Flyte 1's reader passes it over.
        if hasattr(message, "connection") and message.HasField("connection"):
            fields.append((_CONNECTION, message.connection.SerializeToString()))
        header = b"".join(
            part for number, data in fields for part in (begin_field(number, len(data)), data)
        )
    if inputs is None:
        inputs = (message if call.inputs is None else call).inputs.SerializeToString()
    return (
        b"".join((begin_field(_SYNC_HEADER, len(header)), header)),
        b"".join((begin_field(_SYNC_INPUTS, len(inputs)), inputs)),
    )


def _mask_secrets(call: Call) -> None:
    """Have every log mask what the task's connection brings; only Flyte 2 has one."""
    connection = getattr(call.message, "connection", None)
    if connection is not None:
        for value in connection.secrets.values():
            mask(value)
