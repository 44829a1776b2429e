"""A bare gRPC server that answers Flyte's methods with bytes, as badly as a test wants."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

JOBS = {
    "flyteidl": "flyteidl.service.AsyncAgentService",
    "flyteidl2": "flyteidl2.connector.AsyncConnectorService",
}
SYNC = "flyteidl.service.SyncAgentService/ExecuteTaskSync"
LISTS = {
    "flyteidl": "flyteidl.service.AgentMetadataService/ListAgents",
    "flyteidl2": "flyteidl2.connector.ConnectorMetadataService/ListConnectors",
}
_STREAMS = ("GetTaskLogs",)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, answers: dict[str, Callable[..., Any]]) -> None:
        self.answers = answers

    def service(self, details: Any) -> Any:
        path = details.method.removeprefix("/")
        function = self.answers.get(path)
        if function is None:
            return None
        if path == SYNC:
            return grpc.stream_stream_rpc_method_handler(function)
        if path.endswith(_STREAMS):
            return grpc.unary_stream_rpc_method_handler(function)
        return grpc.unary_unary_rpc_method_handler(function)


class Peer:
    """Where it listens, and its answers by ``service/Method``: change them while it serves."""

    def __init__(self, server: grpc.aio.Server, port: int, answers: dict[str, Any]) -> None:
        self.server = server
        self.port = port
        self.answers = answers
        self.endpoint = f"127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def peer(
    answers: dict[str, Any], *, port: int = 0, credentials: Any = None
) -> AsyncIterator[Peer]:
    """Serve ``answers`` on a port of 127.0.0.1; leaving the block cuts every call short.

    They are coroutine functions of the request and its context; streams are async generators.
    """
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 64 * 1024),
        )
    )
    server.add_generic_rpc_handlers((_Handlers(answers),))
    address = f"127.0.0.1:{port}"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield Peer(server, port, answers)
    finally:
        await server.stop(None)


def answering(data: bytes) -> Any:
    """Make an answer that is always the same bytes."""

    async def answer(_request: bytes, _context: Any) -> bytes:
        return data

    return answer


def refusing(code: grpc.StatusCode, details: str = "", *trailing: tuple[str, Any]) -> Any:
    """Make an answer that is always the same status."""

    async def refuse(_request: Any, context: Any) -> bytes:
        await context.abort(code, details, trailing)
        raise AssertionError

    return refuse
