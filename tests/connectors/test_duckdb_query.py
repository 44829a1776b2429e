"""The SQL of a task runs as its user wrote it: inputs in, tables and values out."""

from __future__ import annotations

import datetime as dt
import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
from flyteidl.core import interface_pb2, literals_pb2, tasks_pb2, types_pb2
from flyteidl.core.execution_pb2 import TaskExecution

from connector_service.errors import InvalidInputError
from connector_service.sdk import to_python

duckdb = pytest.importorskip("duckdb")

if TYPE_CHECKING:
    from pathlib import Path

SIMPLE = types_pb2.SimpleType
TABLE = types_pb2.LiteralType(structured_dataset_type=types_pb2.StructuredDatasetType())


def simple(kind: str) -> types_pb2.LiteralType:
    return types_pb2.LiteralType(simple=SIMPLE.Value(kind))


def optional(kind: types_pb2.LiteralType) -> types_pb2.LiteralType:
    return types_pb2.LiteralType(union_type=types_pb2.UnionType(variants=[kind, simple("NONE")]))


def dataset(uri: object, format_name: str = "") -> literals_pb2.Literal:
    kind = types_pb2.StructuredDatasetType(format=format_name)
    return literals_pb2.Literal(
        scalar=literals_pb2.Scalar(
            structured_dataset=literals_pb2.StructuredDataset(
                uri=str(uri),
                metadata=literals_pb2.StructuredDatasetMetadata(structured_dataset_type=kind),
            )
        )
    )


def write(sql: str, path: Path, format_name: str = "parquet") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({sql}) TO $${path}$$ (FORMAT {format_name})")


def test_every_primitive_binds_by_name_and_keeps_its_type(bench: Any) -> None:
    """A parameter is typed: nothing is pasted into the SQL, and an input may stay unused."""
    moment = dt.datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=dt.UTC)
    (row,) = bench.table(
        "SELECT $whole + 1 AS i, $part * 2 AS f, $text AS s, $yes AS b,"
        " $moment = TIMESTAMP '2024-05-06 07:08:09.123456' AS t, $length AS d,"
        " $Nothing IS NULL AS n, list_contains($many, 3) AS l, typeof($moment) AS kind",
        {
            "whole": 41,
            "part": 0.25,
            "text": "'; DROP TABLE x; --",
            "yes": True,
            "moment": moment,
            "length": dt.timedelta(days=2, seconds=3.5),
            "nothing": None,
            "many": [1, 2, 3],
            "unused": "never mentioned",
        },
    )
    assert row == (
        42,
        0.5,
        "'; DROP TABLE x; --",
        True,
        True,
        dt.timedelta(days=2, seconds=3.5),
        True,
        True,
        "TIMESTAMP WITH TIME ZONE",
    )


def test_what_cannot_bind_is_said_by_name(bench: Any, tmp_path: Path) -> None:
    """A parameter without an input, a table as a parameter and a file each have their sentence."""
    write("SELECT 1 AS a", tmp_path / "t.parquet")
    blob = literals_pb2.Literal(scalar=literals_pb2.Scalar(blob=literals_pb2.Blob(uri="s3://b/f")))
    inputs = {"a": 1, "t": dataset(tmp_path / "t.parquet"), "f": blob}
    assert bench.failure("SELECT $b", inputs) == (
        "The SQL's parameter $b has no input of that name; inputs: a."
    )
    assert "FROM" in bench.failure("SELECT $t", inputs)
    assert bench.failure("SELECT $f", inputs) == (
        "The input f is a Blob, which no parameter of the SQL can hold."
    )
    assert "inputs: a." in bench.failure("SELECT ?", inputs)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 1 AS a -- a comment", [(1,)]),
        ("SELECT ';' AS a /* ; */ ; -- the end ; \n;", [(";",)]),
        ("CREATE TABLE t AS SELECT $x AS a; INSERT INTO t VALUES (8); FROM t ORDER BY a", 2),
        ("SET VARIABLE v = 5; SELECT getvariable('v') AS a", [(5,)]),
        ("PIVOT (SELECT 'k' AS a, 2 AS b) ON a USING max(b)", [(2,)]),
        ("WITH a AS (SELECT 'ü' AS u) SELECT * FROM a;", [("ü",)]),
        ("BEGIN; CREATE TABLE t (a INTEGER); COMMIT; SELECT count(*) FROM t", [(0,)]),
        ("SELECT * FROM range(5) r(i) ORDER BY i DESC", [(4,), (3,), (2,), (1,), (0,)]),
        ("VALUES (1, 'a')", [(1, "a")]),
        ("SELECT 1 AS a WHERE false", []),
    ],
)
def test_the_last_statement_is_the_result(bench: Any, sql: str, rows: Any) -> None:
    """Several statements run in order, whatever comments and semicolons stand between them."""
    if rows == 2:
        rows = [(7,), (8,)]
    assert bench.table(sql, {"x": 7}) == rows


