"""``serve --workers``: several processes on one port, under faults, as one service to the world."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from daemon import COMMAND, PATIENCE, Daemon, Serve, eventually
from flyteidl.admin import agent_pb2
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.service import agent_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

MODULE = """
import asyncio, ctypes, os, pathlib
from dataclasses import dataclass
from connector_service import (
    AsyncConnectorBase, ConnectorRegistry, Phase, Resource, ResourceMeta, SyncConnectorBase)

class Who(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="who")

    async def do(self, output_prefix):
        folder = pathlib.Path(output_prefix)
        if output_prefix:
            (folder / "entered").touch()
            while not (folder / "open").exists():
                await asyncio.sleep(0.02)
        return Resource(Phase.SUCCEEDED, message=str(os.getpid()))

@dataclass
class Meta(ResourceMeta):
    pid: int

class Job(AsyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="job", metadata_type=Meta)

    async def create(self, output_prefix):
        folder = pathlib.Path(output_prefix)
        with open(folder / "created", "a") as file:
            file.write(f"{os.getpid()}\\n")
        while (folder / "closed").exists():
            await asyncio.sleep(0.02)
        return Meta(os.getpid())

    async def get(self, resource_meta):
        return Resource(Phase.RUNNING)

    async def delete(self, resource_meta):
        pass

class Freeze(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="freeze")

    def do(self, output_prefix):
        (pathlib.Path(output_prefix) / "entered").touch()
        ctypes.PyDLL(None).sleep(600)  # and holds the interpreter's lock all the while

ConnectorRegistry.register(Freeze())
ConnectorRegistry.register(Who())
ConnectorRegistry.register(Job())
"""
FLAGS = ("--module=workers_module", "--workers=2")


@pytest.fixture(autouse=True)
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep what killed supervisors leave in one folder, whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "workers_module.py").write_text(MODULE)
    return folder


@contextlib.contextmanager
def client(daemon: Daemon) -> Iterator[grpc.Channel]:
    """Open a connection that no other channel of this process shares."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(daemon.endpoint, options=options) as channel:
        yield channel


def who(channel: grpc.Channel, prefix: str = "", task_type: str = "who") -> int:
    """Return the process that answered."""
    header = agent_pb2.CreateRequestHeader(
        template=TaskTemplate(type=task_type), output_prefix=prefix
    )
    requests = [
        agent_pb2.ExecuteTaskSyncRequest(header=header),
        agent_pb2.ExecuteTaskSyncRequest(inputs=LiteralMap()),
    ]
    stream = agent_pb2_grpc.SyncAgentServiceStub(channel).ExecuteTaskSync(
        iter(requests), timeout=PATIENCE, wait_for_ready=True
    )
    answer = next(stream).header.resource.message
    assert list(stream) == []
    return int(answer)


def create(channel: grpc.Channel, prefix: Path) -> bytes:
    request = agent_pb2.CreateTaskRequest(
        template=TaskTemplate(type="job"), output_prefix=str(prefix)
    )
    stub = agent_pb2_grpc.AsyncAgentServiceStub(channel)
    meta: bytes = stub.CreateTask(request, timeout=9, wait_for_ready=True).resource_meta
    return meta


@contextlib.contextmanager
def one_of_each(daemon: Daemon, workers: int = 2) -> Iterator[dict[int, grpc.Channel]]:
    """Open connections until there is one to each worker."""
    with contextlib.ExitStack() as stack:
        found: dict[int, grpc.Channel] = {}
        for _ in range(200):
            channel = stack.enter_context(client(daemon))
            found.setdefault(who(channel), channel)
            if len(found) == workers:
                break
        assert len(found) == workers
        yield found


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def fetch(daemon: Daemon, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{daemon.metrics}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(daemon: Daemon) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample that only grows, and every gauge, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(fetch(daemon, "/metrics")[1])
        for sample in family.samples
    }


def counted(daemon: Daemon) -> float:
    """Return how many calls of ``who`` the service says were answered."""
    labels = (("operation", "do"), ("task_type", "who"))
    return metrics(daemon).get(("flyte_connector_requests_success_total", labels), 0.0)


