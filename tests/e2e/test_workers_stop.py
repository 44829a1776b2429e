"""``serve --workers``: signals, drains, and a supervisor that dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from daemon import COMMAND, PATIENCE, Serve, eventually
from e2e.workers import FLAGS, children, client, fetch, folder, one_of_each, who
from grpc_health.v1 import health_pb2, health_pb2_grpc
from process_hosts import runs

pytestmark = pytest.mark.usefixtures("runtime_dir")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_workers_start_ends_it(
    modules: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A start that takes long, or would never end, is left cleanly and at once."""
    loading = tmp_path / "loading"
    (modules / "endless.py").write_text(
        f"import time, pathlib\npathlib.Path({str(loading)!r}).touch()\ntime.sleep(600)"
    )
    process = subprocess.Popen(
        [COMMAND, "serve", "--workers=2", "--module=endless", "--port=0", "--prometheus-port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=modules,
    )
    try:
        eventually(loading.exists, "a worker loads its plugins")
        workers = children(process.pid)
        process.send_signal(number)
        out, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (0, "")
    assert "stopped before it served" in errors
    assert "Traceback" not in errors
    assert not any(runs(pid) for pid in workers)


def test_sigterm_drains_every_worker_and_loses_no_call(
    serve: Serve, modules: Path, tmp_path: Path
) -> None:
    """Health turns first at each worker, old and new calls are answered, then all end with 0."""
    daemon = serve(*FLAGS, "--drain-delay=2", "--grace=20", modules=modules)
    with one_of_each(daemon) as found, ThreadPoolExecutor(32) as pool:
        gates = {pid: folder(tmp_path, f"gate{pid}") for pid in found}
        waiting = {pid: pool.submit(who, found[pid], str(gates[pid])) for pid in found}
        eventually(lambda: all((g / "entered").exists() for g in gates.values()), "in flight")
        daemon.process.send_signal(signal.SIGTERM)
        for channel in found.values():
            eventually(lambda channel=channel: health(channel) == "NOT_SERVING", "NOT_SERVING")
        assert fetch(daemon, "/readyz")[0] == 503
        assert fetch(daemon, "/livez") == (200, "alive\n")
        for pid, channel in found.items():
            assert who(channel) == pid
        with client(daemon) as late:
            assert who(late) in found
        assert not any(call.done() for call in waiting.values())
        for gate in gates.values():
            (gate / "open").touch()
        assert {pid: call.result() for pid, call in waiting.items()} == {pid: pid for pid in found}
    assert daemon.wait() == 0
    assert not any(runs(pid) for pid in found)


def health(channel: grpc.Channel) -> str:
    response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def test_sigterm_to_every_process_at_once_is_one_drain(serve: Serve, modules: Path) -> None:
    """Systemd signals the whole group: a worker that was asked twice does not end at once."""
    daemon = serve(*FLAGS, "--drain-delay=1", modules=modules)
    for pid in (*children(daemon.process.pid), daemon.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert daemon.wait() == 0
    assert "ending at once" not in daemon.log
    assert daemon.log.count(" stopped worker=") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_all_at_once(
    serve: Serve, modules: Path, number: signal.Signals
) -> None:
    """Whoever cannot wait for the drain sends the signal again, and no worker stays."""
    daemon = serve(*FLAGS, "--drain-delay=3600", modules=modules)
    workers = children(daemon.process.pid)
    daemon.process.send_signal(number)
    eventually(lambda: fetch(daemon, "/readyz")[0] == 503, "draining")
    assert daemon.kill(number) == 128 + number
    eventually(lambda: not any(runs(pid) for pid in workers), "no worker left")


def test_a_killed_supervisor_leaves_no_worker(serve: Serve, modules: Path) -> None:
    """Kill -9 of the supervisor ends every worker within two seconds, and frees the port."""
    daemon = serve(*FLAGS, modules=modules)
    workers = children(daemon.process.pid)
    assert len(workers) == 2
    daemon.kill(signal.SIGKILL)
    end = time.monotonic() + 2
    while any(runs(pid) for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.02)
    port = daemon.endpoint.rpartition(":")[2]
    again = serve(*FLAGS, f"--port={port}", modules=modules)
    assert again.kill(signal.SIGTERM) == 0


def test_workers_end_with_the_supervisor_though_they_are_frozen(
    serve: Serve, modules: Path, tmp_path: Path
) -> None:
    """Where a C call holds the interpreter's lock and no thread can act, the kernel ends it."""
    daemon = serve(*FLAGS, modules=modules)
    with one_of_each(daemon) as found, ThreadPoolExecutor(2) as pool:
        calls = []
        for pid, channel in found.items():
            calls.append(pool.submit(who, channel, str(folder(tmp_path, str(pid))), "freeze"))
            eventually((tmp_path / str(pid) / "entered").exists, "frozen")
        daemon.process.kill()
        try:
            eventually(lambda: not any(runs(pid) for pid in found), "no worker left")
        finally:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for call in calls:
            with pytest.raises(grpc.RpcError):
                call.result()


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux",
    reason="NOT RUN: only root on Linux can make a PID namespace for the process-1 test",
)
def test_as_process_1_it_drains_and_buries_the_dead(serve: Serve, modules: Path) -> None:
    """In a container the supervisor is process 1: it hears SIGTERM and reaps what workers left."""
    daemon = serve(*FLAGS, prefix=("unshare", "--pid", "--fork", "--kill-child"), modules=modules)
    (supervisor,) = children(daemon.process.pid)
    workers = children(supervisor)
    # Its parent ends first: process 1 is its parent then, and must reap it.
    orphan = ["nsenter", f"--target={supervisor}", "--pid", "sh", "-c", "sleep 1 & exit 0"]
    subprocess.run(orphan, check=True, timeout=PATIENCE)
    eventually(lambda: len(children(supervisor)) == 3, "an orphan")
    eventually(lambda: children(supervisor) == workers, "the orphan buried")
    os.kill(min(workers), signal.SIGKILL)
    eventually(lambda: len(children(supervisor) - {min(workers)}) == 2, "a new worker")
    os.kill(supervisor, signal.SIGTERM)
    assert daemon.wait() == 0
    assert "stopped" in daemon.log