def test_table_inputs_are_read_by_name_in_each_format(bench: Any, tmp_path: Path) -> None:
    """Parquet (also when nothing is said), CSV and JSON; one file, or a folder as SDKs write it."""
    write("SELECT 1 AS a", tmp_path / "one.parquet")
    write("SELECT 2 AS a", tmp_path / "flytekit" / "00000")
    write("SELECT 3 AS a", tmp_path / "hive" / "k=x" / "part-0.parquet")
    (tmp_path / "hive" / "_SUCCESS").touch()
    (tmp_path / "hive" / ".part-0.parquet.crc").write_bytes(b"junk")
    write("SELECT 4 AS a", tmp_path / "pandas" / ".csv", "csv")
    write("SELECT 5 AS a", tmp_path / "lines.json", "json")
    write("SELECT 6 AS a", tmp_path / "odd [1]*? ü'\".parquet")
    rows = bench.table(
        'SELECT a FROM one UNION ALL FROM (SELECT a FROM "two words") UNION ALL SELECT a FROM hive'
        " WHERE k = 'x' UNION ALL SELECT a FROM csv UNION ALL SELECT a FROM lines"
        " UNION ALL SELECT a FROM odd ORDER BY a",
        {
            "one": dataset(f"file://{tmp_path}/one.parquet"),
            "two words": dataset(tmp_path / "flytekit", "PARQUET"),
            "hive": dataset(tmp_path / "hive"),
            "csv": dataset(tmp_path / "pandas", "csv"),
            "lines": dataset(tmp_path / "lines.json", "json"),
            "odd": dataset(tmp_path / "odd [1]*? ü'\".parquet"),
        },
    )
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_table_input_that_cannot_be_read_is_said_by_name(bench: Any, tmp_path: Path) -> None:
    """Missing, empty, of another format, or of a format nobody reads: FAILED or refused at once."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.parquet").write_bytes(b"not parquet at all")
    for uri, said in (
        (tmp_path / "no", f"Input t: cannot read {tmp_path}/no: No such file or directory."),
        (tmp_path / "empty", f"Input t: the folder {tmp_path}/empty holds no file."),
        (tmp_path / "junk.parquet", "Input t: Invalid Input Error"),
    ):
        assert said in bench.failure("SELECT 1", {"t": dataset(uri)})
    with pytest.raises(InvalidInputError, match="format 'avro'; tables are read as parquet"):
        bench.create("SELECT 1", {"t": dataset("/x", "avro")})
    for uri in ("relative/path", "file://elsewhere/x", ""):
        with pytest.raises(InvalidInputError):
            bench.create("SELECT 1", {"t": dataset(uri)})


def test_a_result_names_its_columns_and_their_types(bench: Any) -> None:
    """The literal's schema is what a reader of the Parquet file will find."""
    resource = bench.run(
        "SELECT 1::UTINYINT AS i, 1.5::DECIMAL(9, 2) AS f, 'x' AS s, true AS b, DATE '2020-01-01'"
        " AS d, now() AS t, INTERVAL 1 DAY AS e, 'x'::BLOB AS y, [1] AS l, MAP {'k': 1.5::DOUBLE}"
        " AS m, {'a': 1} AS r, uuid() AS u, [{'a': [1]}] AS n",
        None,
        {"o0": TABLE},
    )
    written = resource.outputs.literals["o0"].scalar.structured_dataset
    kind = written.metadata.structured_dataset_type
    assert resource.message.startswith("1 row, ")
    assert kind.format == "parquet"
    assert written.uri == f"{bench.tmp}/out/0/o0.parquet"
    assert [path.name for path in (bench.tmp / "out" / "0").iterdir()] == ["o0.parquet"]
    found = {
        column.name: column.literal_type.WhichOneof("type")
        if column.literal_type.WhichOneof("type") != "simple"
        else SIMPLE.Name(column.literal_type.simple)
        for column in kind.columns
    }
    assert found == {
        "i": "INTEGER",
        "f": "FLOAT",
        "s": "STRING",
        "b": "BOOLEAN",
        "d": "DATETIME",
        "t": "DATETIME",
        "e": "DURATION",
        "y": "BINARY",
        "l": "collection_type",
        "m": "map_value_type",
        "r": "STRUCT",
        "u": "STRING",
        "n": "collection_type",
    }


