"""The executor mixins that Flyte users know: a task that runs here, by a connector."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Any, Protocol

from connector_service.errors import AuthorError
from connector_service.local.backends import Backend, InProcess
from connector_service.local.loop import Running
from connector_service.local.runner import POLL, Heard, Job, LocalRun
from connector_service.local.task import ConnectorTask
from connector_service.runtime import envelope

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from types import FrameType

    from flyteidl.core.literals_pb2 import LiteralMap
    from flyteidl.core.tasks_pb2 import TaskTemplate

__all__ = ["AsyncConnectorExecutorMixin", "Prepares", "SyncConnectorExecutorMixin"]

_LAST_WORD = 30.0  # seconds for a deletion that a signal asks for


class Prepares(Protocol):
    """What turns a call of a task into a job, and its outputs into what the call returns."""

    def template(self) -> TaskTemplate:
        """Return the task's template."""

    def prepare(self, inputs: Mapping[str, Any], *, is_sync: bool | None) -> Job:
        """Build the job of one call."""

    def finish(self, outputs: LiteralMap) -> Any:
        """Return what the call returns."""

    def listening(self, hear: Heard, run: LocalRun) -> AbstractContextManager[None]:
        """Have signals heard where the SDK listens for them; nothing where it does not."""


class _Executor:
    """What both mixins share: one call of a task is one local run."""

    poll_interval: float = POLL  # seconds, at most, between two polls

    def connector_backend(self) -> Backend:
        """Return what runs the job; override it to have a service elsewhere run it."""
        return InProcess()

    def _prepares(self) -> Prepares:
        """Find who translates: our task itself, or the adapter of the SDK it is mixed with."""
        if isinstance(self, ConnectorTask):
            return self
        if any(base.__module__.partition(".")[0] == "flytekit" for base in type(self).__mro__):
            # Imported only now: whoever runs no flytekit task never loads flytekit.
            adapter = importlib.import_module("connector_service.local.flytekit")
            prepares: Prepares = adapter.FlytekitTask(self)
            return prepares
        raise AuthorError(
            f"{type(self).__name__} is no task: let it inherit from the mixin first, then from"
            f" connector_service.local.ConnectorTask or from flytekit's PythonTask."
        )


class SyncConnectorExecutorMixin(_Executor):
    """Runs a task whose connector answers within the call; stands before the task's class."""

    def execute(self, **kwargs: Any) -> Any:
        """Do the task's work and return its outputs: Python values, or flytekit's literals.

        Raises:
            JobFailedError: It ended in another phase than SUCCEEDED.
            ConnectorNotFoundError: Nobody registered the task type here.
        """
        prepares = self._prepares()
        job = prepares.prepare(kwargs, is_sync=True)
        return prepares.finish(LocalRun(self.connector_backend(), job).run())


class AsyncConnectorExecutorMixin(_Executor):
    """Runs a task whose connector starts a job, and follows that to its end."""

    resource_meta: Any = None
    _connector_run: LocalRun | None = None

    def execute(self, **kwargs: Any) -> Any:
        """Run the job to its end and return its outputs; raises as the sync mixin's.

        SIGINT (Ctrl+C) and SIGTERM call ``connector_signal_handler``.
        """
        prepares = self._prepares()
        job = prepares.prepare(kwargs, is_sync=False)
        backend = self.connector_backend()

        def created(meta: bytes) -> None:
            self.resource_meta = _decoded(backend, job, meta)

        def hear(number: int, frame: FrameType | None) -> None:
            self.connector_signal_handler(self.resource_meta, number, frame)

        run = LocalRun(backend, job, poll=self.poll_interval, on_signal=hear, on_created=created)
        self._connector_run = run
        try:
            with prepares.listening(hear, run):
                return prepares.finish(run.run())
        finally:
            self._connector_run = None

    def connector_signal_handler(
        self, resource_meta: Any, signum: int, frame: FrameType | None
    ) -> Any:
        """Delete the job, once, and end its run; an override that does not call this keeps it.

        Called while nothing runs, it deletes the job that ``resource_meta`` identifies.
        """
        if self._connector_run is not None:
            self._connector_run.stop()
            return
        data = resource_meta if isinstance(resource_meta, bytes) else resource_meta.encode()
        template = self._prepares().template()
        Running(_delete(self.connector_backend(), template, data)).result()


def _decoded(backend: Backend, job: Job, meta: bytes) -> Any:
    """Return the resource meta as its connector knows it; the bytes where that is elsewhere."""
    if not isinstance(backend, InProcess) or envelope.holds(meta):
        return meta
    connector: Any = backend.connector(job.template)
    return connector.metadata_type.decode(meta)


async def _delete(backend: Backend, template: TaskTemplate, meta: bytes) -> None:
    async with asyncio.timeout(_LAST_WORD), backend:
        await backend.delete(template, meta)
