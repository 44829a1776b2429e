"""Frozen, validated settings per concern: one definition, three spellings.

A setting has one name. ``drain_delay`` is ``drain_delay`` in the TOML file,
``CONNECTOR_SERVICE_DRAIN_DELAY`` in the environment and ``--drain-delay`` as a flag; a flag
wins over the environment, the environment over the file, the file over the default.
"""

from connector_service.config.hosts import HostSection
from connector_service.config.load import (
    CONNECTORS_TABLE,
    DEFAULT_FILE,
    ENV_PREFIX,
    HOSTS_TABLE,
    Config,
    Field,
    fields,
    load,
)
from connector_service.config.settings import (
    ConnectorSection,
    Drain,
    Hosting,
    Ledger,
    Listen,
    Log,
    Metrics,
    Plugins,
)

__all__ = [
    "CONNECTORS_TABLE",
    "DEFAULT_FILE",
    "ENV_PREFIX",
    "HOSTS_TABLE",
    "Config",
    "ConnectorSection",
    "Drain",
    "Field",
    "HostSection",
    "Hosting",
    "Ledger",
    "Listen",
    "Log",
    "Metrics",
    "Plugins",
    "fields",
    "load",
]
