"""A query is a process of its own: it outlives the service, runs once, and ends when told to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flyteidl.core import tasks_pb2, types_pb2
from flyteidl.core.execution_pb2 import TaskExecution

from connector_service.connectors.duckdb.jobs import reap
from connector_service.errors import GoneError, InvalidMetaError, PermanentError, TransientError

pytest.importorskip("duckdb")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TABLE = types_pb2.LiteralType(structured_dataset_type=types_pb2.StructuredDatasetType())
FOREVER = "SELECT sum(hash(i)) AS a FROM range(900000000000) t(i)"
ENDLESS_TABLE = "SELECT md5(i::VARCHAR) AS a FROM range(900000000000) t(i)"

# A service of its own: creates a job, says its meta, and stays until it is killed.
CREATOR = """
import json, sys, time
from flyteidl.core import tasks_pb2, interface_pb2, types_pb2
from flyteidl.core.literals_pb2 import LiteralMap
from connector_service.connectors.duckdb import DuckdbConnector
options, sql, prefix = json.loads(sys.argv[1])
connector = DuckdbConnector()
connector.configure(options)
table = types_pb2.LiteralType(structured_dataset_type=types_pb2.StructuredDatasetType())
outputs = interface_pb2.VariableMap(variables={"o": interface_pb2.Variable(type=table)})
template = tasks_pb2.TaskTemplate(
    sql=tasks_pb2.Sql(statement=sql), interface=interface_pb2.TypedInterface(outputs=outputs))