def children(pid: int) -> set[int]:
    return {int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_successor(daemon: Daemon, victim: int) -> None:
    """Wait until another serves in the place of a worker that was killed."""

    def replaced() -> bool:
        now = children(daemon.process.pid)
        return len(now) == 2 and victim not in now and fetch(daemon, "/readyz")[1] == "ready\n"

    eventually(replaced, "a successor")


def test_fresh_connections_reach_every_worker_and_the_metrics_count_each_call(
    serve: Serve, modules: Path
) -> None:
    """Clients are spread over the workers, and what all of them counted is one number."""
    daemon = serve(*FLAGS, modules=modules)
    assert " with 2 workers, metrics on " in daemon.announced
    answered: Counter[int] = Counter()
    for _ in range(60):
        with client(daemon) as channel:
            for _ in range(3):
                answered[who(channel)] += 1
    assert set(answered) == children(daemon.process.pid)
    assert min(answered.values()) >= 9, answered
    assert counted(daemon) == 180
    histogram = "connector_service_request_duration_seconds"
    labels = {"protocol": "flyteidl", "operation": "do", "task_type": "who", "code": "OK"}
    found = metrics(daemon)
    assert found[f"{histogram}_bucket", tuple(sorted({**labels, "le": "+Inf"}.items()))] == 180
    resident = {k: v for k, v in found.items() if k[0] == "process_resident_memory_bytes"}
    assert {dict(k[1])["worker"] for k in resident} == {"0", "1", "supervisor"}
    assert daemon.kill(signal.SIGTERM) == 0


def test_a_killed_worker_is_replaced_and_nobody_else_notices(serve: Serve, modules: Path) -> None:
    """Kill -9 of one worker: clients of the other see no error, and no counter ever goes back."""
    daemon = serve(*FLAGS, modules=modules)
    over = threading.Event()
    errors: list[object] = []
    calls: Counter[int] = Counter()
    with one_of_each(daemon) as found, ThreadPoolExecutor() as pool:
        victim, survivor = found

        def load(channel: grpc.Channel) -> None:
            while not over.is_set():
                try:
                    calls[who(channel)] += 1
                except grpc.RpcError as error:
                    errors.append(error)

        def scrape() -> None:
            last = metrics(daemon)
            while not over.is_set():
                now = metrics(daemon)
                for key, value in last.items():
                    if key[0].endswith(("_total", "_count", "_sum", "_bucket")):
                        assert now.get(key, 0.0) >= value, key
                last = now

        waiting = [pool.submit(load, found[survivor]), pool.submit(scrape)]
        try:
            for _ in range(50):
                who(found[victim])
            counted(daemon)  # after this, what the victim counted is known outside it
            os.kill(victim, signal.SIGKILL)
            wait_for_successor(daemon, victim)
        finally:
            over.set()
        for each in waiting:
            each.result(PATIENCE)
    assert errors == []
    assert calls[survivor] > 0
    assert set(calls) == {survivor}
    before = counted(daemon)
    assert before >= 50 + calls[survivor]
    with one_of_each(daemon) as found:
        assert victim not in found
        assert survivor in found
        new = (set(found) - {survivor}).pop()
        for _ in range(5):
            assert who(found[new]) == new
    assert counted(daemon) >= before + 7
    restarts = metrics(daemon)["connector_service_worker_restarts_total", (("cause", "exited"),)]
    assert restarts == 1
    assert daemon.kill(signal.SIGTERM) == 0
    assert "killed by signal 9" in daemon.log


def test_a_worker_that_hangs_is_missed_and_then_replaced(serve: Serve, modules: Path) -> None:
    """A stopped process gives no sign of life: readiness names it, and after 10 s it is killed."""
    daemon = serve(*FLAGS, modules=modules)
    hung = min(children(daemon.process.pid))
    missing = re.compile(r"ready; workers that do not serve: [01]\n")
    os.kill(hung, signal.SIGSTOP)
    eventually(
        lambda: missing.fullmatch(fetch(daemon, "/readyz")[1]) is not None,
        "the missing worker named",
    )
    started = time.monotonic()
    assert fetch(daemon, "/metrics")[0] == 200
    assert time.monotonic() - started < 2, "a scrape does not wait for a worker that hangs"
    wait_for_successor(daemon, hung)
    assert metrics(daemon)["connector_service_worker_restarts_total", (("cause", "hung"),)] == 1


def test_a_pause_of_the_whole_service_is_no_hang(serve: Serve, modules: Path) -> None:
    """After all were stopped for longer than a worker may be silent, all go on as they were."""
    daemon = serve(*FLAGS, modules=modules)
    workers = children(daemon.process.pid)
    everyone = (daemon.process.pid, *workers)
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(11)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: fetch(daemon, "/readyz")[1] == "ready\n", "all ready")
    with one_of_each(daemon) as found:
        assert set(found) == workers
    assert daemon.kill(signal.SIGTERM) == 0


