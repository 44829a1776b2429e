"""One job's SQL: each statement in turn, and the last one's result as the declared outputs."""

# ruff: noqa: S608 - running the user's SQL is the point; the names that we add are quoted
from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flyteidl.core import literals_pb2, types_pb2

from connector_service.connectors.duckdb.folder import unpack
from connector_service.connectors.duckdb.sandbox import refuse_statement
from connector_service.connectors.duckdb.types import scalar_literal, table_literal
from connector_service.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connector_service.connectors.duckdb.files import Source, Target
    from connector_service.connectors.duckdb.folder import Output, Spec

__all__ = ["Outcome", "Query", "quote"]

_MOST_STATEMENTS = 10_000
_MOST_COLUMNS = 5_000
_LONGEST_VALUE = 1 << 20  # characters; a longer text belongs into a table
_READERS = {"parquet": "read_parquet", "csv": "read_csv", "json": "read_json"}


@dataclass(frozen=True)
class Outcome:
    """What the SQL came to: the outputs' literals and, when a table was written, its rows."""

    outputs: literals_pb2.LiteralMap
    rows: int | None


class Query:
    """Runs one spec's SQL on one confined connection."""

    def __init__(
        self, connection: Any, spec: Spec, *, confined: bool, log: Callable[[str], None]
    ) -> None:
        """Take the connection, the spec, and where to say what is done."""
        self._connection = connection
        self._spec = spec
        self._confined = confined
        self._log = log
        self._parameters = {
            name.casefold(): unpack(value) for name, value in spec.parameters.items()
        }

    def add_tables(self, sources: Sequence[Source]) -> None:
        """Make every table input readable under its name.

        Raises:
            InvalidInputError: A file is not of its format.
        """
        import duckdb  # noqa: PLC0415 - only the child loads it

        for source in sources:
            files = ", ".join(quote(str(path), "'") for path in source.files)
            try:
                self._connection.execute(
                    f"CREATE VIEW {quote(source.name)} AS"
                    f" SELECT * FROM {_READERS[source.format]}([{files}])"
                )
            except duckdb.Error as error:
                raise InvalidInputError(f"Input {source.name}: {error}") from None

    def run(self, target: Target | None) -> Outcome:
        """Run the SQL; the result goes to ``target`` when a table is declared.

        Raises:
            InvalidInputError: The SQL is not allowed, lacks an input, or its result does not fit
                the declared outputs.
            duckdb.Error: As DuckDB says it.
        """
        import duckdb  # noqa: PLC0415 - as above

        statements = self._split()
        for number, statement in enumerate(statements, 1):
            refuse_statement(self._connection, statement, confined=self._confined)
            parameters = self._bind(statement)
            last = number == len(statements)
            started = time.monotonic()
            if last and self._spec.outputs:
                try:
                    outcome = self._finish(statement, parameters, target)
                except duckdb.Error as error:
                    raise type(error)(_renumbered(str(error))) from error
            else:
                self._execute(statement.query, parameters)
                outcome = Outcome(literals_pb2.LiteralMap(), None)
            seconds = time.monotonic() - started
            self._log(
                f"statement {number} of {len(statements)} ({statement.type.name}) took"
                f" {seconds:.3f} s"
            )
        return outcome

    def _split(self) -> list[Any]:
        statements = self._connection.extract_statements(self._spec.sql)
        if not statements:
            raise InvalidInputError("The SQL holds no statement.")
        if len(statements) > _MOST_STATEMENTS:
            raise InvalidInputError(f"The SQL holds more than {_MOST_STATEMENTS} statements.")
        if not any(statement.query for statement in statements):
            # DuckDB 1.4 takes a PIVOT apart and forgets its text; it is one statement all the same.
            return [_Whole(self._spec.sql, statements)]
        return list(statements)

    def _bind(self, statement: Any) -> dict[str, Any]:
        bound = {}
        for name in sorted(statement.named_parameters):
            if name.casefold() not in self._parameters:
                raise InvalidInputError(self._missing(name))
            bound[name] = self._parameters[name.casefold()]
        return bound

    def _missing(self, name: str) -> str:
        if name in self._spec.unbindable:
            return (
                f"The input {name} is {self._spec.unbindable[name]}, which no parameter of the SQL"
                f" can hold."
            )
        if any(table.name == name for table in self._spec.tables):
            return f"The input {name} is a table: read it as FROM {quote(name)}, not as ${name}."
        known = ", ".join(sorted(self._spec.parameters)) or "none"
        return f"The SQL's parameter ${name} has no input of that name; inputs: {known}."

    def _finish(self, statement: Any, parameters: dict[str, Any], target: Target | None) -> Outcome:
        if statement.type.name not in ("SELECT", "MULTI"):
            raise InvalidInputError(
                f"The last statement is {statement.type.name}, which gives no table for the"
                f" declared outputs ({', '.join(item.name for item in self._spec.outputs)});"
                f" end with a SELECT."
            )
        # On a line of its own, so that a comment at its end hides nothing of ours.
        query = f"(\n{_without_semicolon(statement.query)}\n)"
        table = next((output for output in self._spec.outputs if output.is_table), None)
        outputs = literals_pb2.LiteralMap()
        rows = None
        row = f"row_{uuid.uuid4().hex}"
        if table is None or target is None:
            self._execute(f"CREATE TEMP TABLE {row} AS SELECT * FROM {query} LIMIT 2", parameters)
        else:
            columns = self._write(query, parameters, table, target)
            self._log(f"wrote {len(columns)} columns")
            declared = types_pb2.LiteralType.FromString(table.literal_type)
            outputs.literals[table.name].CopyFrom(table_literal(target.uri, columns, declared))
            written = quote(str(target.partial), "'")
            rows = int(self._value(f"SELECT sum(num_rows) FROM parquet_file_metadata({written})"))
            if any(not output.is_table for output in self._spec.outputs):
                self._execute(
                    f"CREATE TEMP TABLE {row} AS SELECT * FROM read_parquet({written}) LIMIT 2"
                )
        scalars = [output for output in self._spec.outputs if not output.is_table]
        if scalars:
            self._fill(row, scalars, outputs, rows)
        return Outcome(outputs, rows)

    def _write(
        self, query: str, parameters: dict[str, Any], table: Output, target: Target
    ) -> list[tuple[str, str]]:
        """Stream the result to Parquet; return the columns as a reader will find them."""
        found = self._describe(query, parameters)
        if len(found) > _MOST_COLUMNS:
            raise InvalidInputError(
                f"The result has {len(found)} columns; a table output has {_MOST_COLUMNS} at most."
            )
        declared = _declared_columns(types_pb2.LiteralType.FromString(table.literal_type))
        names = [name for name, _ in found]
        if missing := [name for name in declared if name not in names]:
            raise InvalidInputError(
                f"The output {table.name} declares the column {', '.join(missing)}; the result has"
                f" {', '.join(names)}."
            )
        # sum() of integers is a HUGEINT, which Parquet lacks: DuckDB would write a DOUBLE.
        casts = [
            f"CAST({quote(name)} AS BIGINT) AS {quote(name)}"
            for name, kind in found
            if kind in ("HUGEINT", "UHUGEINT")
            and declared.get(name) == types_pb2.SimpleType.INTEGER
        ]
        replaced = f" REPLACE ({', '.join(casts)})" if casts else ""
        written = quote(str(target.partial), "'")
        self._execute(
            f"COPY (SELECT *{replaced} FROM {query}) TO {written}"
            f" (FORMAT parquet, USE_TMP_FILE false)",
            parameters,
        )
        return self._describe(f"read_parquet({written})", {})

    def _describe(self, relation: str, parameters: dict[str, Any]) -> list[tuple[str, str]]:
        cursor = self._execute(f"DESCRIBE SELECT * FROM {relation}", parameters)
        return [(str(row[0]), str(row[1])) for row in cursor.fetchall()]

    def _fill(
        self,
        row: str,
        scalars: Sequence[Output],
        outputs: literals_pb2.LiteralMap,
        rows: int | None,
    ) -> None:
        """Fill the declared primitives from the single row, matching names without case."""
        columns = {name.casefold(): (name, kind) for name, kind in self._describe(row, {})}
        missing = [item.name for item in scalars if item.name.casefold() not in columns]
        if missing:
            raise InvalidInputError(
                f"The result has no column for the declared output {', '.join(missing)}; it has"
                f" {', '.join(name for name, _ in columns.values())}."
            )
        count = self._value(f"SELECT count(*) FROM {row}")
        if count != 1:
            said = "no row" if not count else f"{rows} rows" if rows else "more than one row"
            raise InvalidInputError(
                f"The result has {said}; the declared output"
                f" {', '.join(item.name for item in scalars)} takes a single row."
            )
        for item in scalars:
            name, kind = columns[item.name.casefold()]
            value = self._value(f"SELECT {_readable(name, kind)} FROM {row}")
            if isinstance(value, str | bytes) and len(value) > _LONGEST_VALUE:
                raise InvalidInputError(
                    f"Column {name} holds {len(value)} characters; a primitive output holds"
                    f" {_LONGEST_VALUE} at most, a table holds any."
                )
            declared = types_pb2.LiteralType.FromString(item.literal_type)
            outputs.literals[item.name].CopyFrom(scalar_literal(item.name, value, declared))

    def _value(self, sql: str) -> Any:
        return self._execute(sql).fetchone()[0]

    def _execute(self, sql: str, parameters: dict[str, Any] | None = None) -> Any:
        return self._connection.execute(sql, parameters or None)


