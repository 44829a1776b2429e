"""The program that runs in a process host's children, driven as the parent drives it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from flyteidl.admin import agent_pb2
from flyteidl2.connector import connector_pb2

import connector_service

PROGRAM = Path(connector_service.__file__).parent / "hosts" / "child"
PATIENCE = 60.0

SERVICES = {
    "flyteidl": ("flyteidl.service.AsyncAgentService", agent_pb2),
    "flyteidl2": ("flyteidl2.connector.AsyncConnectorService", connector_pb2),
}


class Child:
    """One child, started as the supervisor starts it; its standard error is read as it comes."""

    def __init__(
        self,
        folder: Path,
        sources: Sequence[str],
        *,
        python: str = sys.executable,
        path: Sequence[Path] = (),
        environ: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.token = secrets.token_hex(32)
        self.socket = folder / f"{secrets.token_hex(4)}.sock"
        unwanted = ("CONNECTOR_SERVICE_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
        env.update(environ or {})
        self.process = subprocess.Popen(
            [python, "-u", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=folder,
            env=env,
        )
        self.errors: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        first = {
            "v": 1,
            "host": "test",
            "worker": 0,
            "socket": str(self.socket),
            "token": self.token,
            "sources": list(sources),
            **settings,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(first).encode() + b"\n")
        self.process.stdin.flush()

    def handshake(self) -> dict[str, Any]:
        """Wait for the one line on standard output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        kind, _, rest = line.partition(" ")
        assert kind == "connector-host", (line, self.said())
        shaken: dict[str, Any] = json.loads(rest)
        return shaken

    def said(self) -> str:
        """Return what came on standard error until now."""
        with self._news:
            return "".join(self.errors)

    def hear(self, text: str) -> str:
        """Wait until a line with ``text`` came on standard error, and return it."""
        with self._news:
            heard = self._news.wait_for(
                lambda: [line for line in self.errors if text in line], PATIENCE
            )
        assert heard, f"{text!r} was not said: {self.said()}"
        return heard[0]

    def records(self) -> list[dict[str, Any]]:
        """Return the log records that came until now."""
        mark = "connector-host-log "
        with self._news:
            return [json.loads(ln.removeprefix(mark)) for ln in self.errors if ln.startswith(mark)]

    def ended(self) -> int:
        """Wait for the end, and for the last of its words; return the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        """End it whatever it does, and let go of its pipes."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.errors.append(line.decode())
                self._news.notify_all()


class Wire:
    """The parent's side of a child's socket."""

    def __init__(self, child: Child, token: str | None = None) -> None:
        self.channel = grpc.insecure_channel(
            f"unix:{child.socket}",
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self.token = child.token if token is None else token

    def metadata(self, *more: tuple[str, str]) -> list[tuple[str, str]]:
        return [*([("connector-host-token", self.token)] if self.token else []), *more]

    def ping(self, timeout: float = PATIENCE) -> dict[str, Any]:
        call = self.channel.unary_unary("/connector_service.host.v1.Host/Ping")
        answer: dict[str, Any] = json.loads(call(b"", metadata=self.metadata(), timeout=timeout))
        return answer

    def method(self, protocol: str, rpc: str) -> Any:
        """Return one method of the jobs' service; GetTaskLogs streams."""
        service, messages = SERVICES[protocol]
        make = self.channel.unary_stream if rpc == "GetTaskLogs" else self.channel.unary_unary
        return make(
            f"/{service}/{rpc}",
            getattr(messages, f"{rpc}Request").SerializeToString,
            getattr(messages, f"{rpc}Response").FromString,
        )

    def create(self, task_type: str, protocol: str = "flyteidl", **fields: Any) -> Any:
        messages = SERVICES[protocol][1]
        request = messages.CreateTaskRequest(**fields)
        request.template.type = task_type
        return self._call(protocol, "CreateTask", request)

    def get(self, task_type: str, meta: bytes = b"{}", protocol: str = "flyteidl") -> Any:
        return self._call(protocol, "GetTask", self.about(protocol, "GetTask", task_type, meta))

    def delete(self, task_type: str, meta: bytes = b"{}", protocol: str = "flyteidl") -> Any:
        request = self.about(protocol, "DeleteTask", task_type, meta)
        return self._call(protocol, "DeleteTask", request)

    def metrics(self, task_type: str, meta: bytes = b"{}", protocol: str = "flyteidl") -> Any:
        request = self.about(protocol, "GetTaskMetrics", task_type, meta)
        return self._call(protocol, "GetTaskMetrics", request)

    def logs(self, task_type: str, meta: bytes = b"{}", protocol: str = "flyteidl") -> Any:
        """Return the stream's messages as they come."""
        request = self.about(protocol, "GetTaskLogs", task_type, meta)
        return self._call(protocol, "GetTaskLogs", request)

    def do(self, task_type: str, inputs: Any = None) -> Any:
        """Run a sync task: header, inputs, half-close, one answer."""
        call = self.channel.stream_stream(
            "/flyteidl.service.SyncAgentService/ExecuteTaskSync",
            agent_pb2.ExecuteTaskSyncRequest.SerializeToString,
            agent_pb2.ExecuteTaskSyncResponse.FromString,
        )
        header = agent_pb2.CreateRequestHeader()
        header.template.type = task_type
        messages = [
            agent_pb2.ExecuteTaskSyncRequest(header=header),
            agent_pb2.ExecuteTaskSyncRequest(inputs=inputs or {}),
        ]
        answers = list(call(iter(messages), metadata=self.metadata(), timeout=PATIENCE))
        assert len(answers) == 1
        return answers[0].header.resource

    def about(self, protocol: str, rpc: str, task_type: str, meta: bytes) -> Any:
        request = getattr(SERVICES[protocol][1], f"{rpc}Request")(resource_meta=meta)
        request.task_category.name = task_type
        return request

    def _call(self, protocol: str, rpc: str, request: Any) -> Any:
        call = self.method(protocol, rpc)
        return call(request, metadata=self.metadata(), timeout=PATIENCE)


def facts(error: grpc.RpcError) -> dict[str, Any]:
    """Return what a child told of an exception beside the status."""
    for name, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if name == "connector-host-error-bin":
            assert len(value) <= 6_000
            found: dict[str, Any] = json.loads(value)
            return found
    raise AssertionError(f"no facts came with {error!r}")


@contextlib.contextmanager
def running(
    folder: Path, sources: Sequence[str], **options: Any
) -> Iterator[tuple[Child, Wire, dict[str, Any]]]:
    """Start a child, wait until it serves, and end it."""
    child = Child(folder, sources, **options)
    try:
        shaken = child.handshake()
        wire = Wire(child)
        try:
            yield child, wire, shaken
        finally:
            wire.channel.close()
    finally:
        child.close()
