"""DuckDB's types and values as Flyte's."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import re
import uuid
from typing import TYPE_CHECKING, Any

from flyteidl.core import literals_pb2, types_pb2

from connector_service.errors import InvalidInputError
from connector_service.sdk import to_literal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["column_type", "is_scalar", "is_table", "scalar_literal", "table_literal"]

_Simple = types_pb2.SimpleType
_INTEGERS = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?")
_SCALARS = frozenset(
    (
        _Simple.INTEGER,
        _Simple.FLOAT,
        _Simple.STRING,
        _Simple.BOOLEAN,
        _Simple.DATETIME,
        _Simple.DURATION,
    )
)
_BY_NAME = {
    "FLOAT": _Simple.FLOAT,
    "DOUBLE": _Simple.FLOAT,
    "BOOLEAN": _Simple.BOOLEAN,
    "DATE": _Simple.DATETIME,
    "INTERVAL": _Simple.DURATION,
    "BLOB": _Simple.BINARY,
}
# DuckDB hands over infinity as the last moment that Python knows.
_INFINITE = (dt.datetime.max.replace(tzinfo=dt.UTC), dt.datetime.min.replace(tzinfo=dt.UTC))
_SCHEMA_WORDS = types_pb2.SchemaType.SchemaColumn.SchemaColumnType


def column_type(name: str) -> types_pb2.LiteralType:  # noqa: PLR0911 - a table of names
    """Return the literal type of a column that DuckDB describes as ``name``."""
    if element := re.fullmatch(r"(.*)\[\d*\]", name, re.DOTALL):
        return types_pb2.LiteralType(collection_type=column_type(element[1]))
    if value := re.fullmatch(r"MAP\(VARCHAR, (.*)\)", name, re.DOTALL):
        return types_pb2.LiteralType(map_value_type=column_type(value[1]))
    if _INTEGERS.fullmatch(name):
        return types_pb2.LiteralType(simple=_Simple.INTEGER)
    if name.startswith(("STRUCT(", "MAP(", "UNION(")):
        return types_pb2.LiteralType(simple=_Simple.STRUCT)
    if name.startswith("TIMESTAMP"):
        return types_pb2.LiteralType(simple=_Simple.DATETIME)
    if name.startswith("DECIMAL("):
        return types_pb2.LiteralType(simple=_Simple.FLOAT)
    return types_pb2.LiteralType(simple=_BY_NAME.get(name, _Simple.STRING))


def is_table(declared: types_pb2.LiteralType) -> bool:
    """Tell whether a declared output takes the whole result."""
    return _kind(declared).WhichOneof("type") in ("structured_dataset_type", "schema")


def is_scalar(declared: types_pb2.LiteralType) -> bool:
    """Tell whether a declared output takes one value of a single row."""
    kind = _kind(declared)
    arm = kind.WhichOneof("type")
    return arm == "enum_type" or (arm == "simple" and kind.simple in _SCALARS)


def table_literal(
    uri: str, columns: Sequence[tuple[str, str]], declared: types_pb2.LiteralType
) -> literals_pb2.Literal:
    """Build the literal of a Parquet table with ``columns`` as (name, DuckDB's type)."""
    kind = _kind(declared)
    if kind.WhichOneof("type") == "schema":
        schema = types_pb2.SchemaType(
            columns=[
                types_pb2.SchemaType.SchemaColumn(name=name, type=_schema_word(type_name))
                for name, type_name in columns
            ]
        )
        scalar = literals_pb2.Scalar(schema=literals_pb2.Schema(uri=uri, type=schema))
    else:
        table = types_pb2.StructuredDatasetType(
            format="parquet",
            columns=[
                types_pb2.StructuredDatasetType.DatasetColumn(
                    name=name, literal_type=column_type(type_name)
                )
                for name, type_name in columns
            ],
        )
        scalar = literals_pb2.Scalar(
            structured_dataset=literals_pb2.StructuredDataset(
                uri=uri,
                metadata=literals_pb2.StructuredDatasetMetadata(structured_dataset_type=table),
            )
        )
    literal = literals_pb2.Literal(scalar=scalar)
    if declared.WhichOneof("type") == "union_type":
        union = literals_pb2.Union(value=literal, type=kind)
        return literals_pb2.Literal(scalar=literals_pb2.Scalar(union=union))
    return literal


def scalar_literal(name: str, value: Any, declared: types_pb2.LiteralType) -> literals_pb2.Literal:
    """Build the literal of a declared primitive output from what the single row holds.

    Raises:
        InvalidInputError: The value has not the declared type; it names the column.
    """
    kind = _kind(declared)
    if value is None:
        if declared.WhichOneof("type") != "union_type":
            raise InvalidInputError(f"Column {name} is NULL, and the output {name} must be set.")
        return to_literal(None, declared, path=name)
    if kind.WhichOneof("type") == "enum_type":
        coerced: Any = _text(value)
    else:
        coerced = _COERCE[kind.simple](value)
    if coerced is None:
        raise InvalidInputError(
            f"Column {name} holds a {type(value).__name__} that is no"
            f" {_Simple.Name(kind.simple).lower()}, as the output {name} is declared."
        )
    return to_literal(coerced, declared, path=name)


def _kind(declared: types_pb2.LiteralType) -> types_pb2.LiteralType:
    """See through Optional: the one variant that is not none."""
    if declared.WhichOneof("type") != "union_type":
        return declared
    variants = [
        variant
        for variant in declared.union_type.variants
        if not (variant.WhichOneof("type") == "simple" and variant.simple == _Simple.NONE)
    ]
    return variants[0] if len(variants) == 1 else declared


def _schema_word(type_name: str) -> int:
    kind = column_type(type_name)
    words = {
        _Simple.INTEGER: _SCHEMA_WORDS.INTEGER,
        _Simple.FLOAT: _SCHEMA_WORDS.FLOAT,
        _Simple.BOOLEAN: _SCHEMA_WORDS.BOOLEAN,
        _Simple.DATETIME: _SCHEMA_WORDS.DATETIME,
        _Simple.DURATION: _SCHEMA_WORDS.DURATION,
    }
    simple = kind.simple if kind.WhichOneof("type") == "simple" else _Simple.STRING
    return int(words.get(simple, _SCHEMA_WORDS.STRING))


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        return None
    if not math.isfinite(value) or value != int(value):
        return None
    return int(value) if -(1 << 63) <= value < 1 << 63 else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        return None
    return float(value)


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, str | int | float | decimal.Decimal | uuid.UUID):
        return str(value)
    return None


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _datetime(value: Any) -> dt.datetime | None:
    if isinstance(value, dt.datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
        return None if aware in _INFINITE else aware
    if isinstance(value, dt.date) and value not in (dt.date.max, dt.date.min):
        return dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    return None


def _duration(value: Any) -> dt.timedelta | None:
    return value if isinstance(value, dt.timedelta) else None


_COERCE = {
    _Simple.INTEGER: _integer,
    _Simple.FLOAT: _float,
    _Simple.STRING: _text,
    _Simple.BOOLEAN: _boolean,
    _Simple.DATETIME: _datetime,
    _Simple.DURATION: _duration,
}
