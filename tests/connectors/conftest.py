"""A bench for the DuckDB connector: real folders, real child processes, nothing left behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flyteidl.core import interface_pb2, tasks_pb2, types_pb2
from flyteidl.core.execution_pb2 import TaskExecution

from connector_service.connectors.duckdb.jobs import reap
from connector_service.sdk import is_terminal_phase, to_literal_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from connector_service.connectors.duckdb import DuckdbConnector, DuckdbMeta
    from connector_service.sdk import Resource

SIMPLE = types_pb2.SimpleType
TABLE = types_pb2.LiteralType(structured_dataset_type=types_pb2.StructuredDatasetType())


def template(
    sql: str, outputs: Mapping[str, types_pb2.LiteralType] | None = None
) -> tasks_pb2.TaskTemplate:
    declared = {name: interface_pb2.Variable(type=kind) for name, kind in (outputs or {}).items()}
    return tasks_pb2.TaskTemplate(
        type="duckdb",
        interface=interface_pb2.TypedInterface(
            outputs=interface_pb2.VariableMap(variables=declared)
        ),
        sql=tasks_pb2.Sql(statement=sql),
    )


def simple(kind: str) -> types_pb2.LiteralType:
    return types_pb2.LiteralType(simple=SIMPLE.Value(kind))


def read(uri: str) -> list[tuple[Any, ...]]:
    """Read a Parquet file, times with a zone as text."""
    import duckdb  # noqa: PLC0415 - as above

    with duckdb.connect() as connection:
        return connection.execute("SELECT * FROM read_parquet($1)", [uri]).fetchall()


def until(done: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Bench:
    """One configured connector, its state folder, and a place for results."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        # Not at the top: these tests are skipped where DuckDB is not installed.
        from connector_service.connectors.duckdb import DuckdbConnector  # noqa: PLC0415

        self.tmp = tmp_path
        self.state = tmp_path / "state"
        self.options = {"state_dir": str(self.state), "threads": 1, "memory_limit_mib": 256}
        self.options |= options
        self.connector: DuckdbConnector = DuckdbConnector()
        self.connector.configure(self.options)
        self.metas: list[DuckdbMeta] = []

    @property
    def prefix(self) -> str:
        """A fresh output prefix, as propeller makes one a node and attempt."""
        return str(self.tmp / "out" / str(len(self.metas)))

    def create(
        self,
        sql: str,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, types_pb2.LiteralType] | None = None,
        prefix: str | None = None,
        **more: Any,
    ) -> DuckdbMeta:
        meta: DuckdbMeta = self.connector.create(
            template(sql, outputs),
            self.prefix if prefix is None else prefix,
            to_literal_map(inputs or {}),
            None,
            **more,
        )
        self.metas.append(meta)
        return meta

    def get(self, meta: DuckdbMeta) -> Resource:
        return self.connector.get(meta)

    def finish(self, meta: DuckdbMeta, seconds: float = 30) -> Resource:
        until(lambda: is_terminal_phase(self.get(meta).phase), seconds)
        return self.get(meta)

    def run(self, sql: str, *args: Any, **kwargs: Any) -> Resource:
        return self.finish(self.create(sql, *args, **kwargs))

    def table(self, sql: str, inputs: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run SQL whose result is a table and read that table back."""
        resource = self.run(sql, inputs, {"o0": TABLE})
        assert TaskExecution.Phase.Name(resource.phase) == "SUCCEEDED", resource.message
        return read(resource.outputs.literals["o0"].scalar.structured_dataset.uri)

    def failure(self, sql: str, *args: Any, **kwargs: Any) -> str:
        """Run SQL that fails for good, and return what the user is told."""
        resource = self.run(sql, *args, **kwargs)
        assert TaskExecution.Phase.Name(resource.phase) == "FAILED", resource.message
        return resource.message

    def folder(self, meta: DuckdbMeta) -> Path:
        return self.state / meta.job_id

    def pid(self, meta: DuckdbMeta) -> int:
        """The job's process, once it runs the SQL."""
        until(lambda: self.get(meta).phase == TaskExecution.RUNNING)
        return json.loads((self.folder(meta) / "state.json").read_text())["pid"]

    @staticmethod
    def read(uri: str) -> list[tuple[Any, ...]]:
        return read(uri)

    until = staticmethod(until)
    running = staticmethod(running)

    def log(self, meta: DuckdbMeta) -> str:
        return (self.folder(meta) / "log").read_text()

    def close(self) -> None:
        for meta in self.metas:
            self.connector.delete(meta)
        until(lambda: reap() == 0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        folder = tmp_path / f"bench{len(made)}"
        folder.mkdir()
        made.append(Bench(folder, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.close()
