"""The standalone connector service for Flyte; this package re-exports what authors use."""

from __future__ import annotations

from connector_service.errors import (
    ConnectorServiceError,
    GoneError,
    InvalidInputError,
    PermanentError,
    TransientError,
)
from connector_service.sdk import (
    AsyncConnector,
    AsyncConnectorBase,
    Blob,
    ConnectorBase,
    ConnectorRegistry,
    Phase,
    Registry,
    Resource,
    ResourceMeta,
    StructuredDataset,
    SyncConnectorBase,
    TaskCategory,
    convert_to_flyte_phase,
    from_literal_map,
    get_connector_secret,
    is_terminal_phase,
    time_remaining,
    to_literal,
    to_literal_map,
    to_python,
)
from connector_service.version import __version__

__all__ = [
    "AsyncConnector",
    "AsyncConnectorBase",
    "Blob",
    "ConnectorBase",
    "ConnectorRegistry",
    "ConnectorServiceError",
    "GoneError",
    "InvalidInputError",
    "PermanentError",
    "Phase",
    "Registry",
    "Resource",
    "ResourceMeta",
    "StructuredDataset",
    "SyncConnectorBase",
    "TaskCategory",
    "TransientError",
    "__version__",
    "convert_to_flyte_phase",
    "from_literal_map",
    "get_connector_secret",
    "is_terminal_phase",
    "time_remaining",
    "to_literal",
    "to_literal_map",
    "to_python",
]