def test_declared_columns_are_checked_and_integers_stay_integers(bench: Any) -> None:
    """sum() of integers is no DOUBLE where the interface says integer; a lacking column is told."""
    column = types_pb2.StructuredDatasetType.DatasetColumn
    declared = types_pb2.LiteralType(
        structured_dataset_type=types_pb2.StructuredDatasetType(
            columns=[column(name="total", literal_type=simple("INTEGER"))]
        )
    )
    resource = bench.run(
        "SELECT sum(i) AS total FROM (VALUES (9007199254740993), (0)) t(i)", None, {"o": declared}
    )
    written = resource.outputs.literals["o"].scalar.structured_dataset
    assert bench.read(written.uri) == [(9007199254740993,)]
    said = bench.failure("SELECT 1 AS amount", None, {"o": declared})
    assert said == "The output o declares the column total; the result has amount."


def test_the_older_schema_kind_is_filled_too(bench: Any) -> None:
    """A ``schema`` output gets a schema literal with its words for the columns."""
    declared = types_pb2.LiteralType(schema=types_pb2.SchemaType())
    resource = bench.run("SELECT 1 AS a, 'x' AS b", None, {"o": declared})
    schema = resource.outputs.literals["o"].scalar.schema
    kinds = [(column.name, column.type) for column in schema.type.columns]
    words = types_pb2.SchemaType.SchemaColumn.SchemaColumnType
    assert kinds == [("a", words.INTEGER), ("b", words.STRING)]
    assert bench.read(schema.uri) == [(1, "x")]


def test_a_single_row_fills_declared_primitives(bench: Any) -> None:
    """By column name, without case; a table next to them holds the same row."""
    outputs = {
        "i": simple("INTEGER"),
        "huge": simple("INTEGER"),
        "f": simple("FLOAT"),
        "money": simple("FLOAT"),
        "s": simple("STRING"),
        "u": simple("STRING"),
        "b": simple("BOOLEAN"),
        "t": simple("DATETIME"),
        "z": simple("DATETIME"),
        "d": simple("DATETIME"),
        "e": simple("DURATION"),
        "n": optional(simple("INTEGER")),
        "o": optional(simple("INTEGER")),
    }
    sql = (
        "SELECT 1::TINYINT AS I, sum(9007199254740993) AS huge, 2 AS f, 1.25::DECIMAL(9, 2) AS"
        " money, 'x' AS s, TIME '10:11:12' AS u, true AS b, TIMESTAMP '2020-01-02 03:04:05.6' AS t,"
        " TIMESTAMPTZ '2020-01-02 03:04:05+02' AS z, DATE '2020-01-02' AS d,"
        " INTERVAL '90 minutes' AS e, NULL AS n, 3 AS o, 'more' AS extra"
    )
    resource = bench.run(sql, None, outputs)
    assert resource.phase == TaskExecution.SUCCEEDED, resource.message
    values = {name: to_python(item) for name, item in resource.outputs.literals.items()}
    day = dt.datetime(2020, 1, 2, tzinfo=dt.UTC)
    assert values == {
        "i": 1,
        "huge": 9007199254740993,
        "f": 2.0,
        "money": 1.25,
        "s": "x",
        "u": "10:11:12",
        "b": True,
        "t": day + dt.timedelta(hours=3, minutes=4, seconds=5.6),
        "z": day + dt.timedelta(hours=1, minutes=4, seconds=5),
        "d": day,
        "e": dt.timedelta(minutes=90),
        "n": None,
        "o": 3,
    }
    both = bench.run("SELECT 3 AS n", None, {"n": simple("INTEGER"), "o": TABLE})
    assert to_python(both.outputs.literals["n"]) == 3
    assert bench.read(both.outputs.literals["o"].scalar.structured_dataset.uri) == [(3,)]


