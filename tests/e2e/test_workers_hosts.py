"""``serve --workers``: each worker has process hosts of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from daemon import COMMAND, PATIENCE, Daemon, Serve, eventually
from e2e.workers import FLAGS, children, metrics, wait_for_successor
from process_hosts import runs

pytestmark = pytest.mark.usefixtures("runtime_dir")


HOSTED = """
import os
from connector_service import ConnectorRegistry, Phase, Resource, SyncConnectorBase

class Hosted(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="hosted")

    def do(self):
        return Resource(Phase.SUCCEEDED, message=f"{os.getpid()} {os.getppid()}")

ConnectorRegistry.register(Hosted())
"""


def hosts(daemon: Daemon) -> dict[int, int]:
    """Return the process host of each worker."""
    found = {}
    for worker in children(daemon.process.pid):
        (host,) = filter(runs, children(worker))
        found[worker] = host
    return found


@pytest.fixture
def hosting(serve: Serve, modules: Path, tmp_path: Path, runtime_dir: Path) -> Daemon:
    """Two workers with a process host each."""
    (modules / "hosted.py").write_text(HOSTED)
    (tmp_path / "connector-service.toml").write_text(
        f'[hosts.mine]\nsources = ["module:hosted"]\nenv = {{ PYTHONPATH = "{modules}" }}\n'
    )
    return serve(*FLAGS, f"--run-dir={runtime_dir / 'run'}", modules=modules)


def test_reload_reaches_the_hosts_of_every_worker(
    hosting: Daemon, tmp_path: Path, runtime_dir: Path
) -> None:
    """Each worker has hosts of its own; the command and SIGHUP replace those of all."""
    assert "hosts: mine up" in hosting.announced
    old = hosts(hosting)
    done = subprocess.run(
        [COMMAND, "reload", f"--run-dir={runtime_dir / 'run'}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "worker 0: mine: reloaded\nworker 1: mine: reloaded\n"
    eventually(lambda: not any(runs(pid) for pid in old.values()), "the old processes gone")
    new = hosts(hosting)
    assert new.keys() == old.keys()
    assert not set(new.values()) & set(old.values())
    hosting.process.send_signal(signal.SIGHUP)
    eventually(lambda: not any(runs(pid) for pid in new.values()), "the replaced ones gone")
    assert hosts(hosting).keys() == old.keys()
    found = metrics(hosting)
    assert found["connector_service_host_up", (("host", "mine"),)] == 1
    assert found["connector_service_host_workers_up", (("host", "mine"),)] == 2
    reloaded = (("event", "reloaded"), ("host", "mine"))
    assert found["connector_service_host_events_total", reloaded] == 4
    last = hosts(hosting)
    assert hosting.kill(signal.SIGTERM) == 0
    assert not any(runs(pid) for pid in last.values())
    assert not (runtime_dir / "run").exists()


def test_a_killed_worker_s_hosts_end_and_come_back_with_it(hosting: Daemon) -> None:
    """Kill -9 of a worker ends its hosts; its successor takes over the folder and has its own."""
    victim, host = min(hosts(hosting).items())
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not runs(host), "the host's process gone")
    wait_for_successor(hosting, victim)
    now = hosts(hosting)
    assert len(now) == 2
    assert victim not in now
    hosting.kill(signal.SIGKILL)
    eventually(lambda: not any(runs(pid) for pid in (*now, *now.values())), "nothing left")