def test_a_worker_that_cannot_come_back_is_tried_again_and_named(
    serve: Serve, modules: Path
) -> None:
    """Once all served, a worker's failing start ends nobody else; mended, it is back."""
    daemon = serve(*FLAGS, "--strict", modules=modules)
    victim, survivor = children(daemon.process.pid)
    module = modules / "workers_module.py"
    whole = module.read_text()
    module.write_text("raise RuntimeError('no luck')")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: "no luck" in fetch(daemon, "/readyz")[1], "the reason in /readyz")
    assert fetch(daemon, "/readyz")[0] == 200
    with client(daemon) as channel:
        assert who(channel) == survivor
    module.write_text(whole)
    wait_for_successor(daemon, victim)
    with one_of_each(daemon) as found:
        assert survivor in found


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


def refused(
    *flags: str, cwd: Path, modules: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "serve", "--log-level=error", "--prometheus-port=0", *flags],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=2 * PATIENCE,
    )


def test_a_busy_port_is_one_sentence_and_exit_code_3(tmp_path: Path) -> None:
    """The supervisor finds it out, before any worker starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = refused("--workers=2", f"--port={port}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"Error: Cannot listen on 127.0.0.1:{port}: the port is taken or the address is not this"
        f" machine's; choose another with --port or --host, or --port 0 for a free one.\n"
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_second_service_shares_the_port(serve: Serve, tmp_path: Path, workers: str) -> None:
    """SO_REUSEPORT is for this service's workers: another service of the same user is refused."""
    port = serve("--workers=2").endpoint.rpartition(":")[2]
    done = refused(f"--workers={workers}", f"--port={port}", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(f"Error: Cannot listen on 127.0.0.1:{port}: the port is taken")


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (
            ("--strict", "--module=broken"),
            3,
            "Error: 1 of 3 plugins failed and --strict is on: broken: RuntimeError: no luck",
        ),
        (
            ("--config=options.toml",),
            2,
            "Error: [connectors.sleep.options]: ",
        ),
        (
            ("--state-dir=x", "--ledger-url=redis://127.0.0.1:1"),
            2,
            "Error: state_dir and ledger_url exclude each other",
        ),
        (("--module=leaves",), 3, "Error: Worker "),
        (("--workers=0",), 2, "Error: --workers is 0: Expected int >= 1."),
    ],
)
def test_what_stops_a_worker_s_start_stops_all_with_its_sentence(
    tmp_path: Path, flags: tuple[str, ...], code: int, sentence: str
) -> None:
    """A worker that can never start is no loop of restarts, but its own sentence and exit code."""
    (tmp_path / "broken.py").write_text("raise RuntimeError('no luck')")
    (tmp_path / "leaves.py").write_text("import os\nos._exit(7)")
    (tmp_path / "options.toml").write_text("connectors.sleep.options.url = 'x'")
    started = time.monotonic()
    done = refused("--port=0", "--workers=2", *flags, cwd=tmp_path)
    assert time.monotonic() - started < 60
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.rstrip("\n").rpartition("\n")[2].startswith(sentence), done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Error: ")] == [
        done.stderr.splitlines()[-1]
    ]


