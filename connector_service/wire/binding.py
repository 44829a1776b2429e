"""Puts a servicer's methods on a server, and reads what comes for them."""

from __future__ import annotations

import functools
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from connector_service.codec.convert import begin_field, leading, split
from connector_service.wire.memory import LARGE, give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from google.protobuf.descriptor import Descriptor, MethodDescriptor

__all__ = ["Methods", "take_apart"]

_log = logging.getLogger(__name__)

_Data = bytes | memoryview

# Where large requests keep what most of their bytes are.
_INPUTS = {"flyteidl.admin.CreateTaskRequest": 1, "flyteidl2.connector.CreateTaskRequest": 1}
_TEMPLATE = 2  # likewise
_WIDE = 16 * 1024  # bytes of a request without its inputs; most is an interface of many variables
_NOTHING = None, None
_apart: ContextVar[tuple[_Data | None, _Data | None]] = ContextVar("apart", default=_NOTHING)


class Methods(grpc.GenericRpcHandler):
    """Every method of a server, found in one step by its path; grpc asks handler after handler.

    One accept queue for all: registered handlers have one each, and then grpc waits anew for all
    of them at every call, which costs each call more than a queue of its own ever saved; releases
    before 1.80 do not serve them at all. What held up such a queue, a connector that blocks the
    event loop, is moved to a loop of its own by the watchdog.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.latest = 0
        """Bytes of the last request that was read."""

    def add(self, service: Any, servicer: object) -> None:
        """Serve ``service``, as its descriptor has it, with ``servicer``'s methods of those names.

        The descriptor's class depends on protobuf's implementation.
        """
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            self._handlers[path] = self._handler(method, getattr(servicer, method.name))

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return what answers a call; None is UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)

    def _handler(self, method: MethodDescriptor, function: Any) -> grpc.RpcMethodHandler[Any, Any]:
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        return make(
            _Answer(function),
            request_deserializer=self._reader(method.input_type),
            response_serializer=_writer(method.output_type),
        )

    def _reader(self, kind: Descriptor) -> Callable[[bytes], Any]:
        """Read requests; bytes that are none become an empty one, which the wire refuses.

        An exception here is answered by grpc itself: UNKNOWN with its text, a traceback in the log
        a request, and no record of the call.
        """
        message: Any = GetMessageClass(kind)
        number = _INPUTS.get(kind.full_name)

        def read(data: bytes) -> Any:
            size = self.latest = len(data)
            if size >= LARGE:
                give_back()
            try:
                if number is None:
                    return message.FromString(data)
                rest, inputs = leading(data, number) or split(data, number)
                request = message.FromString(rest)
                if request.HasField("inputs"):  # they came in parts
                    rest, inputs = split(data, number)
                    request = message.FromString(rest)
                _apart.set((inputs, _template(rest) if len(rest) >= _WIDE else None))
                return request
            except DecodeError:
                _log.warning("request is not decodable", extra={"message_type": kind.full_name})
                return message()

        return read


def take_apart() -> tuple[_Data | None, _Data | None]:
    """Return what is still encoded of the request that this task has just read; once.

    That is the inputs, and of a large template itself, which has been read too. They are views of
    the request's bytes, which grpc keeps until the call ends: decoding only one message of them is
    all the memory they cost. Taken, they are forgotten here: a task that a connector starts
    inherits our context, and would keep them for its whole life.
    """
    apart = _apart.get()
    if apart is not _NOTHING:
        _apart.set(_NOTHING)
    return apart


def _template(request: _Data) -> _Data | None:
    """Return the bytes of a request's template, where they come first and in one part."""
    found = leading(request, _TEMPLATE)
    if found is None:
        return None
    others, template = found
    _, more = split(others, _TEMPLATE)
    return None if more else template


class _Answer(functools.partial[Any]):
    """A servicer's method, which grpc asks at every call whether it is to be awaited.

    The first of its questions is whether it has ``__await__``; without it there are six more.
    """

    def __await__(self) -> Iterator[Any]:
        """Be awaited by nobody: it is called, and what it returns is awaited."""
        raise TypeError("Call it and await what it returns.")


def _writer(kind: Descriptor) -> Callable[[Any], bytes]:
    """Return what writes responses of a kind, whole or only what the servicer returns of them."""
    write = _WRITERS.get(kind.full_name)
    return cast("Callable[[Any], bytes]", write or GetMessageClass(kind).SerializeToString)


def _write_bytes(value: bytes) -> bytes:
    """Write a response that has these bytes in field 1, and no other."""
    return begin_field(1, len(value)) + value


def _write_message(value: Any) -> bytes:
    """Write a response that has this message in field 1, without a copy of it in another."""
    data: bytes = value.SerializeToString()
    return begin_field(1, len(data)) + data


def _write_sync(resource: Any) -> bytes:
    """Write a response that has a header in field 1, which has this resource in field 1."""
    return _write_bytes(_write_message(resource))


_WRITERS: Mapping[str, Callable[[Any], bytes]] = {
    "flyteidl.admin.CreateTaskResponse": _write_bytes,
    "flyteidl2.connector.CreateTaskResponse": _write_bytes,
    "flyteidl.admin.GetTaskResponse": _write_message,
    "flyteidl2.connector.GetTaskResponse": _write_message,
    "flyteidl.admin.ExecuteTaskSyncResponse": _write_sync,
}