@pytest.mark.parametrize(
    ("sql", "kind", "said"),
    [
        ("SELECT 1 AS a", "INTEGER", "no column for the declared output x; it has a."),
        ("SELECT 1 AS x WHERE false", "INTEGER", "The result has no row; the declared output x"),
        ("SELECT i AS x FROM range(9) t(i)", "INTEGER", "The result has more than one row;"),
        ("SELECT NULL AS x", "INTEGER", "Column x is NULL, and the output x must be set."),
        ("SELECT 'a' AS x", "INTEGER", "Column x holds a str that is no integer, as the output"),
        ("SELECT 1.5 AS x", "INTEGER", "Column x holds a Decimal that is no integer"),
        ("SELECT 1 AS x", "BOOLEAN", "Column x holds a int that is no boolean"),
        ("SELECT 'infinity'::TIMESTAMP AS x", "DATETIME", "that is no datetime"),
        ("SELECT 2::HUGEINT ** 100 AS x; SELECT 1::HUGEINT << 100 AS x", "INTEGER", "no integer"),
        ("CREATE TABLE t (x INTEGER)", "INTEGER", "The last statement is CREATE, which gives no"),
        ("-- nothing", "INTEGER", "The SQL holds no statement."),
        ("SELECT repeat('x', 2000000) AS x", "STRING", "a primitive output holds 1048576 at most"),
    ],
)
def test_a_result_that_does_not_fit_its_declaration(
    bench: Any, sql: str, kind: str, said: str
) -> None:
    """The job is FAILED, with a sentence that names the column or the number of rows."""
    assert said in bench.failure(sql, None, {"x": simple(kind)})


def test_without_declared_outputs_the_sql_just_runs(bench: Any) -> None:
    """Nothing is written, and the outputs are set and empty."""
    resource = bench.run("CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1)")
    assert resource.phase == TaskExecution.SUCCEEDED
    assert resource.outputs == literals_pb2.LiteralMap()
    assert not (bench.tmp / "out").exists()


def test_sql_errors_come_in_duckdbs_own_words(bench: Any) -> None:
    """FAILED, not retryable, with DuckDB's message and the user's own line numbers."""
    said = bench.failure("SELECT 1 AS a,\n  nope\nFROM range(3)", None, {"o": TABLE})
    assert said.startswith('Binder Error: Referenced column "nope" not found')
    assert "LINE 2:   nope" in said
    assert bench.failure("SELEC 1").startswith("Parser Error: syntax error at or near")
    said = bench.failure("SELECT error($text) AS a", {"text": "x" * 20_000}, {"o": TABLE})
    assert said.endswith("x ...")
    assert len(said.encode()) <= 4096
    assert not list((bench.tmp / "out").rglob("*.part"))


