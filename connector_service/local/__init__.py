"""Run a connector's jobs from here: what authors and users of tasks import.

A class written for flytekit's mixins needs only its import changed::

    from connector_service.local import AsyncConnectorExecutorMixin
"""

from __future__ import annotations

from connector_service.errors import JobFailedError
from connector_service.local.backends import Backend, InProcess, Remote, local_registry
from connector_service.local.display import Display
from connector_service.local.mixins import (
    AsyncConnectorExecutorMixin,
    SyncConnectorExecutorMixin,
)
from connector_service.local.runner import Job, LocalRun
from connector_service.local.task import ConnectorTask, ContainerSpec

__all__ = [
    "AsyncConnectorExecutorMixin",
    "Backend",
    "ConnectorTask",
    "ContainerSpec",
    "Display",
    "InProcess",
    "Job",
    "JobFailedError",
    "LocalRun",
    "Remote",
    "SyncConnectorExecutorMixin",
    "local_registry",
]