sys.stdin.readline()
meta = connector.create(template, prefix, LiteralMap(), None)
print(meta.encode().decode(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def creators(bench: Any) -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """Start services in processes of their own, ready to create when they get a line."""
    started: list[subprocess.Popen[str]] = []

    def start(sql: str, prefix: str, count: int = 1) -> list[subprocess.Popen[str]]:
        started.extend(
            subprocess.Popen(
                [sys.executable, "-c", CREATOR, json.dumps([bench.options, sql, prefix])],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def starts(bench: Any, meta: Any) -> int:
    """How often the SQL of this job was started, by its log."""
    return int(bench.log(meta).count(" S started\n"))


def test_a_query_outlives_a_service_killed_in_mid_query(bench: Any, creators: Any) -> None:
    """After kill -9 another service finds the job, and it ends as if nothing had happened."""
    prefix = str(bench.tmp / "out" / "x")
    sql = "SELECT sum(hash(i) % 7)::BIGINT AS a FROM range(150000000) t(i)"
    (service,) = creators(sql, prefix)
    go(service)
    meta = bench.connector.metadata_type.decode(said(service).encode())
    bench.metas.append(meta)
    pid = bench.pid(meta)
    os.kill(service.pid, signal.SIGKILL)
    service.wait()
    assert bench.get(meta).phase == TaskExecution.RUNNING
    assert bench.running(pid)
    assert os.getsid(pid) == pid
    resource = bench.finish(meta)
    assert resource.phase == TaskExecution.SUCCEEDED
    assert len(bench.read(f"{prefix}/o.parquet")) == 1
    assert starts(bench, meta) == 1


def test_a_child_killed_is_retryable_and_leaves_no_half_file(bench: Any) -> None:
    """The job itself gets kill -9, as the kernel does when memory runs out."""
    meta = bench.create(ENDLESS_TABLE, None, {"o": TABLE})
    pid = bench.pid(meta)
    bench.until(lambda: list((bench.tmp / "out").rglob("*.part")))
    os.kill(pid, signal.SIGKILL)
    resource = bench.finish(meta)
    assert resource.phase == TaskExecution.RETRYABLE_FAILED
    assert resource.message == "The job ended without a result (killed: out of memory?)."
    assert list((bench.tmp / "out").rglob("*")) == [bench.tmp / "out" / "0"]
    assert not (bench.folder(meta) / "work").exists()


def test_the_same_output_prefix_is_the_same_job(bench: Any) -> None:
    """CreateTask is delivered at least once; the query runs once, whenever the repeat comes."""
    prefix = bench.prefix
    first = bench.create("SELECT 1 AS a", None, {"o": TABLE}, prefix)
    assert bench.create("SELECT 1 AS a", None, {"o": TABLE}, prefix) == first
    assert bench.finish(first).phase == TaskExecution.SUCCEEDED
    assert bench.create("SELECT 1 AS a", None, {"o": TABLE}, prefix) == first
    assert bench.get(first).phase == TaskExecution.SUCCEEDED
    assert starts(bench, first) == 1
    assert bench.create("SELECT 1 AS a", None, {"o": TABLE}) != first


def test_concurrent_creates_start_one_job(bench: Any, creators: Any) -> None:
    """From eight threads and two other processes at the same moment."""
    prefix = str(bench.tmp / "out" / "x")
    services = creators("SELECT 1 AS a", prefix, count=2)
    metas: list[Any] = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait()
        metas.append(bench.create("SELECT 1 AS a", None, {"o": TABLE}, prefix))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for service in services:
        go(service)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    encoded = {meta.encode().decode() for meta in metas} | {said(item) for item in services}
    assert len(encoded) == 1
    assert bench.finish(metas[0]).phase == TaskExecution.SUCCEEDED
    assert starts(bench, metas[0]) == 1


def test_a_create_that_crashed_before_the_start_is_taken_up(bench: Any) -> None:
    """A folder without a child, even with half a spec in it, is started by the repeat."""
    prefix = bench.prefix
    meta = bench.create("SELECT 1 AS a", None, {"o": TABLE}, prefix)
    bench.finish(meta)
    for path in bench.folder(meta).iterdir():
        path.unlink()
    assert bench.get(meta).phase == TaskExecution.RETRYABLE_FAILED
    (bench.folder(meta) / ".spec.json.1").write_text('{"sql": "SEL')
    (bench.folder(meta) / "spec.json").write_text('{"sql": "SEL')
    assert bench.create("SELECT 2 AS a", None, {"o": TABLE}, prefix) == meta
    resource = bench.finish(meta)
    assert resource.phase == TaskExecution.SUCCEEDED
    assert bench.read(f"{prefix}/o.parquet") == [(2,)]


def test_delete_kills_the_query_and_is_fine_twice(bench: Any) -> None:
    """The process is gone when delete returns, with what it half wrote; the phase is ABORTED."""
    meta = bench.create(ENDLESS_TABLE, None, {"o": TABLE})
    pid = bench.pid(meta)
    bench.until(lambda: list((bench.tmp / "out").rglob("*.part")))
    bench.connector.delete(meta)
    assert not bench.running(pid)
    assert bench.get(meta).phase == TaskExecution.ABORTED
    bench.connector.delete(meta)
    assert bench.get(meta).phase == TaskExecution.ABORTED
    assert list((bench.tmp / "out").rglob("*")) == [bench.tmp / "out" / "0"]
    prefix = str(bench.tmp / "out" / "0")
    assert bench.create(ENDLESS_TABLE, None, {"o": TABLE}, prefix) == meta
    assert bench.get(meta).phase == TaskExecution.ABORTED


def test_delete_works_at_once_and_on_a_process_that_ignores_it(bench: Any) -> None:
    """Right after create, before the child said a word; and on a stopped one, which is deaf."""
    meta = bench.create(FOREVER)
    bench.connector.delete(meta)
    assert bench.get(meta).phase == TaskExecution.ABORTED
    stopped = bench.create(FOREVER)
    pid = bench.pid(stopped)
    os.kill(pid, signal.SIGSTOP)
    bench.connector.delete(stopped)
    assert not bench.running(pid)
    assert bench.get(stopped).phase == TaskExecution.ABORTED


def test_delete_after_success_keeps_the_results(bench: Any) -> None:
    """Flyte 2 deletes every finished job: nothing changes, the phase stays SUCCEEDED."""
    meta = bench.create("SELECT 1 AS a", None, {"o": TABLE})
    before = bench.finish(meta)
    bench.connector.delete(meta)
    bench.connector.delete(meta)
    assert bench.get(meta) == before
    assert bench.read(before.outputs.literals["o"].scalar.structured_dataset.uri) == [(1,)]
    failed = bench.create("SELEC 1")
    bench.finish(failed)
    bench.connector.delete(failed)
    assert bench.get(failed).phase == TaskExecution.FAILED


def test_delete_never_kills_a_stranger(bench: Any) -> None:
    """A recorded pid counts only while its process holds the job's lock."""
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        meta = bench.create(FOREVER)
        own = bench.pid(meta)
        state = bench.folder(meta) / "state.json"
        record = json.loads(state.read_text())
        state.write_text(json.dumps(record | {"pid": stranger.pid}))
        bench.connector.delete(meta)  # the child itself sees that it is deleted
        assert stranger.poll() is None
        assert not bench.running(own)
    finally:
        stranger.kill()
        stranger.wait()


def test_unknown_jobs(bench: Any) -> None:
    """Get says that the job is gone, delete is fine, and no meta leads out of the state folder."""
    meta = bench.connector.metadata_type("0" * 32)
    for ask in (bench.connector.get, lambda m: list(bench.connector.get_logs(m))):
        with pytest.raises(GoneError, match="This machine knows no DuckDB job 0000"):
            ask(meta)
    with pytest.raises(GoneError):
        bench.connector.get_metrics(meta)
    bench.connector.delete(meta)
    for job_id in ("../../etc", "", "/", "0" * 31 + "/", "A" * 32):
        for ask in (bench.connector.get, bench.connector.delete):
            with pytest.raises(InvalidMetaError):
                ask(bench.connector.metadata_type(job_id))


def test_the_meta_and_the_folder_keep_secrets(bench: Any, monkeypatch: Any) -> None:
    """No SQL or parameter is in the meta; the folder is this user's alone and forgets the spec."""
    monkeypatch.setenv("_FSEC_TOKEN", "env-secret")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    meta = bench.create("SELECT $pin AS a, 'sqltext' AS b", {"pin": "s3cr3t"}, {"o": TABLE})
    encoded = meta.encode()
    assert json.loads(encoded) == {"job_id": meta.job_id}
    assert bench.connector.metadata_type.decode(encoded) == meta
    bench.finish(meta)
    folder = bench.folder(meta)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    kept = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"s3cr3t" not in kept
    assert b"sqltext" not in kept
    running = bench.create(FOREVER)
    environ = Path(f"/proc/{bench.pid(running)}/environ").read_bytes()
    assert b"AWS_REGION=eu-west-1" in environ
    assert b"env-secret" not in environ
    assert b"s3cr3t" not in Path(f"/proc/{bench.pid(running)}/cmdline").read_bytes()


def test_more_jobs_than_may_run_are_queued(make_bench: Any) -> None:
    """The state folder's limit holds across services; a freed place is taken."""
    bench = make_bench(max_running=1)
    first = bench.create(FOREVER)
    bench.pid(first)
    second = bench.create("SELECT 1 AS a", None, {"o": TABLE})
    bench.until(lambda: "waiting: 1 jobs run already" in bench.log(second))
    assert bench.get(second).phase == TaskExecution.QUEUED
    third = bench.create("SELECT 1")
    bench.connector.delete(third)
    assert bench.get(third).phase == TaskExecution.ABORTED
    bench.connector.delete(first)
    assert bench.finish(second).phase == TaskExecution.SUCCEEDED


def test_no_zombies_pile_up(bench: Any) -> None:
    """The exit codes of ended children are taken by the calls that follow."""
    running = bench.create(FOREVER)
    for _ in range(3):
        bench.create("SELECT 1")
    assert {bench.finish(meta).phase for meta in bench.metas[1:]} == {TaskExecution.SUCCEEDED}
    bench.until(lambda: bench.get(running) and reap() == 1)


def test_old_folders_are_purged(make_bench: Any) -> None:
    """Ended jobs go after ``keep_days``; a running one stays, however old."""
    bench = make_bench(keep_days=1)
    ended, alive, young = (
        bench.create("SELECT 1"),
        bench.create(FOREVER),
        bench.create("SELECT 2"),
    )
    bench.finish(ended)
    bench.finish(young)
    bench.pid(alive)
    bench.until(lambda: reap() == 1)
    for meta in (ended, alive):
        os.utime(bench.folder(meta), (1, 1))
    bench.connector.configure(bench.options)  # as a restart
    bench.create("SELECT 3")
    with pytest.raises(GoneError, match="purged after 1 days"):
        bench.get(ended)
    assert bench.get(alive).phase == TaskExecution.RUNNING
    assert bench.get(young).phase == TaskExecution.SUCCEEDED


def test_a_full_disk_is_retryable_and_leaves_no_half_file(bench: Any) -> None:
    """A real full file system under the output prefix: no SUCCEEDED, no file, a sentence."""
    disk = bench.tmp / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("NO RIGHT TO MOUNT A SMALL DISK: a full one went untested")
    try:
        sql = "SELECT md5(i::VARCHAR) AS a FROM range(500000) t(i)"
        resource = bench.run(sql, None, {"o": TABLE}, prefix=str(disk / "x"))
        assert resource.phase == TaskExecution.RETRYABLE_FAILED
        assert resource.message.startswith("No space left on the disk: IO Error")
        assert list(disk.rglob("*")) == [disk / "x"]
        (disk / "fill").write_bytes(b"")
        with pytest.raises(OSError, match="No space left"):
            (disk / "fill").write_bytes(bytes(2 << 20))
        bench.options["state_dir"] = str(disk / "state")
        bench.connector.configure(bench.options)
        with pytest.raises(TransientError, match="Cannot start the job: No space left"):
            bench.create("SELECT 1", {"a": "x" * (1 << 20)})
        assert not list(disk.rglob("spec.json"))
        assert not list(disk.rglob(".spec.json*"))
    finally:
        bench.options["state_dir"] = str(bench.state)
        bench.connector.configure(bench.options)
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_output_prefix_that_cannot_be_written_fails(bench: Any) -> None:
    """A file where the folder should be: a sentence, and nothing half done."""
    (bench.tmp / "file").write_text("in the way")
    resource = bench.run("SELECT 1", None, {"o": TABLE}, prefix=str(bench.tmp / "file" / "x"))
    assert resource.phase == TaskExecution.RETRYABLE_FAILED
    assert resource.message.startswith(f"Cannot write {bench.tmp}/file/x/o.parquet: ")


def test_a_state_folder_that_turns_unsafe_is_refused(bench: Any) -> None:
    """Found at create, as when the operator's folder was removed and somebody else made it."""
    shutil.rmtree(bench.state)
    bench.state.symlink_to(bench.tmp)
    bench.connector._jobs._prepared = False
    with pytest.raises(PermanentError, match="is no folder of its own"):
        bench.connector.create(
            tasks_pb2.TaskTemplate(sql=tasks_pb2.Sql(statement="SELECT 1")), "", None, None
        )
    bench.state.unlink()


def test_a_key_names_the_job_and_a_new_key_a_new_one(bench: Any) -> None:
    """The service's key decides which job a repeat finds; an orphan's successor has a new one."""
    first, again, other = (
        bench.create("select 1 as n", idempotency_key=key) for key in ("k", "k", "k-1")
    )
    assert first == again != other
