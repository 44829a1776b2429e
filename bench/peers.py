"""The servers that are measured: how each is started, and what it can answer."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.messages import FLYTE1, FLYTE2
from bench.process import SERVER_CORE, free_port, on_core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.cases import Case

__all__ = ["PEERS", "ROOT", "Peer", "Running"]

ROOT = Path(__file__).parent.parent
_PATIENCE = 60.0  # seconds until a server must be SERVING

_SERVE = "from connector_service.cli.main import main; main()"


class Running(NamedTuple):
    """A server that answers."""

    pid: int
    port: int
    seconds: float  # from its start to SERVING

    def channel(self) -> grpc.Channel:
        """Return a channel of grpc's own to it."""
        return _channel(self.port)


class Peer(NamedTuple):
    """A server to measure; ``python`` is the environment it needs."""

    name: str
    command: Callable[[str, int], list[str]]
    protocols: tuple[str, ...] = (FLYTE1, FLYTE2)
    crosses: bool = True
    environment: str = ""  # folder of its own environment; ours and the floors' is the running one

    @property
    def python(self) -> str:
        """The interpreter of its environment."""
        return str(ROOT / self.environment / "bin/python") if self.environment else sys.executable

    @property
    def missing(self) -> bool:
        """Tell whether its environment has not been made."""
        return not Path(self.python).exists()

    def answers(self, case: Case) -> bool:
        """Tell whether it knows such calls at all."""
        return case.protocol in self.protocols and (case.native or self.crosses)

    @contextlib.contextmanager
    def serve(self, prefix: tuple[str, ...] = ()) -> Iterator[Running]:
        """Serve on the server's core until the block ends; ``prefix`` is a command to run it by.

        Raises:
            RuntimeError: It ended, or did not become SERVING; the message has what it wrote.
        """
        port = free_port()
        command = [*prefix, *self.command(self.python, port)]
        # Nothing from the shell steers what is measured.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CONNECTOR_SERVICE_", "GRPC_", "FLYTE_", "MALLOC_", "PYTHON"))
        } | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
        with tempfile.TemporaryFile() as log, on_core(SERVER_CORE):
            began = time.perf_counter()
            process = subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=ROOT, env=environment, stdout=log, stderr=log
            )
            try:
                _wait_until_serving(process, port)
            except BaseException as error:
                _stop(process)
                log.seek(0)
                error.add_note(log.read()[-4000:].decode(errors="replace"))
                raise
            running = Running(process.pid, port, time.perf_counter() - began)
        try:
            yield running
        finally:
            _stop(process)


def _channel(port: int) -> grpc.Channel:
    return grpc.insecure_channel(
        f"127.0.0.1:{port}",
        options=(
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
        ),
    )


def _wait_until_serving(process: subprocess.Popen[bytes], port: int) -> None:
    """Ask a plain socket until somebody listens, then health: grpc's own back-off is coarse."""
    until = time.monotonic() + _PATIENCE
    while not _listens(port):
        if process.poll() is not None:
            raise RuntimeError(f"The server ended with {process.returncode} before it listened.")
        if time.monotonic() > until:
            raise RuntimeError(f"The server did not listen within {_PATIENCE:g} s.")
        time.sleep(0.002)
    with _channel(port) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            answer = health.Check(
                health_pb2.HealthCheckRequest(), timeout=_PATIENCE, wait_for_ready=True
            )
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            if time.monotonic() > until:
                raise RuntimeError(f"The server was not SERVING within {_PATIENCE:g} s.")
            time.sleep(0.002)


def _listens(port: int) -> bool:
    import socket  # noqa: PLC0415

    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _ours(python: str, port: int) -> list[str]:
    return [
        python,
        "-c",
        _SERVE,
        "serve",
        "--module=bench.connectors",
        f"--port={port}",
        "--prometheus-port=0",
    ]


def _floor(loop: str) -> Callable[[str, int], list[str]]:
    return lambda python, port: [
        python, "-m", "bench.floor", f"--port={port}", f"--loop={loop}"
    ]  # fmt: skip


PEERS = {
    peer.name: peer
    for peer in (
        Peer("floor", _floor("asyncio")),
        Peer("floor-uvloop", _floor("uvloop")),
        Peer("ours", _ours),
    )
}
