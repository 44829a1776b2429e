"""Serves Flyte's own services on the child's socket, for the parent alone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from .accepting import make_server
from .engine import Failure, Refusal
from .table import Category, Request, Served, Table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Service", "open_server"]

TOKEN = "connector-host-token"  # noqa: S105 - the metadata's name
ERROR = "connector-host-error-bin"
KEY = "connector-idempotency-key"

_PING = "connector_service.host.v1.Host"
_JOBS = {
    "CreateTask": "create",
    "GetTask": "get",
    "DeleteTask": "delete",
    "GetTaskMetrics": "get_metrics",
    "GetTaskLogs": "get_logs",
}
_JOB_SERVICES = {
    "flyteidl": "flyteidl.service.AsyncAgentService",
    "flyteidl2": "flyteidl2.connector.AsyncConnectorService",
}
_SYNC_SERVICE = "flyteidl.service.SyncAgentService"
_MARGIN = 0.25  # seconds that an answer needs to reach the parent before its deadline
_MARGIN_SHARE = 0.1  # of a short deadline
# The parent limits sizes and watches over us; nothing is to be limited twice.
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)


class Service:
    """Answers the parent's calls: finds the connector, runs its operation, tells what it raised."""

    def __init__(self, table: Table, token: str) -> None:
        """Take what is served and what every call must show."""
        self._table = table
        self._token = token.encode()
        self._running = 0
        self._total = 0
        self.latest = 0  # bytes of the last request that was read

    def bind(self, server: Any) -> None:
        """Put the services on ``server``."""
        services: dict[str, dict[str, Any]] = {
            _PING: {"Ping": grpc.unary_unary_rpc_method_handler(self._guarded(self._ping))}
        }
        for protocol in self._table.messages:
            services[_JOB_SERVICES[protocol]] = {
                rpc: self._job_handler(protocol, rpc, operation) for rpc, operation in _JOBS.items()
            }
        if "flyteidl" in self._table.messages:
            services[_SYNC_SERVICE] = {
                "ExecuteTaskSync": grpc.stream_stream_rpc_method_handler(
                    self._guarded(self._execute)
                )
            }
        for name, handlers in services.items():
            # Not as registered methods: some releases of grpcio (1.76) take those and then answer
            # UNIMPLEMENTED, and the release is the plugins' choice.
            generic = grpc.method_handlers_generic_handler(name, handlers)
            server.add_generic_rpc_handlers((generic,))

    def _job_handler(self, protocol: str, rpc: str, operation: str) -> Any:
        kind: Any = getattr(self._table.messages[protocol], f"{rpc}Request")
        answer = functools.partial(self._answer, protocol, operation, kind)
        if operation == "get_logs":
            return grpc.unary_stream_rpc_method_handler(self._guarded(answer))
        return grpc.unary_unary_rpc_method_handler(self._guarded(answer))

    def _guarded(
        self, answer: Callable[[Any, Any], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        """Refuse strangers, and turn what a call ended with into its status."""

        async def handle(data: Any, context: Any) -> Any:
            if not self._admits(context):
                await context.abort(
                    grpc.StatusCode.UNAUTHENTICATED, "Only the parent may call this process."
                )
            try:
                return await answer(data, context)
            except Refusal as refusal:
                code, details = refusal.code, refusal.details
                metadata: tuple[tuple[str, bytes], ...] = ()
            except Failure as failure:
                code, details = "UNKNOWN", failure.name
                metadata = ((ERROR, failure.facts),)
            await context.abort(grpc.StatusCode[code], details[:1_000], metadata)
            return None

        return handle

    def _admits(self, context: Any) -> bool:
        for name, value in context.invocation_metadata() or ():
            if name == TOKEN:
                given = value if isinstance(value, bytes) else value.encode()
                return hmac.compare_digest(given, self._token)
        return False

    async def _answer(
        self, protocol: str, operation: str, kind: Any, data: bytes, context: Any
    ) -> Any:
        message = self._decoded(kind, data)
        if operation == "create":
            category = (message.template.type, message.template.task_type_version)
        else:
            category = (message.task_category.name, message.task_category.version)
            if not category[0]:
                category = (getattr(message, "task_type", ""), 0)  # Flyte 1's older field
        served, work = self._find(protocol, category, operation)
        request = Request(
            protocol,
            message,
            deadline=_deadline(context),
            key=_metadata(context, KEY) if operation == "create" else "",
            send=_sender(context) if operation == "get_logs" else None,
        )
        with self._counted():
            return await served.lane.run(lambda: work(request))

    async def _execute(self, _requests: object, context: Any) -> None:
        """Read header, inputs, half-close; answer with one message."""
        kind: Any = self._table.messages["flyteidl"].ExecuteTaskSyncRequest
        parts = []
        for expected in ("header", "inputs"):
            data = await context.read()
            part = kind() if data is grpc.aio.EOF else self._decoded(kind, data)
            if part.WhichOneof("part") != expected:
                raise Refusal("INVALID_ARGUMENT", f"ExecuteTaskSync lacks its {expected}.")
            parts.append(getattr(part, expected))
        if await context.read() is not grpc.aio.EOF:
            raise Refusal("INVALID_ARGUMENT", "ExecuteTaskSync goes on after its inputs.")
        template = parts[0].template
        category = (template.type, template.task_type_version)
        served, work = self._find("flyteidl", category, "do")
        request = Request("flyteidl", parts[0], parts[1], deadline=_deadline(context))
        with self._counted():
            answer = await served.lane.run(lambda: work(request))
        await context.write(answer)

    def _decoded(self, kind: Any, data: bytes) -> Any:
        self.latest = len(data)
        try:
            return kind.FromString(data)
        except DecodeError:
            raise Refusal("INVALID_ARGUMENT", f"This is no {kind.DESCRIPTOR.full_name}.") from None

    def _find(self, protocol: str, category: Category, operation: str) -> tuple[Served, Any]:
        served = self._table.by_protocol.get(protocol, {}).get(category)
        spoken = f"{category[0]!r} version {category[1]}"
        if served is None:
            raise Refusal("NOT_FOUND", f"This host has no connector for task type {spoken}.")
        work = served.works.get(operation)
        if work is not None:
            return served, work
        if served.is_sync != (operation == "do"):
            kind = "synchronously" if served.is_sync else "asynchronously"
            raise Refusal("FAILED_PRECONDITION", f"{served.name} serves task type {spoken} {kind}.")
        raise Refusal("UNIMPLEMENTED", f"{served.name} (task type {spoken}) has no {operation}.")

    async def _ping(self, _data: bytes, _context: Any) -> bytes:
        state = {
            "calls": self._running,
            "total": self._total,
            "rss": _resident(),
            "threads": threading.active_count(),
        }
        return json.dumps(state).encode()

    @contextlib.contextmanager
    def _counted(self) -> Any:
        self._running += 1
        self._total += 1
        try:
            yield
        finally:
            self._running -= 1


async def open_server(service: Service, socket: str) -> Any:
    """Start to serve on the unix socket at ``socket``, which only this user may use.

    Raises:
        RuntimeError, OSError: The socket cannot be made.
    """
    server = make_server(_OPTIONS, service)
    service.bind(server)
    previous = os.umask(0o177)
    try:
        if not server.add_insecure_port(f"unix:{socket}"):
            raise RuntimeError("the address cannot be used")
        await server.start()
    finally:
        os.umask(previous)
    return server


def _deadline(context: Any) -> float | None:
    remaining = context.time_remaining()
    if remaining is None:
        return None
    return float(time.monotonic() + remaining - min(_MARGIN, remaining * _MARGIN_SHARE))


def _metadata(context: Any, wanted: str) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == wanted:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return ""


def _sender(context: Any) -> Callable[[bytes], Awaitable[None]]:
    """Return what writes to the stream from a connector's loop, and waits until it is written."""
    main = asyncio.get_running_loop()

    async def send(data: bytes) -> None:
        writing = asyncio.run_coroutine_threadsafe(context.write(data), main)
        try:
            await asyncio.wrap_future(writing)
        except grpc.aio.InternalError:  # the caller has left
            raise asyncio.CancelledError from None

    return send


def _resident() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a heartbeat is short
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
