"""The process's life: start, drain, finish, leave; each claim against the installed command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from daemon import COMMAND, PATIENCE, Daemon, Serve, eventually, policies_of_threads
from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.service import agent_pb2_grpc

# `gate` answers when the file it is told of exists: a call whose length the test decides.
GATE = """
import asyncio, pathlib, time
from connector_service import ConnectorRegistry, Phase, Resource, SyncConnectorBase

class Gate(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="gate")

    async def do(self, task_template, output_prefix):
        folder = pathlib.Path(output_prefix)
        (folder / "entered").touch()
        while not (folder / "open").exists():
            await asyncio.sleep(0.02)
        return Resource(Phase.SUCCEEDED, message="through")

class Stuck(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="stuck")

    def do(self, output_prefix):
        (pathlib.Path(output_prefix) / "entered").touch()
        while True:
            time.sleep(1)

class Spawner(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="spawner")

    async def do(self, output_prefix):
        async def leave():
            raise (SystemExit if "exit" in output_prefix else KeyboardInterrupt)(3)

        self.task = asyncio.create_task(leave())
        await asyncio.sleep(0.01)
        return Resource(Phase.SUCCEEDED, message="spawned")

ConnectorRegistry.register(Spawner())
ConnectorRegistry.register(Gate())
ConnectorRegistry.register(Stuck())
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "gate.py").write_text(GATE)
    return folder


def execute(daemon: Daemon, task_type: str, folder: Path) -> agent_pb2.Resource:
    """Call ExecuteTaskSync as propeller does: header, inputs, half-close, one receive."""
    header = agent_pb2.CreateRequestHeader(
        template=TaskTemplate(type=task_type), output_prefix=str(folder)
    )
    with daemon.channel() as channel:
        stub = agent_pb2_grpc.SyncAgentServiceStub(channel)
        requests = [
            agent_pb2.ExecuteTaskSyncRequest(header=header),
            agent_pb2.ExecuteTaskSyncRequest(inputs=LiteralMap()),
        ]
        return next(stub.ExecuteTaskSync(iter(requests), timeout=PATIENCE)).header.resource


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def test_sigterm_flips_health_first_and_loses_no_call_in_flight(
    serve: Serve, modules: Path, tmp_path: Path
) -> None:
    """During the drain delay health says NOT_SERVING while old and new calls are answered."""
    daemon = serve("--module=gate", "--drain-delay=2", "--grace=20", modules=modules)
    calls = [folder(tmp_path, f"call{n}") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(execute, daemon, "gate", call) for call in calls]
        eventually(lambda: all((c / "entered").exists() for c in calls), "calls in flight")
        assert daemon.health() == "SERVING"
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: daemon.health() == "NOT_SERVING", "health NOT_SERVING")
        assert not any(call.done() for call in waiting)

        late = folder(tmp_path, "late")
        (late / "open").touch()
        assert execute(daemon, "gate", late).message == "through"
        with daemon.channel() as channel:
            agents = agent_pb2_grpc.AgentMetadataServiceStub(channel).ListAgents(
                agent_pb2.ListAgentsRequest(), timeout=5
            )
            assert "gate" in {t for agent in agents.agents for t in agent.supported_task_types}
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{daemon.metrics}/readyz", timeout=5)

        for call in calls:
            (call / "open").touch()
        assert {call.result().phase for call in waiting} == {TaskExecution.SUCCEEDED}
    assert daemon.wait() == 0


def test_calls_in_flight_get_the_grace_after_the_port_closed(
    serve: Serve, modules: Path, tmp_path: Path
) -> None:
    """With no drain delay a call in flight still finishes, while new connections are refused."""
    daemon = serve("--module=gate", "--grace=20", modules=modules)
    call = folder(tmp_path, "call")
    with ThreadPoolExecutor(8) as pool:
        waiting = pool.submit(execute, daemon, "gate", call)
        eventually((call / "entered").exists, "a call in flight")
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: not accepts(daemon), "the port closed")
        assert daemon.process.poll() is None
        (call / "open").touch()
        assert waiting.result().message == "through"
    assert daemon.wait() == 0


def accepts(daemon: Daemon) -> bool:
    host, port = daemon.endpoint.rsplit(":", 1)
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) == 0


