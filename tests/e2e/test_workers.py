"""``serve --workers``: several processes on one port, under faults, as one service to the world."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from daemon import PATIENCE, Serve, eventually
from e2e.workers import (
    FLAGS,
    children,
    client,
    counted,
    create,
    fetch,
    folder,
    metrics,
    one_of_each,
    wait_for_successor,
    who,
)

pytestmark = pytest.mark.usefixtures("runtime_dir")


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
