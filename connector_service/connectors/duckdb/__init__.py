"""The ``duckdb`` connector: SQL in a process of its own that outlives the service, Parquet out."""

from __future__ import annotations

import importlib.util

# First of all: a service without the extra is not to load eleven modules for nothing.
if importlib.util.find_spec("duckdb") is None:
    raise ModuleNotFoundError(
        "The duckdb connector needs DuckDB; run: pip install 'connector-service[duckdb]'",
        name="duckdb",
    )

from connector_service.connectors.duckdb.connector import DuckdbConnector, DuckdbMeta

__all__ = ["DuckdbConnector", "DuckdbMeta"]
