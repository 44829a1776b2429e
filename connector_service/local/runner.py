"""Drive one job as Flyte would: create, poll, read its outputs, and delete it when interrupted."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import signal
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
from flyteidl.admin.agent_pb2 import TaskExecutionMetadata
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from google.protobuf.message import DecodeError

from connector_service.errors import JobFailedError, TransientError
from connector_service.local.display import Display, phase_name
from connector_service.local.files import Files
from connector_service.local.loop import Running
from connector_service.local.templates import Execution, mentions, render
from connector_service.sdk.resource import is_terminal_phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from flyteidl.admin.agent_pb2 import Resource

    from connector_service.local.backends import Backend
    from connector_service.local.files import Storage

__all__ = ["POLL", "Heard", "Job", "LocalRun"]

Heard: TypeAlias = "Callable[[int, FrameType | None], Any]"
POLL = 1.0  # seconds between polls, once a job has shown that it is no short one
_FIRST_POLL = 0.1
_SLOWER = 1.5  # each time
_BLIPS = 5  # polls in a row that may fail as if they could be repeated, as Flyte lets them
_LAST_WORD = 30.0  # seconds for a create in flight, and then for the delete, once interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Job:
    """What is to be run; ``is_sync`` None asks the backend how the task type is served.

    Without an ``output_prefix`` it is a new temporary folder, kept when the job wrote into it.
    """

    name: str
    template: TaskTemplate
    inputs: LiteralMap = field(default_factory=LiteralMap)
    output_prefix: str = ""
    is_sync: bool | None = None
    writes_inputs: bool = False  # even when no argument of its container asks for them
    storage: Storage = field(default_factory=Files)


class LocalRun:
    """One job on its way, at most once: ``run`` blocks, ``drive`` is awaited.

    ``on_signal`` hears of SIGINT or SIGTERM in place of ``stop``; when it does not call ``stop``
    itself, the run ends without deleting the job.
    """

    def __init__(
        self,
        backend: Backend,
        job: Job,
        *,
        poll: float = POLL,
        display: Display | None = None,
        on_signal: Heard | None = None,
        on_created: Callable[[bytes], None] | None = None,
    ) -> None:
        """Take who runs it, what is run, and the longest time between polls in seconds."""
        self.job = job
        self.resource_meta: bytes | None = None
        self._backend = backend
        self._poll = poll
        self._display = display or Display(job.name)
        self._on_signal = on_signal
        self._on_created = on_created
        self._running: Running[LiteralMap] | None = None
        self._stopping = False
        self._deletes = True
        run_name = f"local-{secrets.token_hex(4)}"
        self._folder: Path | None = None
        if not job.output_prefix:
            self._folder = Path(tempfile.mkdtemp(prefix="connector-service-run-"))
        prefix = self._folder.as_uri() if self._folder else job.output_prefix
        self._execution = Execution(prefix, run_name=run_name)

    # --- blocking ------------------------------------------------------------------------------

    def run(self) -> LiteralMap:
        """Run the job to its end and return its outputs; inside a running event loop too.

        On the main thread SIGINT and SIGTERM delete the job; a second one does not wait for that.
        Afterwards the handler that was there before hears the signal, and the call ends with
        KeyboardInterrupt or SystemExit. Raises, besides, as ``drive``.
        """
        heard: list[tuple[int, FrameType | None]] = []
        with _listening(heard, self._hear) as previous:
            self._running = running = Running(self.drive())
            if self._stopping:  # by another thread, since the line above began
                running.stop()
            try:
                outputs = running.result()
            except BaseException as error:
                if not running.wait(0):
                    if len(heard) > 1:
                        self._display.say("not waiting any longer; the job may still run")
                    else:
                        # Something else than a signal ended this thread's wait: leave no job.
                        self.stop()
                        running.wait(2 * _LAST_WORD)
                self._display.close()
                if not heard:
                    raise
                _pass_on(heard[0], previous, error)
        if heard:
            _pass_on(heard[0], previous, None)
        return outputs

    def stop(self, *, delete: bool = True) -> None:
        """End the run soon, from any thread, and delete its job unless told not to."""
        if self._stopping:
            return
        self._deletes, self._stopping = delete, True
        if self._running is not None:
            self._running.stop()

    def wait(self, timeout: float) -> None:
        """Wait until the run has ended, for at most ``timeout`` seconds."""
        if self._running is not None:
            self._running.wait(timeout)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        try:
            if self._on_signal is not None and self.resource_meta is not None:
                self._on_signal(number, frame)
                self.stop(delete=False)
        finally:
            self.stop()

    # --- on the loop ---------------------------------------------------------------------------

    async def drive(self) -> LiteralMap:
        """Run the job to its end and return its outputs; cancelling this deletes the job, once.

        Raises:
            JobFailedError: It ended in another phase than SUCCEEDED, or without its outputs.
            ConnectorNotFoundError: Nobody serves its task type.
            ConnectorServiceError, grpc.aio.AioRpcError: A call was refused; the job is deleted.
        """
        with self._display:
            async with self._backend:
                resource = await self._to_its_end()
            try:
                if resource.phase != TaskExecution.SUCCEEDED:
                    raise self._failed(resource, resource.message)
                return await self._outputs(resource)
            finally:
                self._remove_if_empty()

    async def _to_its_end(self) -> Resource:
        is_sync = self.job.is_sync
        served_sync = await self._backend.is_sync(self.job.template)
        task = await self._prepare()
        request = task, self.job.inputs, self._execution.output_prefix, self._metadata()
        if served_sync if is_sync is None else is_sync:
            return await self._do(*request)
        meta = await self._create(*request)
        self.resource_meta = meta
        try:
            if self._on_created is not None:
                self._on_created(meta)
            return await self._follow(task, meta)
        except asyncio.CancelledError:
            await self._delete(task, meta, "interrupted")
            raise
        except BaseException:
            # Whatever keeps us from following the job: nobody else would ever delete it.
            with contextlib.suppress(Exception):
                await self._delete(task, meta, "lost sight of the job")
            raise

    async def _prepare(self) -> TaskTemplate:
        """Render the template and write the files that the job may read."""
        task = TaskTemplate()
        task.CopyFrom(self.job.template)
        arguments = list(task.container.args) if task.HasField("container") else []
        if arguments:
            del task.container.args[:]
            task.container.args.extend(render(arguments, self._execution, self.job.inputs))
        if self.job.writes_inputs or mentions(arguments, "input", "inputPrefix"):
            await self._write(self._execution.inputs, self.job.inputs.SerializeToString())
        if mentions(arguments, "taskTemplatePath"):
            await self._write(self._execution.task_template, task.SerializeToString())
        return task

    async def _do(self, *request: Any) -> Resource:
        try:
            resource = await self._backend.do(*request)
        except asyncio.CancelledError:
            self._display.say("interrupted; there is no job to delete, the call was given up")
            raise
        self._display.show(resource)
        return resource

    async def _create(self, task: TaskTemplate, *request: Any) -> bytes:
        creating = asyncio.ensure_future(self._backend.create(task, *request))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            # Only the answer tells what there is to delete.
            self._display.say("interrupted while the job is being created; waiting to delete it")
            done, _ = await asyncio.wait([creating], timeout=_LAST_WORD)
            if not done:
                creating.cancel()
                self._display.say("not created in time; if it is yet, the job runs on")
            elif not creating.cancelled() and creating.exception() is None:
                await self._delete(task, creating.result(), "created")
            raise

    async def _follow(self, task: TaskTemplate, meta: bytes) -> Resource:
        pause, blips = min(_FIRST_POLL, self._poll), 0
        while True:
            try:
                resource = await self._backend.get(task, meta, self._execution.output_prefix)
            except Exception as error:
                blips += 1
                if blips > _BLIPS or not _may_pass(error):
                    raise
                self._display.say(f"the poll failed ({blips} of {_BLIPS}): {_sentence(error)}")
            else:
                blips = 0
                self._display.show(resource)
                if is_terminal_phase(resource.phase):
                    return resource
            await asyncio.sleep(pause)
            pause = min(pause * _SLOWER, self._poll)

    async def _delete(self, task: TaskTemplate, meta: bytes, why: str) -> None:
        if not self._deletes:
            self._display.say(f"{why}; the job was left to its signal handler")
            return
        self._display.say(f"{why}; deleting the job")
        deleting = asyncio.ensure_future(self._backend.delete(task, meta))
        try:
            async with asyncio.timeout(_LAST_WORD):
                await asyncio.shield(deleting)
        except TimeoutError:
            self._not_deleted(meta, f"no answer within {_LAST_WORD:g} s")
        except Exception as error:  # noqa: BLE001 - what led here is raised, this is said
            self._not_deleted(meta, _sentence(error))
        else:
            self._display.say("the job was deleted")

    def _not_deleted(self, meta: bytes, why: str) -> None:
        known = base64.b64encode(meta).decode()
        self._display.say(f"not deleted, the job may still run: {why}")
        self._display.say(f"its resource meta, for `connector-service call delete`: {known}")

    async def _outputs(self, resource: Resource) -> LiteralMap:
        declared = self.job.template.interface.outputs.variables
        if resource.HasField("outputs"):
            outputs = resource.outputs
        else:
            data = await asyncio.to_thread(self.job.storage.read, self._execution.outputs)
            if data is None and declared:
                raise self._failed(
                    resource,
                    f"it returned no outputs and there is no {self._execution.outputs}",
                )
            try:
                outputs = LiteralMap.FromString(data or b"")
            except DecodeError:
                problem = f"{self._execution.outputs} holds no outputs"
                raise self._failed(resource, problem) from None
        if missing := sorted(declared.keys() - outputs.literals.keys()):
            raise self._failed(resource, f"its outputs lack {', '.join(missing)}")
        return outputs

    def _remove_if_empty(self) -> None:
        """Leave no folder behind that the job did not use; into one that it did, outputs point."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.rmdir()

    async def _write(self, uri: str, data: bytes) -> None:
        await asyncio.to_thread(self.job.storage.write, uri, data)

    def _failed(self, resource: Resource, message: str) -> JobFailedError:
        phase = phase_name(resource.phase)
        return JobFailedError(self.job.name, phase, message, resource.log_links)

    def _metadata(self) -> TaskExecutionMetadata:
        """Say what Flyte says of an execution, as far as there is one."""
        metadata = TaskExecutionMetadata(namespace=self._execution.namespace)
        execution = metadata.task_execution_id
        execution.task_id.CopyFrom(self.job.template.id)
        if not execution.task_id.name:
            execution.task_id.name = self.job.name
        execution.retry_attempt = self._execution.attempt
        execution.node_execution_id.node_id = self._execution.action_name
        execution.node_execution_id.execution_id.project = "local"
        execution.node_execution_id.execution_id.domain = "local"
        execution.node_execution_id.execution_id.name = self._execution.run_name
        return metadata


