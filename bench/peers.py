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

from grpc_health.v1 import health_pb2

from bench.environments import python_of
from bench.load import LoadError, ask
from bench.messages import FLYTE1, FLYTE2
from bench.process import SERVER_CORE, cpu, free_port, listens, on_core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.cases import Case

__all__ = ["PEERS", "Peer", "Running", "ours"]

_PATIENCE = 300.0  # seconds until a server must be SERVING; under valgrind they take many
_HEALTH = "/grpc.health.v1.Health/Check"
_SERVE = "from connector_service.cli.main import main; main()"
# What would steer a server from the outside.
_STEERING = ("CONNECTOR_SERVICE_", "GRPC_", "FLYTE_", "MALLOC_", "PYTHON", "LD_PRELOAD")


class Running(NamedTuple):
    """A server that answers."""

    pid: int
    port: int
    seconds: float  # from its start to SERVING
    cpu: float  # processor time that it used until then, in seconds


class Peer(NamedTuple):
    """A server to measure.

    ``command`` makes its command line of a port and one for metrics; ``crosses`` says that it
    answers a protocol for connectors in the other's shape. ``python`` is the interpreter of an
    environment of its own; empty is the running one. What is measured is installed there.
    """

    name: str
    command: Callable[[int, int], list[str]]
    protocols: tuple[str, ...] = (FLYTE1, FLYTE2)
    crosses: bool = True
    plain: bool = True
    counts: bool = True
    python: str = ""

    def answers(self, case: Case) -> bool:
        """Tell whether it knows such calls at all."""
        return (
            case.protocol in self.protocols
            and (case.native or self.crosses)
            and (case.target != "plain" or self.plain)
        )

    def in_environment(self) -> Peer:
        """Return this peer as it runs in its locked environment."""
        return self._replace(python=str(python_of(self.name)))

    @contextlib.contextmanager
    def serve(
        self,
        prefix: tuple[str, ...] = (),
        settle: float = 0.0,
        core: int | None = SERVER_CORE,
    ) -> Iterator[Running]:
        """Serve on one core, or on all, until the block ends; ``prefix`` is a command to run it by.

        Raises:
            RuntimeError: It ended, or did not become SERVING; the notes have what it wrote.
        """
        with contextlib.ExitStack() as stack:
            # Nothing of the checkout but the bench may be found: what is compiled is installed.
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (home / "bench").symlink_to(Path(__file__).parent)
            port = free_port()
            command = [
                *prefix,
                self.python or sys.executable,
                *self.command(port, free_port()),
            ]
            environment = {
                name: value for name, value in os.environ.items() if not name.startswith(_STEERING)
            } | {"PYTHONPATH": str(home), "PYTHONHASHSEED": "0"}
            log = stack.enter_context(tempfile.TemporaryFile())
            with contextlib.nullcontext() if core is None else on_core(core):
                began = time.perf_counter()
                # A session of its own, as in a container: Linux schedules sessions as groups, and
                # weighs a group anew at each of its wake-ups while it also runs on another core, as
                # ours would with the client in it. That alone moved figures by a third.
                process = subprocess.Popen(  # noqa: S603 - our own command
                    command,
                    cwd=home,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            stack.callback(_stop, process)
            try:
                _wait_until_serving(process, port, session=core is None)
            except RuntimeError as error:
                log.seek(0)
                error.add_note(log.read()[-4000:].decode(errors="replace"))
                raise
            running = Running(process.pid, port, time.perf_counter() - began, cpu(process.pid))
            time.sleep(settle)
            yield running


def _wait_until_serving(process: subprocess.Popen[bytes], port: int, *, session: bool) -> None:
    until = time.monotonic() + _PATIENCE
    request = health_pb2.HealthCheckRequest().SerializeToString()
    while time.monotonic() < until:
        time.sleep(0.001)
        if process.poll() is not None:
            raise RuntimeError(f"The server ended with {process.returncode} before it served.")
        with contextlib.suppress(OSError, LoadError):
            if not listens(process.pid, port, session=session):
                continue
            answer = health_pb2.HealthCheckResponse.FromString(ask(port, _HEALTH, request))
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
    raise RuntimeError(f"The server was not SERVING within {_PATIENCE:g} s.")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _floor(loop: str) -> Callable[[int, int], list[str]]:
    return lambda port, _: ["-m", "bench.floor", f"--port={port}", f"--loop={loop}"]


def ours(*flags: str) -> Peer:
    """Return our service as ``flags`` have it."""

    def command(port: int, metrics: int) -> list[str]:
        return ["-c", _SERVE, "serve", *flags, f"--port={port}", f"--prometheus-port={metrics}"]

    return Peer("ours", command)


def _flytekit(port: int, metrics: int) -> list[str]:
    program = "from flytekit.clis.sdk_in_container.pyflyte import main; main()"
    where = ["--port", str(port), "--prometheus_port", str(metrics)]
    modules = ["--modules", "bench.connectors_flytekit"]
    return ["-c", program, "serve", "connector", *where, *modules]


def _flyte(port: int, metrics: int) -> list[str]:
    program = "from flyte._bin.connect import main; main()"
    where = ["--port", str(port), "--prometheus_port", str(metrics)]
    return ["-c", program, *where, "--modules", "bench.connectors_flyte"]


_ALL = (
    ours("--module=bench.connectors_ours"),
    Peer("floor", _floor("asyncio"), counts=False),
    Peer("floor-uvloop", _floor("uvloop"), counts=False),
    Peer("flytekit", _flytekit, (FLYTE1,), crosses=False).in_environment(),
    Peer("flyte", _flyte, (FLYTE2,), crosses=False, plain=False).in_environment(),
)
PEERS = {peer.name: peer for peer in _ALL}
