"""The SQL reaches its inputs and the operator's folders, and nothing else, with or without help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flyteidl.core import literals_pb2, types_pb2
from flyteidl.core.execution_pb2 import TaskExecution

duckdb = pytest.importorskip("duckdb")

if TYPE_CHECKING:
    from collections.abc import Callable

NEW = int(duckdb.__version__.split(".")[0]) >= 2
TABLE = types_pb2.LiteralType(structured_dataset_type=types_pb2.StructuredDatasetType())

# Confines a thread as the child program does, then tries every statement on a fresh connection.
PROGRAM = """
import json, sys, threading
import duckdb
from pathlib import Path
from connector_service.connectors.duckdb.options import read_options
from connector_service.connectors.duckdb import sandbox

options, reach, tries = json.load(sys.stdin)
options = read_options(options, section="options")
reach = sandbox.Reach(
    files=tuple(map(Path, reach["files"])), folders=tuple(map(Path, reach["folders"])),
    work=Path(reach["work"]), written=tuple(map(Path, reach["written"])),
)
found = []

def body():
    confined = not sandbox.confine_thread(options, reach)
    found.append(confined)
    for sql in tries:
        try:
            connection = sandbox.connect(options, reach, confined=confined)
            rows = None
            for statement in connection.extract_statements(sql):
                sandbox.refuse_statement(connection, statement, confined=confined)
                rows = connection.execute(statement.query).fetchall()
            found.append(["ran", str(rows)[:500]])
        except Exception as error:
            found.append([type(error).__name__, str(error)])

thread = threading.Thread(target=body)
thread.start()
thread.join()
json.dump(found, sys.stdout)
"""

ESCAPES = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_csv('/etc/pass*')",
    "SELECT * FROM read_text('/proc/self/environ')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM glob('{base}/**')",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM read_text('{job}/spec.json')",
    "SELECT * FROM read_text('{job}/lock')",
    "SELECT * FROM read_text('{job}/work/../spec.json')",
    "SELECT * FROM '{allowed}/../secret.csv'",
    "SELECT * FROM '{allowed}/sub/../../secret.csv'",
    "SELECT * FROM '{allowed}//..//secret.csv'",
    "SELECT * FROM '{allowed}/link.csv'",
    "SELECT * FROM '{allowed}/dirlink/secret.csv'",
    "SELECT * FROM '{allowed}x/secret.csv'",
    "SELECT * FROM query('FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query_table('{secret}')",
    "CREATE MACRO m() AS TABLE SELECT * FROM read_text('/etc/passwd'); FROM m()",
    "CREATE VIEW v AS SELECT * FROM '{secret}'; FROM v",
    "SELECT getenv('PATH')",
    "SELECT * FROM 'https://example.com/x.csv'",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "ATTACH '{base}/x.db'",
    "ATTACH '{allowed}/x.db'",
    "ATTACH 'https://example.com/x.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{allowed}/x.duckdb_extension'",
    "FORCE INSTALL spatial FROM community",
    "COPY (SELECT 1) TO '{base}/new.csv'",
    "COPY (SELECT 1) TO '{allowed}/new.csv'",
    "COPY (SELECT 1) TO '{allowed}/in.csv'",
    "COPY (SELECT 1) TO '{input}'",
    "COPY (SELECT 1) TO '{written}'",
    "COPY (SELECT 1) TO '/dev/stdout'",
    "EXPORT DATABASE '{allowed}/export'",
    "IMPORT DATABASE '{allowed}'",
    "PRAGMA import_database('{allowed}')",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{allowed}/new.csv'",
    "PREPARE p AS COPY (SELECT 1) TO '{allowed}/new.csv'; EXECUTE p",
    "WITH c AS (COPY (SELECT 1) TO '{allowed}/new.csv') SELECT 1",
    "WITH c AS (/* ü */ copy (SELECT 1) TO '{allowed}/new.csv') SELECT 1",
    "CREATE TABLE t AS WITH c AS (COPY (SELECT 1) TO '{allowed}/new.csv') SELECT 1",
    "CREATE TABLE t (a INTEGER); WITH c AS (COPY (SELECT 1) TO '{allowed}/new.csv')"
    " INSERT INTO t SELECT 1",
    "WITH c AS (COPY (SELECT 1) TO '{input}') SELECT 1",
    "SET enable_external_access = true",
    "SET GLOBAL allowed_directories = ['/']",
    "SET allowed_paths = ['/etc/passwd']",
    "RESET lock_configuration",
    "SET lock_configuration = false",
    "SET autoload_known_extensions = true",
    "SET temp_directory = '{base}'",
    "SET memory_limit = '1TB'",
    "SET threads = 64",
    "SET profile_output = '{base}/new.csv'",
    "PRAGMA enable_profiling",
    "SET log_query_path = '{base}/new.csv'",
    "CALL enable_logging(storage := 'file', storage_config := {{'path': '{base}/log'}})",
    "CREATE PERSISTENT SECRET s (TYPE http, BEARER_TOKEN 'x')",
    "EXPLAIN SELECT 1",
]


def attempt(tmp_path: Path, landlock: str, tries: list[str], **changes: Any) -> list[Any]:
    """Try the statements in a confined process; returns whether the kernel helped, then each."""
    base = tmp_path / "base"
    allowed, job = base / "allowed", base / "job"
    for folder in (allowed / "sub", job / "work", base / "allowedx"):
        folder.mkdir(parents=True)
    for path in (base / "secret.csv", base / "allowedx" / "secret.csv", base / "in.csv"):
        path.write_text("word\nhidden\n")
    (allowed / "in.csv").write_text("word\nopen\n")
    (allowed / "link.csv").symlink_to(base / "secret.csv")
    (allowed / "dirlink").symlink_to(base)
    (allowed / "schema.sql").write_text("CREATE TABLE imported (a INTEGER);")
    (allowed / "load.sql").touch()
    (job / "spec.json").write_text('{"sql": "hidden"}')
    (job / "lock").touch()
    (base / "part").touch()
    names = {
        "base": base,
        "allowed": allowed,
        "job": job,
        "secret": base / "secret.csv",
        "input": base / "in.csv",
        "written": base / "part",
    }
    reach = {
        "files": [str(base / "in.csv")],
        "folders": [str(allowed)],
        "work": str(job / "work"),
        "written": [str(base / "part")],
    } | changes
    options = {"state_dir": str(tmp_path / "state"), "landlock": landlock, "threads": 2}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([options, reach, [sql.format(**names) for sql in tries]]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.fixture(params=["auto", "off"])
def landlock(request: pytest.FixtureRequest) -> str:
    """With the kernel's help where there is any, and without."""
    return str(request.param)