@pytest.mark.parametrize("task_type", ["gate", "stuck"])
def test_a_call_beyond_the_grace_does_not_keep_the_process(
    serve: Serve, modules: Path, tmp_path: Path, task_type: str
) -> None:
    """A call that outlasts the grace is cut, even a plain `def` whose thread never returns."""
    daemon = serve("--module=gate", "--grace=0.2", modules=modules)
    call = folder(tmp_path, "call")
    with ThreadPoolExecutor(8) as pool:
        waiting = pool.submit(execute, daemon, task_type, call)
        eventually((call / "entered").exists, "a call in flight")
        assert daemon.kill(signal.SIGTERM) == 0
        with pytest.raises(grpc.RpcError) as refused:
            waiting.result()
    assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(serve: Serve, number: signal.Signals) -> None:
    """Whoever cannot wait for the drain sends the signal again."""
    daemon = serve("--drain-delay=3600")
    daemon.process.send_signal(number)
    eventually(lambda: daemon.health() == "NOT_SERVING", "draining")
    assert daemon.kill(number) == 128 + number
    assert "ending at once" in daemon.log


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux",
    reason="NOT RUN: only root on Linux can make a PID namespace for the process-1 test",
)
def test_as_process_1_it_hears_sigterm(serve: Serve) -> None:
    """In a container the service is process 1, to which the kernel sends no unhandled SIGTERM."""
    daemon = serve(prefix=("unshare", "--pid", "--fork", "--kill-child"))
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")
    (child,) = children.read_text().split()
    namespaced = Path(f"/proc/{child}/status").read_text()
    assert [line.split()[-1] for line in namespaced.splitlines() if line.startswith("NSpid")] == [
        "1"
    ]
    os.kill(int(child), signal.SIGTERM)
    assert daemon.wait() == 0
    assert "stopped" in daemon.log


@pytest.mark.parametrize("flag", ["--port", "--prometheus-port"])
def test_a_busy_port_is_one_sentence_and_exit_code_3(flag: str, tmp_path: Path) -> None:
    """A second service on a port neither steals connections nor prints a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = {"--port": "0", "--prometheus-port": "0", flag: str(port)}
        done = subprocess.run(
            [COMMAND, "serve", "--log-level=error", *(f"{k}={v}" for k, v in flags.items())],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=PATIENCE,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("Error: Cannot listen on ")
    assert f"{flag}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_second_service_on_the_same_port_is_refused(serve: Serve, tmp_path: Path) -> None:
    """SO_REUSEPORT, gRPC's default, would let two services share a port unnoticed: it is off."""
    port = serve().endpoint.rsplit(":", 1)[1]
    done = subprocess.run(
        [COMMAND, "serve", f"--port={port}", "--prometheus-port=0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert done.returncode == 3
    assert port in done.stderr


def test_settings_come_from_environment_and_file(serve: Serve, tmp_path: Path) -> None:
    """The file in the working directory and CONNECTOR_SERVICE_* both count; the latter wins."""
    (tmp_path / "connector-service.toml").write_text('log_format = "text"\nlog_level = "debug"\n')
    daemon = serve(log_format="json")
    daemon.kill(signal.SIGTERM)
    assert daemon.log.startswith('{"time"')


@pytest.mark.skipif(
    not hasattr(os, "SCHED_BATCH"), reason="only Linux has a policy for threads that may wait"
)
def test_grpcs_own_threads_wait_for_a_core_and_the_loop_does_not(serve: Serve) -> None:
    """The threads of grpc-core do not take the core from the one that answers calls."""
    daemon = serve()
    assert daemon.health() == "SERVING"
    pid = daemon.process.pid
    assert policies_of_threads(pid)["event_engine"] == {os.SCHED_BATCH}
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER


def test_a_hundred_probes_at_once_are_all_answered(serve: Serve) -> None:
    """Health answers a hundred fresh connections at once, as probes and clients make them."""
    daemon = serve()
    failures: list[object] = []

    def probe() -> None:
        try:
            assert daemon.health() == "SERVING"
        except Exception as error:  # noqa: BLE001 - collected and asserted below
            failures.append(error)

    threads = [threading.Thread(target=probe) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("raised", ["exit", "interrupt"])
def test_a_task_that_a_connector_spawned_does_not_end_the_service(
    serve: Serve, modules: Path, tmp_path: Path, raised: str
) -> None:
    """SystemExit from a connector's own task stops asyncio's loop; the service goes on with it."""
    daemon = serve("--module=gate", modules=modules)
    call = folder(tmp_path, "call")
    with ThreadPoolExecutor(8) as pool:
        waiting = pool.submit(execute, daemon, "gate", call)
        eventually((call / "entered").exists, "a call in flight")
        assert execute(daemon, "spawner", folder(tmp_path, raised)).message == "spawned"
        assert daemon.health() == "SERVING"
        (call / "open").touch()
        assert waiting.result().message == "through"
    assert daemon.kill(signal.SIGTERM) == 0
    assert "would have ended the service" in daemon.log
