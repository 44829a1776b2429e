"""The ``duckdb`` connector: SQL in a process of its own that outlives the service, Parquet out."""

from __future__ import annotations

from connector_service.connectors.duckdb.connector import DuckdbConnector, DuckdbMeta

__all__ = ["DuckdbConnector", "DuckdbMeta"]