@contextlib.contextmanager
def _listening(heard: list[tuple[int, FrameType | None]], hear: Heard) -> Iterator[dict[int, Any]]:
    """Have the first signal call ``hear`` and the second raise; only the main thread can.

    A signal that is ignored, as under nohup, stays ignored.
    """
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        heard.append((number, frame))
        if len(heard) > 1:
            raise KeyboardInterrupt
        hear(number, frame)

    if threading.current_thread() is threading.main_thread():
        for number in (int(each) for each in _SIGNALS):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, handle)
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _pass_on(
    heard: tuple[int, FrameType | None], previous: dict[int, Any], error: BaseException | None
) -> NoReturn:
    """Let the handler that was there before hear the signal, then end as it would by default."""
    number, frame = heard
    handler = previous[number]
    if callable(handler):
        handler(number, frame)
    if number == signal.SIGINT:
        raise KeyboardInterrupt from error
    raise SystemExit(128 + number) from error


def _may_pass(error: Exception) -> bool:
    """Tell whether a failed poll says nothing about the job: the next one may succeed."""
    if isinstance(error, grpc.RpcError):
        code: Any = getattr(error, "code", lambda: None)()
        return code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return isinstance(error, TransientError)


def _sentence(error: Exception) -> str:
    details: Any = getattr(error, "details", None)
    text = details() if callable(details) else str(error)
    return (str(text or "").splitlines() or [type(error).__name__])[0]