def test_no_statement_gets_out(tmp_path: Path, landlock: str) -> None:
    """Reading, writing, attaching, installing, links, settings: every way out is shut."""
    folders = {} if NEW or landlock == "auto" else {"folders": []}
    confined, *results = attempt(tmp_path, landlock, ESCAPES, **folders)
    if landlock == "auto" and not confined:
        pytest.skip("THIS KERNEL HAS NO LANDLOCK: its part of the sandbox went untested")
    got_out = [
        (sql, said) for sql, (kind, said) in zip(ESCAPES, results, strict=True) if kind == "ran"
    ]
    if not NEW:  # a DuckDB 1 takes an import apart, and each of its statements is asked about
        got_out = [item for item in got_out if "import" not in item[0].lower()]
    base = tmp_path / "base"
    assert got_out == []
    assert not {kind for kind, _ in results} & {"PermissionError", "AttributeError", "TypeError"}
    assert not any("hidden" in said or "root:" in said for _, said in results)
    assert sorted(path.name for path in base.iterdir()) == [
        "allowed",
        "allowedx",
        "in.csv",
        "job",
        "part",
        "secret.csv",
    ]
    assert sorted(path.name for path in (base / "allowed").iterdir()) == [
        "dirlink",
        "in.csv",
        "link.csv",
        "load.sql",
        "schema.sql",
        "sub",
    ]
    assert (base / "in.csv").read_text() == "word\nhidden\n"
    assert (base / "part").read_bytes() == b""


def test_what_a_query_needs_still_works(tmp_path: Path, landlock: str) -> None:
    """Inputs, the operator's folders, spilling to disk, time zones, JSON, and a column ``copy``."""
    tries = [
        "SELECT * FROM '{input}'",
        "SELECT a.word FROM '{allowed}/in.csv' a",
        "SELECT count(*) FROM read_csv('{allowed}/in.*')",
        "SELECT TIMESTAMPTZ '2020-01-01 00:00:00+02' AT TIME ZONE 'Europe/Berlin'",
        "SELECT json_extract('[1, 2]', '$[1]')",
        "CREATE TABLE t (copy INTEGER); SELECT (copy) FROM t; WITH c AS (SELECT copy FROM t)"
        " FROM c",
        "SET VARIABLE v = 1; CREATE SCHEMA s; USE s; SELECT getvariable('v')",
    ]
    folders = {} if NEW or landlock == "auto" else {"folders": []}
    if folders:
        del tries[1:3]
    _, *results = attempt(tmp_path, landlock, tries, **folders)
    assert [kind for kind, _ in results] == ["ran"] * len(tries), results


