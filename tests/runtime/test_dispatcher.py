"""One record of every call, whatever became of it, from a real dispatcher over a real host."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from flyteidl.admin.agent_pb2 import (
    CreateRequestHeader,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetAgentRequest,
    GetTaskLogsRequest,
    GetTaskMetricsRequest,
    GetTaskRequest,
    ListAgentsRequest,
)
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.literals_pb2 import Literal, LiteralMap, Primitive, Scalar
from flyteidl.core.tasks_pb2 import TaskTemplate

from connector_service import Resource, TaskCategory
from connector_service.codec.convert import FlyteProtocol
from connector_service.errors import InvalidRequestError
from connector_service.hosts.inline import InlineHost
from connector_service.runtime.call import Call
from connector_service.runtime.dispatcher import Dispatcher
from connector_service.runtime.hooks import CallRecord, Hook, Hooks
from connector_service.runtime.invoker import Invoker
from connector_service.sdk.method import Operation
from connector_service.sdk.registry import Registry
from connector_service.wire.status import classify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROTOCOL = FlyteProtocol.FLYTE1
TEMPLATE = TaskTemplate(type="fake")
INPUTS = LiteralMap(literals={"n": Literal(scalar=Scalar(primitive=Primitive(integer=7)))})
JOB = {"resource_meta": b'{"job": "1"}'}
MESSAGES: dict[Operation, Any] = {
    Operation.CREATE: CreateTaskRequest(template=TEMPLATE, inputs=INPUTS),
    Operation.GET: GetTaskRequest(**JOB),
    Operation.DELETE: DeleteTaskRequest(**JOB),
    Operation.GET_METRICS: GetTaskMetricsRequest(**JOB),
    Operation.GET_LOGS: GetTaskLogsRequest(**JOB),
    Operation.DO: CreateRequestHeader(template=TEMPLATE),
    Operation.DESCRIBE: GetAgentRequest(name="Fake"),
    Operation.LIST: ListAgentsRequest(),
}
ABOUT = (Operation.DESCRIBE, Operation.LIST)


class Recorder(Hook):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.records: list[CallRecord] = []

    def started(self, protocol: str, operation: str) -> None:
        self.begun.append((protocol, operation))

    def ended(self, record: CallRecord) -> None:
        self.records.append(record)

    @property
    def only(self) -> CallRecord:
        (record,) = self.records
        assert self.begun == [(record.protocol, record.operation)]
        return record


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def dispatcher(recorder: Recorder) -> Iterator[Callable[..., Dispatcher]]:
    """Make a dispatcher of connectors that run in this process."""
    invoker = Invoker()

    def make(*connectors: Any) -> Dispatcher:
        registry = Registry()
        for connector in connectors:
            registry.register(connector)
        return Dispatcher([InlineHost(registry, invoker)], classify, Hooks([recorder]))

    yield make
    invoker.shutdown()


def call(operation: Operation, task_type: str | None = "fake", **fields: Any) -> Call:
    category = None if operation in ABOUT or task_type is None else TaskCategory(task_type)
    given: dict[str, Any] = {"message": MESSAGES[operation], **fields}
    if operation is Operation.DO:
        given.setdefault("inputs", INPUTS)
    return Call(protocol=PROTOCOL, operation=operation, category=category, **given)


async def send_nothing(_message: Any) -> None:
    pass


async def dispatched(dispatcher: Dispatcher, made: Call) -> Any:
    """Take a call through the door that is its own."""
    if made.operation is Operation.GET_LOGS:
        return await dispatcher.stream(made, send_nothing)
    return await dispatcher.dispatch(made)


def connectors(fake: Any, operation: Operation, **methods: Any) -> Any:
    """Make an async connector, or for ``do`` a sync one."""
    if operation is Operation.DO:
        return fake(**{"do": lambda self: Resource(TaskExecution.SUCCEEDED), **methods})
    return fake(**methods)


@pytest.mark.parametrize("operation", MESSAGES)
async def test_a_call_that_succeeds_leaves_one_record(
    fake: Any, line: Any, dispatcher: Any, recorder: Recorder, operation: Operation
) -> None:
    """OK: who, what, how long, and the size of the inputs where there are any; nothing more."""
    own = {
        Operation.GET_METRICS: {"get_metrics": lambda self: None},
        Operation.GET_LOGS: {"get_logs": lambda self: line("1")},
    }.get(operation, {})
    outcome = await dispatched(dispatcher(connectors(fake, operation, **own)), call(operation))
    assert outcome.status is None
    record = recorder.only
    assert record.seconds > 0
    assert record == CallRecord(
        protocol="flyteidl",
        operation=operation.value,
        task_type="" if operation in ABOUT else "fake",
        code="OK",
        seconds=record.seconds,
        input_bytes=INPUTS.ByteSize() if operation in ("create", "do") else None,
    )


@pytest.mark.parametrize("operation", list(MESSAGES)[:6])
async def test_a_call_that_fails_leaves_one_record(
    fake: Any, dispatcher: Any, recorder: Recorder, operation: Operation
) -> None:
    """A bug: the record has the code, the caller's text, the incident and the exception."""
    raised = ValueError("why")

    def raises(self: object) -> None:
        raise raised

    connector = connectors(fake, operation, **{operation.value: raises})
    outcome = await dispatched(dispatcher(connector), call(operation))
    record = recorder.only
    assert outcome.value is None
    assert outcome.status.code == record.code == "INTERNAL"
    assert outcome.status.details == record.details
    assert outcome.status.incident == record.incident
    assert re.fullmatch(r"[0-9a-f]{8}", record.incident)
    assert record.error is raised
    assert (record.task_type, record.operation) == ("fake", operation.value)
    assert (record.input_bytes is not None) == (operation in ("create", "do"))