def test_what_a_create_refuses_at_once(bench: Any, make_bench: Any) -> None:
    """No process is started for a template that could never run."""
    folder = types_pb2.LiteralType(blob=types_pb2.BlobType())
    for sql, outputs, said in (
        ("  ", {}, "sql.statement is empty"),
        ("SELECT 1" + " " * (1 << 20), {}, "longer than 1048576 bytes"),
        ("SELECT 1", {"o": folder}, "o is declared as blob"),
        ("SELECT 1", {"a": TABLE, "b": TABLE}, "declares the tables a, b"),
        ("SELECT 1", {"../x": TABLE}, "a name that no file can have"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            bench.create(sql, None, outputs)
    with pytest.raises(InvalidInputError, match="ftp:// is no place that the operator lets"):
        bench.create("SELECT 1", prefix="ftp://host/x")
    with pytest.raises(InvalidInputError, match="allowed: local paths, s3"):
        make_bench(remote_schemes=["s3"]).create("SELECT 1", {"t": dataset("s3::file:///x")})
    assert list(bench.state.iterdir()) == []


def test_declared_formats_apply_when_the_literal_has_none(bench: Any, tmp_path: Path) -> None:
    """The interface's format counts where the input's literal leaves it open."""
    write("SELECT 'x' AS a", tmp_path / "in", "csv")
    declared = types_pb2.LiteralType(
        structured_dataset_type=types_pb2.StructuredDatasetType(format="csv")
    )
    made = tasks_pb2.TaskTemplate(
        sql=tasks_pb2.Sql(statement="SELECT count(*) AS n FROM t"),
        interface=interface_pb2.TypedInterface(
            inputs=interface_pb2.VariableMap(
                variables={"t": interface_pb2.Variable(type=declared)}
            ),
            outputs=interface_pb2.VariableMap(
                variables={"n": interface_pb2.Variable(type=simple("INTEGER"))}
            ),
        ),
    )
    inputs = literals_pb2.LiteralMap(literals={"t": dataset(tmp_path / "in")})
    bench.metas.append(bench.connector.create(made, bench.prefix, inputs, None))
    resource = bench.finish(bench.metas[-1])
    assert to_python(resource.outputs.literals["n"]) == 1


def test_without_an_output_prefix_the_result_stays_in_the_job_folder(bench: Any) -> None:
    """Each such job is a new one; another job may read the result, and only that."""
    first = bench.create("SELECT 7 AS a", None, {"o": TABLE}, prefix="")
    second = bench.create("SELECT 8 AS a", None, {"o": TABLE}, prefix="")
    assert first.job_id != second.job_id
    uri = bench.finish(first).outputs.literals["o"].scalar.structured_dataset.uri
    assert uri == f"{bench.state}/{first.job_id}/output/o.parquet"
    assert bench.table("FROM t", {"t": dataset(uri)}) == [(7,)]
    said = bench.failure("FROM t", {"t": dataset(bench.state / first.job_id / "result.json")})
    assert "lies among the job folders" in said


def test_other_stores_are_reached_through_fsspec(make_bench: Any, tmp_path: Path) -> None:
    """Inputs are fetched, the result is put; ``local`` stands for a store, through fsspec."""
    pytest.importorskip("fsspec")
    bench = make_bench(remote_schemes=["local"], max_spill_mib=1)
    write("SELECT 1 AS a", tmp_path / "store" / "in" / "k=1" / "00000")
    write("SELECT 2 AS a", tmp_path / "store" / "in" / "k=2" / "00000")
    resource = bench.run(
        "SELECT a, k FROM t ORDER BY a",
        {"t": dataset(f"local://{tmp_path}/store/in")},
        {"o": TABLE},
        prefix=f"local://{tmp_path}/store",
    )
    uri = resource.outputs.literals["o"].scalar.structured_dataset.uri
    assert uri == f"local://{tmp_path}/store/o.parquet"
    assert bench.read(str(tmp_path / "store" / "o.parquet")) == [(1, 1), (2, 2)]
    said = bench.failure("FROM t", {"t": dataset(f"local://{tmp_path}/store/none")})
    assert said == f"local://{tmp_path}/store/none does not exist."
    (tmp_path / "store" / "big").write_bytes(bytes(2 << 20))
    said = bench.failure("FROM t", {"t": dataset(f"local://{tmp_path}/store/big")})
    assert "above 1 MiB, the operator's limit" in said
    assert not (bench.folder(bench.metas[-1]) / "work").exists()


def test_without_fsspec_other_stores_name_what_to_install(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence is the operator's next command."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(InvalidInputError, match=r"pip install 'connector-service\[fsspec\]'"):
        bench.create("SELECT 1", prefix="s3://bucket/x")
