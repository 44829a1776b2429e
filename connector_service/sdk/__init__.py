"""What connector authors use, and all that a built-in connector may import beside the errors."""

from __future__ import annotations

from connector_service.codec.literals import from_literal_map, to_literal, to_literal_map, to_python
from connector_service.codec.values import Blob, StructuredDataset
from connector_service.sdk.connector import (
    AsyncConnector,
    AsyncConnectorBase,
    ConnectorBase,
    SyncConnectorBase,
)
from connector_service.sdk.deadline import time_remaining
from connector_service.sdk.registry import ConnectorRegistry, Registry
from connector_service.sdk.resource import (
    Phase,
    Resource,
    ResourceMeta,
    TaskCategory,
    convert_to_flyte_phase,
    is_terminal_phase,
)
from connector_service.sdk.secrets import get_connector_secret

__all__ = [
    "AsyncConnector",
    "AsyncConnectorBase",
    "Blob",
    "ConnectorBase",
    "ConnectorRegistry",
    "Phase",
    "Registry",
    "Resource",
    "ResourceMeta",
    "StructuredDataset",
    "SyncConnectorBase",
    "TaskCategory",
    "convert_to_flyte_phase",
    "from_literal_map",
    "get_connector_secret",
    "is_terminal_phase",
    "time_remaining",
    "to_literal",
    "to_literal_map",
    "to_python",
]