@dataclass(frozen=True)
class _Whole:
    """A statement that DuckDB took apart, put together again."""

    query: str
    parts: Sequence[Any]

    @property
    def type(self) -> Any:
        return self.parts[-1].type

    @property
    def named_parameters(self) -> set[str]:
        return {name for part in self.parts for name in part.named_parameters}


def quote(text: str, mark: str = '"') -> str:
    """Quote an identifier, or with ``'`` a string, for SQL."""
    return f"{mark}{text.replace(mark, mark * 2)}{mark}"


def _without_semicolon(query: str) -> str:
    """Blank the semicolons that end a statement, whatever comments stand around them."""
    import duckdb  # noqa: PLC0415 - only the child loads it

    data = bytearray(query.encode())
    for offset, kind in reversed(duckdb.tokenize(query)):
        if kind.name == "comment":
            continue
        if kind.name != "operator" or data[offset : offset + 1] != b";":
            break
        data[offset : offset + 1] = b" "
    return data.decode()


def _renumbered(text: str) -> str:
    """Count the lines of an error from the user's first one, not from ours before it."""

    def shift(found: re.Match[str]) -> str:
        number = str(max(1, int(found[1]) - 1))
        return f"LINE {number}:{' ' * (len(found[1]) - len(number))}"

    return re.sub(r"(?m)^LINE (\d+):", shift, text)


def _declared_columns(declared: types_pb2.LiteralType) -> dict[str, int]:
    return {
        column.name: column.literal_type.simple
        for column in declared.structured_dataset_type.columns
    }


def _readable(name: str, kind: str) -> str:
    """Select a column in a form that needs no further library to become Python's."""
    column = quote(name)
    if kind == "TIMESTAMP WITH TIME ZONE":
        return f"({column} AT TIME ZONE 'UTC')"
    if re.match(r"TIME\b|BIT|ENUM|TIME_NS|BIGNUM|GEOMETRY", kind):
        return f"CAST({column} AS VARCHAR)"
    return column
