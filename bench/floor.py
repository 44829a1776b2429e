"""The floor: the least that a grpc.aio server does for a call, which is to parse and to answer.

It has the generated servicers and constant answers; no connector, no look-up, no metrics, no
guarantee. What any service of ours costs is told as a ratio to it, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from typing import Any

import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl.core import execution_pb2
from flyteidl.service import agent_pb2_grpc
from flyteidl2.connector import connector_pb2, service_pb2_grpc
from flyteidl2.core import execution_pb2 as execution2_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.messages import outputs

_META = b'{"job": "0000000000"}'


class _Jobs:
    def __init__(self, messages: Any, phases: Any) -> None:
        running = messages.Resource(phase=phases.TaskExecution.RUNNING)
        ended = messages.Resource(phase=phases.TaskExecution.SUCCEEDED)
        ended.outputs.MergeFromString(outputs().SerializeToString())
        self._created = messages.CreateTaskResponse(resource_meta=_META)
        self._running = messages.GetTaskResponse(resource=running)
        self._ended = messages.GetTaskResponse(resource=ended)
        self._deleted = messages.DeleteTaskResponse()

    async def CreateTask(self, _request: Any, _context: Any) -> Any:
        return self._created

    async def GetTask(self, request: Any, _context: Any) -> Any:
        # The answer that the measured connector gives, so that both put the same on the wire.
        return self._ended if request.task_category.name.endswith("outputs") else self._running

    async def DeleteTask(self, _request: Any, _context: Any) -> Any:
        return self._deleted


class _Jobs1(_Jobs, agent_pb2_grpc.AsyncAgentServiceServicer):
    pass


class _Jobs2(_Jobs, service_pb2_grpc.AsyncConnectorServiceServicer):
    pass


class _Sync(agent_pb2_grpc.SyncAgentServiceServicer):
    def __init__(self) -> None:
        resource = agent_pb2.Resource(
            phase=execution_pb2.TaskExecution.SUCCEEDED, outputs=outputs()
        )
        header = agent_pb2.ExecuteTaskSyncResponseHeader(resource=resource)
        self._answer = agent_pb2.ExecuteTaskSyncResponse(header=header)

    async def ExecuteTaskSync(self, requests: Any, _context: Any) -> Any:
        async for _ in requests:
            pass
        yield self._answer


class _Health(health_pb2_grpc.HealthServicer):
    async def Check(self, _request: Any, _context: Any) -> Any:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def _serve(port: int) -> None:
    options = (
        ("grpc.so_reuseport", 0),
        # By itself grpc-core refuses messages above 4 MB, and bursts of 1,000 calls.
        ("grpc.max_receive_message_length", -1),
        ("grpc.server.max_pending_requests", 16_384),
        ("grpc.server.max_pending_requests_hard_limit", 16_384),
    )
    server = grpc.aio.server(options=options)
    agent_pb2_grpc.add_AsyncAgentServiceServicer_to_server(_Jobs1(agent_pb2, execution_pb2), server)
    agent_pb2_grpc.add_SyncAgentServiceServicer_to_server(_Sync(), server)
    service_pb2_grpc.add_AsyncConnectorServiceServicer_to_server(
        _Jobs2(connector_pb2, execution2_pb2), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(_Health(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    await server.stop(0)


def main() -> None:
    """Serve on 127.0.0.1 until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.floor")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    arguments = parser.parse_args()
    new_loop = asyncio.new_event_loop
    if arguments.loop == "uvloop":
        import uvloop  # noqa: PLC0415 - the other floor does without

        new_loop = uvloop.new_event_loop
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(arguments.port))


if __name__ == "__main__":
    main()