def test_a_start_that_fails_waits_for_no_drain(tmp_path: Path) -> None:
    """One worker serves already, another cannot start: all end at once, none is drained."""
    (tmp_path / "second.py").write_text(
        f"""
import os, pathlib, time
folder = pathlib.Path({str(tmp_path / "first")!r})
try:
    folder.mkdir()
except FileExistsError:
    time.sleep(5)  # the first serves by now
    os._exit(1)
"""
    )
    started = time.monotonic()
    done = refused("--port=0", "--workers=2", "--module=second", "--drain-delay=300", cwd=tmp_path)
    assert time.monotonic() - started < 60
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].endswith(
        "could not start: ended with exit code 1; what it printed stands above."
    ), done.stderr


@pytest.mark.parametrize("durable", [False, True])
def test_a_create_repeated_at_another_worker_makes_no_second_job(
    serve: Serve, modules: Path, tmp_path: Path, durable: bool
) -> None:
    """Workers remember together, with ``state_dir`` and without: the first one's answer counts."""
    flags = (f"--state-dir={tmp_path / 'state'}",) if durable else ()
    daemon = serve(*FLAGS, *flags, modules=modules)
    with one_of_each(daemon) as found, ThreadPoolExecutor(2) as pool:
        first, second = found.values()
        prefix = folder(tmp_path, "after")
        meta = create(first, prefix)
        assert create(second, prefix) == meta

        prefix = folder(tmp_path, "meanwhile")
        (prefix / "closed").touch()
        creating = pool.submit(create, first, prefix)
        eventually((prefix / "created").exists, "the create runs")
        repeated = pool.submit(create, second, prefix)
        time.sleep(0.3)  # the second one looks at the key, and finds it held
        assert not repeated.done()
        (prefix / "closed").unlink()
        assert repeated.result() == creating.result()
    for name in ("after", "meanwhile"):
        assert len((tmp_path / name / "created").read_text().splitlines()) == 1
    assert daemon.kill(signal.SIGTERM) == 0


def test_what_a_killed_worker_had_reserved_is_free_once_it_is_back(
    serve: Serve, modules: Path, tmp_path: Path
) -> None:
    """A create that died with its worker can be repeated long before its lease of 15 s is over."""
    daemon = serve(*FLAGS, modules=modules)
    prefix = folder(tmp_path, "job")
    (prefix / "closed").touch()
    with one_of_each(daemon) as found, ThreadPoolExecutor(2) as pool:
        victim, survivor = found
        creating = pool.submit(create, found[victim], prefix)
        eventually((prefix / "created").exists, "the create runs")
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(grpc.RpcError):
            creating.result()
        (prefix / "closed").unlink()
        wait_for_successor(daemon, victim)
        assert create(found[survivor], prefix)
    assert (prefix / "created").read_text().split() == [str(victim), str(survivor)]


def test_every_line_of_the_log_says_which_process_wrote_it(serve: Serve, modules: Path) -> None:
    """Each record of the supervisor and of the workers has the field ``worker``."""
    daemon = serve(*FLAGS, "--log-format=json", modules=modules)
    with one_of_each(daemon):
        pass
    assert daemon.kill(signal.SIGTERM) == 0
    records = [json.loads(line) for line in daemon.log.splitlines()]
    assert {record["worker"] for record in records} == {"0", "1", "supervisor"}


def test_the_supervisor_loads_no_grpc_and_leaves_no_folder(
    serve: Serve, modules: Path, runtime_dir: Path
) -> None:
    """It stays light, and what it made for the workers is gone with them."""
    run = runtime_dir / "run"
    daemon = serve(*FLAGS, f"--run-dir={run}", modules=modules)
    pid = daemon.process.pid
    assert "cygrpc" not in Path(f"/proc/{pid}/maps").read_text()
    assert all("cygrpc" in Path(f"/proc/{one}/maps").read_text() for one in children(pid))
    assert run.exists()
    assert daemon.kill(signal.SIGTERM) == 0
    assert not run.exists()


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