@pytest.mark.skipif(NEW, reason="DuckDB 2 resolves links itself")
def test_an_old_duckdb_has_no_allowed_folders_without_the_kernel(tmp_path: Path) -> None:
    """DuckDB 1 follows links out of a folder, so it gets none unless Landlock stops that."""
    _, (kind, said) = attempt(tmp_path, "off", ["SELECT 1"])
    assert kind == "PermanentError"
    assert "needs Linux with Landlock, or DuckDB 2" in said


def dataset(uri: object, format_name: str) -> literals_pb2.Literal:
    kind = types_pb2.StructuredDatasetType(format=format_name)
    return literals_pb2.Literal(
        scalar=literals_pb2.Scalar(
            structured_dataset=literals_pb2.StructuredDataset(
                uri=str(uri),
                metadata=literals_pb2.StructuredDatasetMetadata(structured_dataset_type=kind),
            )
        )
    )


def test_a_whole_job_is_confined(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    """Through create and get: the operator's folder opens, its neighbour does not."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "in.csv").write_text("word\nopen\n")
    (tmp_path / "secret.csv").write_text("word\nhidden\n")
    bench = make_bench(allowed_folders=[str(allowed)])
    assert bench.table(f"FROM '{allowed}/in.csv'") == [("open",)]
    said = bench.failure(f"FROM '{tmp_path}/secret.csv'")
    assert "hidden" not in said
    assert "COPY is not allowed here" in bench.failure(f"COPY (SELECT 1) TO '{allowed}/x'")
    meta = bench.create("SELECT content FROM read_text($file)", {"file": "/etc/passwd"})
    assert bench.finish(meta).phase == TaskExecution.FAILED
    assert "root:" not in bench.get(meta).message


def test_inputs_may_not_name_what_holds_secrets(
    make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    """Not even an input reads the system's files, another job's, or, if so set, anything else."""
    bench = make_bench()
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("/etc/passwd")
    home = Path.home()
    for uri, said in (
        ("/etc/passwd", "lies in /etc, which no job may use"),
        (tmp_path / "link", "lies in /etc, which no job may use"),
        (tmp_path / "folder", "link in"),
        ("/proc/self/environ", "lies in /proc"),
        (bench.state, "lies among the job folders"),
    ):
        message = bench.failure("FROM t", {"t": dataset(uri, "csv")})
        assert said in message, message
    if (home / ".profile").exists():
        message = bench.failure("FROM t", {"t": dataset(home / ".profile", "csv")})
        assert "lies in a hidden folder" in message
    for prefix in ("/etc/x", f"{bench.state}/x", "/proc/1"):
        message = bench.failure("SELECT 1", None, {"o": TABLE}, prefix=prefix)
        assert "output_prefix" in message
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    for folder in (allowed, tmp_path):
        (folder / "in.csv").write_text("word\nx\n")
    strict = make_bench(local_inputs="allowed_folders", allowed_folders=[str(allowed)])
    message = strict.failure("FROM t", {"t": dataset(tmp_path / "in.csv", "csv")})
    assert "outside the folders that the operator allows" in message
    assert strict.table("FROM t", {"t": dataset(allowed / "in.csv", "csv")}) == [("x",)]


def test_limits_hold(make_bench: Callable[..., Any]) -> None:
    """Memory, the largest file and the time are the operator's to set."""
    bench = make_bench(memory_limit_mib=32, max_spill_mib=1, time_limit_seconds=1.5)
    assert "Out of Memory Error" in bench.failure(
        "CREATE TABLE t AS SELECT md5(i::VARCHAR) AS a FROM range(3000000) t(i); SELECT 1 AS n",
        None,
        {"n": types_pb2.LiteralType(simple=types_pb2.SimpleType.INTEGER)},
    )
    message = bench.failure(
        "SELECT sum(hash(i)) AS a FROM range(90000000000) t(i)", None, {"o": TABLE}
    )
    assert message == "The job took longer than 1.5 s, the operator's limit."
    bench = make_bench(max_file_mib=1)
    message = bench.failure(
        "SELECT hash(i) AS a, md5(i::VARCHAR) AS b FROM range(300000) t(i)", None, {"o": TABLE}
    )
    assert message.startswith("The job wrote a file larger than 1 MiB, the operator's limit")
    assert list((bench.tmp / "out").rglob("*")) == [bench.tmp / "out" / "0"]
