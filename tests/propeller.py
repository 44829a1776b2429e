"""Flyte's client as its code is: how often it asks, what it counts, what it makes of an answer.

The rules are those of propeller (Flyte 1.16) and of Flyte 2's executor, written down in the
project's contract (2.3 status codes, 2.4 phases, 2.5 polling and delivery). The client never
looks at a gRPC code: a call failed, or it did not. Its gRPC limits are Go's: 4 MiB a reply.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl.core import tasks_pb2
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl2.connector import connector_pb2
from flyteidl2.core import tasks_pb2 as tasks2_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

POLL_EVERY = 30.0  # seconds
MOST_FAILED_POLLS = 6  # over the whole life of a task
MOST_SYSTEM_FAILURES = 3  # Flyte 2, consecutive
MOST_WORKFLOW_RETRIES = 10  # Flyte 1, rounds that failed
RECEIVE_LIMIT = 4 * 1024 * 1024  # grpc-go's default
WORKERS = 10  # that poll all connector tasks together

_RUNNING = (
    TaskExecution.QUEUED,
    TaskExecution.WAITING_FOR_RESOURCES,
    TaskExecution.INITIALIZING,
    TaskExecution.RUNNING,
)


class End(StrEnum):
    """How a task ended, or why it never will."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the connector said so
    RETRIES_EXHAUSTED = "retries exhausted"  # the last attempt was burnt
    CACHE_FAILED = "cache failed"  # six failed polls and never a good one
    HUNG = "hung"  # six failed polls after a good one: the last phase, for ever
    PANICKED = "panicked"  # a sync reply that was no end: a poller of the client is dead
    SYSTEM_FAILED = "system failed"  # phases that the client cannot read
    ABORTED = "aborted"
    ABORT_FAILED = "abort failed"


@dataclass
class Task:
    """One task of a workflow, with everything that the client keeps of it."""

    name: str
    template: tasks_pb2.TaskTemplate
    retries: int = 0
    attempt: int = 0
    meta: bytes | None = None
    phase: int | None = None
    failed_polls: int = 0
    polled: bool = False
    system_failures: int = 0
    end: End | None = None
    code: str = ""
    message: str = ""
    outputs: Any = None
    # Jobs that the client was told of and does not follow: each one leaks.
    leaked: list[bytes] = field(default_factory=list)
    phases: list[int] = field(default_factory=list)

    @property
    def output_prefix(self) -> str:
        """Where this attempt writes; unique to task and attempt."""
        return f"mem://run/{self.name}/{self.attempt}"

    @property
    def done(self) -> bool:
        """Whether the client will do nothing more for the task by itself."""
        return self.end is not None