@pytest.mark.parametrize("operation", list(MESSAGES)[:6])
async def test_a_name_that_nobody_registered_is_no_label(
    fake: Any, dispatcher: Any, recorder: Recorder, operation: Operation
) -> None:
    """A made-up task type, or a made-up version of a real one, is recorded as unknown."""
    for category in (TaskCategory("made-up"), TaskCategory("fake", 7), TaskCategory("")):
        made = Call(PROTOCOL, operation, category, MESSAGES[operation], INPUTS)
        outcome = await dispatched(dispatcher(fake()), made)
        assert outcome.status.code == "NOT_FOUND"
    assert {(record.code, record.task_type) for record in recorder.records} == {
        ("NOT_FOUND", "unknown")
    }
    assert len(recorder.records) == 3


async def test_a_connector_name_that_nobody_has_is_no_label(
    fake: Any, dispatcher: Any, recorder: Recorder
) -> None:
    """GetAgent of a made-up name is NOT_FOUND and puts the name in no label."""
    made = call(Operation.DESCRIBE, message=GetAgentRequest(name="made-up"))
    assert (await dispatcher(fake()).dispatch(made)).status.code == "NOT_FOUND"
    assert (recorder.only.task_type, recorder.only.code) == ("", "NOT_FOUND")


@pytest.mark.parametrize("operation", [Operation.GET, Operation.GET_LOGS, Operation.DO])
async def test_a_request_that_the_wire_refuses_is_recorded_and_not_run(
    fake: Any, dispatcher: Any, recorder: Recorder, operation: Operation
) -> None:
    """What the wire found wrong is refused under the policies, as any call, and never run."""
    ran: list[str] = []
    connector = connectors(fake, operation, **{operation.value: lambda self: ran.append("ran")})
    problem = InvalidRequestError("header came where inputs was expected.")
    made = call(operation, None, message=None, problem=problem)
    outcome = await dispatched(dispatcher(connector), made)
    assert outcome.status.code == "INVALID_ARGUMENT"
    assert outcome.status.details == "header came where inputs was expected."
    assert (recorder.only.task_type, recorder.only.input_bytes) == ("unknown", None)
    assert not ran


@pytest.mark.parametrize("operation", [Operation.GET, Operation.GET_LOGS])
async def test_a_caller_who_leaves_is_recorded_and_the_cancellation_goes_on(
    fake: Any, dispatcher: Any, recorder: Recorder, operation: Operation
) -> None:
    """Only a caller who left raises; the record says CANCELLED."""
    entered = asyncio.Event()

    async def waits(self: object) -> None:
        entered.set()
        await asyncio.Event().wait()

    made = dispatcher(connectors(fake, operation, **{operation.value: waits}))
    task = asyncio.ensure_future(dispatched(made, call(operation)))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (recorder.only.code, recorder.only.incident) == ("CANCELLED", "")


@pytest.mark.parametrize("style", ["generator", "async generator"])
async def test_what_fails_while_it_is_sent_is_recorded_and_closed(
    fake: Any, line: Any, dispatcher: Any, recorder: Recorder, style: str
) -> None:
    """A stream whose sending fails ends there: its generator is closed before the record."""
    closed: list[int] = []

    def generator(self: object) -> Any:
        try:
            while True:
                yield line("1")
        finally:
            closed.append(len(recorder.records))

    async def async_generator(self: object) -> Any:
        try:
            while True:
                yield line("1")
        finally:
            closed.append(len(recorder.records))

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 3:
            raise OSError("the connection is gone")

    get_logs = generator if style == "generator" else async_generator
    outcome = await dispatcher(fake(get_logs=get_logs)).stream(call(Operation.GET_LOGS), send)
    assert outcome.status.code == "INTERNAL"
    assert recorder.only.code == "INTERNAL"
    assert sent == [line("1")] * 3
    assert closed == [0]


class NotedError(Exception):
    pass


@pytest.mark.parametrize("operation", list(MESSAGES)[:6])
async def test_a_failed_call_is_freed_at_once(
    fake: Any, dispatcher: Any, recorder: Recorder, operation: Operation
) -> None:
    """No cycle holds a failed call's request, which may have 64 MiB, until the next collection."""
    seen: list[weakref.ref[BaseException]] = []

    async def raises(self: object) -> None:
        error = NotedError()
        seen.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    connector = connectors(fake, operation, **{operation.value: raises})
    made = dispatcher(connector)
    gc.collect()
    gc.disable()
    try:
        outcome = await dispatched(made, call(operation))
        recorder.records.clear()  # a hook that keeps records keeps their errors
        assert outcome.status.code == "INTERNAL"
        assert [ref() for ref in seen] == [None]
    finally:
        gc.enable()


async def test_records_are_frozen() -> None:
    """A hook cannot change what the next one hears."""
    record = CallRecord(protocol="p", operation="get", task_type="", code="OK", seconds=0.1)
    with pytest.raises(AttributeError):
        record.code = "INTERNAL"