class Propeller:
    """One client of one service; ``flyte`` is 1 or 2."""

    def __init__(
        self,
        endpoint: str,
        *,
        flyte: int = 1,
        timeout: float | None = 10.0,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Take where the service is, the time limit for every call, and more channel options."""
        self.flyte = flyte
        self.workers = WORKERS
        self.failed_calls = 0
        self._timeout = timeout
        self._channel = grpc.aio.insecure_channel(
            endpoint,
            options=(
                ("grpc.enable_http_proxy", 0),
                ("grpc.max_receive_message_length", RECEIVE_LIMIT),
                *options,
            ),
        )
        self._messages: Any = agent_pb2 if flyte == 1 else connector_pb2
        service = (
            "flyteidl.service.AsyncAgentService"
            if flyte == 1
            else "flyteidl2.connector.AsyncConnectorService"
        )
        self._create = self._unary(service, "CreateTask")
        self._get = self._unary(service, "GetTask")
        self._delete = self._unary(service, "DeleteTask")
        self._do: Any = self._channel.stream_stream(
            "/flyteidl.service.SyncAgentService/ExecuteTaskSync",
            request_serializer=agent_pb2.ExecuteTaskSyncRequest.SerializeToString,
            response_deserializer=agent_pb2.ExecuteTaskSyncResponse.FromString,
        )

    async def __aenter__(self) -> Propeller:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._channel.close()

    # --- what the client does ------------------------------------------------------------------

    async def launch(self, task: Task) -> None:
        """Create the job of the current attempt, and poll it once at once."""
        try:
            response = await self._create(self._create_request(task), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            # Any code: the attempt is burnt, and no meta means no DeleteTask ever.
            self.failed_calls += 1
            await self._retryable(task, f"TaskFailedWithError: {error.details()}")
            return
        task.meta = response.resource_meta
        await self.poll(task)

    async def deliver_again(self, task: Task, before: Callable[[], object] | None = None) -> None:
        """Repeat the create, as after a round whose changes were discarded.

        The poller goes on with the first job (GetOrCreate), so another one leaks.
        """
        if before is not None:
            before()
        try:
            response = await self._create(self._create_request(task), timeout=self._timeout)
        except grpc.aio.AioRpcError:
            self.failed_calls += 1
            return
        if response.resource_meta != task.meta:
            task.leaked.append(response.resource_meta)

    async def poll(self, task: Task) -> None:
        """Ask for the job once, as the cache's workers do every 30 s, and act on the answer."""
        if task.done or task.meta is None:
            return
        if task.failed_polls >= MOST_FAILED_POLLS:
            # The counter is never reset: a good answer in between does not help.
            task.end = End.HUNG if task.polled else End.CACHE_FAILED
            return
        try:
            response = await self._get(self._get_request(task), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            self.failed_calls += 1
            task.failed_polls += 1
            task.message = error.details() or ""
            return
        task.polled = True
        await self._judge(task, response.resource)

    async def restart(self, task: Task) -> None:
        """Forget what the client keeps in memory only; the counters are persisted."""
        task.polled = False
        if task.end is End.HUNG:
            task.end = End.CACHE_FAILED

    async def abort(self, task: Task) -> None:
        """Delete the job because the workflow was aborted; the client tries ten times."""
        for _ in range(MOST_WORKFLOW_RETRIES):
            if task.meta is None or await self._try_delete(task):
                task.end = End.ABORTED
                return
        task.end = End.ABORT_FAILED

    async def collect(self, task: Task) -> bool:
        """Remove a finished task: Flyte 2 sends DeleteTask for every one of them."""
        return self.flyte == 1 or task.meta is None or await self._try_delete(task)

    async def execute_sync(self, task: Task) -> None:
        """Run a sync task: header, inputs, half-close, one message read, the stream reset."""
        header = agent_pb2.CreateRequestHeader(
            template=task.template, output_prefix=task.output_prefix
        )
        call = self._do(timeout=self._timeout)
        try:
            await call.write(agent_pb2.ExecuteTaskSyncRequest(header=header))
            await call.write(agent_pb2.ExecuteTaskSyncRequest(inputs={}))
            await call.done_writing()
            message = await call.read()
            if message is grpc.aio.EOF:
                raise await _refusal(call)
        except grpc.aio.AioRpcError as error:
            self.failed_calls += 1
            task.message = error.details() or ""
            task.attempt += 1
            task.end = End.RETRIES_EXHAUSTED if task.attempt > task.retries else None
            return
        finally:
            call.cancel()
        resource = message.header.resource
        if resource.phase in _RUNNING:
            # A nil resource meta is cached; polling it panics and kills one worker, each time.
            self.workers -= 1
            task.end = End.PANICKED
            return
        await self._judge(task, resource)
        task.code = resource.agent_error.code or task.code

    async def run(
        self,
        tasks: Sequence[Task],
        tick: Callable[[float], Awaitable[object]],
        *,
        rounds: int,
    ) -> None:
        """Launch tasks and poll them every 30 s, of whatever clock ``tick`` moves, to their end."""
        for task in tasks:
            await self.launch(task)
        for _ in range(rounds):
            if all(task.done for task in tasks):
                return
            await tick(POLL_EVERY)
            for task in tasks:
                if task.meta is None and not task.done:
                    await self.launch(task)
                else:
                    await self.poll(task)

    # --- what the client makes of it -----------------------------------------------------------

    async def _judge(self, task: Task, resource: Any) -> None:
        phase = resource.phase
        task.phases.append(phase)
        if phase not in TaskExecution.Phase.values() or phase == TaskExecution.UNDEFINED:
            await self._unreadable(task, resource)
            return
        task.system_failures = 0
        task.phase = phase
        task.message = resource.message
        if phase == TaskExecution.SUCCEEDED:
            task.outputs = resource.outputs if resource.HasField("outputs") else None
            task.end = End.SUCCEEDED
        elif phase in (TaskExecution.FAILED, TaskExecution.ABORTED):
            task.end = End.FAILED
        elif phase == TaskExecution.RETRYABLE_FAILED:
            await self._retryable(task, resource.message)

    async def _unreadable(self, task: Task, resource: Any) -> None:
        task.system_failures += 1
        if self.flyte == 2:
            if task.system_failures > MOST_SYSTEM_FAILURES:
                task.end = End.SYSTEM_FAILED
        elif resource.phase == TaskExecution.UNDEFINED:
            # The deprecated state is read instead, and its zero is RETRYABLE_FAILURE.
            match resource.state:
                case agent_pb2.RETRYABLE_FAILURE:
                    await self._retryable(task, resource.message)
                case agent_pb2.PERMANENT_FAILURE:
                    task.end = End.FAILED
                case agent_pb2.SUCCEEDED:
                    task.end = End.SUCCEEDED
        elif task.system_failures >= MOST_WORKFLOW_RETRIES:
            task.end = End.SYSTEM_FAILED

    async def _retryable(self, task: Task, message: str) -> None:
        """Burn an attempt: another one, with a prefix of its own, or the end."""
        task.message = message
        if task.attempt >= task.retries:
            task.end = End.RETRIES_EXHAUSTED
            return
        if self.flyte == 2 and task.meta is not None:
            await self._try_delete(task)  # its error is only logged
        task.attempt += 1
        task.meta, task.phase, task.polled, task.failed_polls = None, None, False, 0

    async def _try_delete(self, task: Task) -> bool:
        request = self._messages.DeleteTaskRequest(
            task_category=self._category(task), resource_meta=task.meta
        )
        try:
            await self._delete(request, timeout=self._timeout)
        except grpc.aio.AioRpcError:
            self.failed_calls += 1
            return False
        return True

    # --- requests ------------------------------------------------------------------------------

    def _unary(self, service: str, method: str) -> Any:
        return self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=getattr(self._messages, f"{method}Request").SerializeToString,
            response_deserializer=getattr(self._messages, f"{method}Response").FromString,
        )

    def _category(self, task: Task) -> Any:
        template = task.template
        return self._messages.TaskCategory(name=template.type, version=template.task_type_version)

    def _create_request(self, task: Task) -> Any:
        template: Any = task.template
        if self.flyte == 2:
            template = tasks2_pb2.TaskTemplate.FromString(template.SerializeToString())
        return self._messages.CreateTaskRequest(
            inputs={}, template=template, output_prefix=task.output_prefix
        )

    def _get_request(self, task: Task) -> Any:
        return self._messages.GetTaskRequest(
            task_category=self._category(task),
            resource_meta=task.meta,
            output_prefix=task.output_prefix,
        )


async def _refusal(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), grpc.aio.Metadata(), grpc.aio.Metadata(), details=await call.details()
    )
