"""The service about jobs, which both protocols have under names of their own."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from connector_service.errors import InvalidRequestError
from connector_service.runtime.call import Call
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory
from connector_service.wire.binding import take_apart
from connector_service.wire.status import answer, refuse, send

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import ModuleType

    import grpc.aio

    from connector_service.codec.convert import FlyteProtocol
    from connector_service.runtime.dispatcher import Dispatcher

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["Jobs", "about", "read_deadline", "started"]

_MARGIN = 0.25  # seconds for the answer to reach the client before its deadline
_MARGIN_SHARE = 0.1  # of a short deadline
_CREATE, _GET = Operation.CREATE, Operation.GET
_category = functools.lru_cache(1024)(TaskCategory)


class Jobs:
    """CreateTask, GetTask, DeleteTask, GetTaskMetrics and GetTaskLogs of one protocol.

    ``messages`` is the module of the protocol's messages; both protocols name them alike.
    """

    def __init__(
        self, dispatcher: Dispatcher, protocol: FlyteProtocol, messages: ModuleType
    ) -> None:
        """Take the dispatcher that answers, and whose messages these are."""
        self._dispatcher = dispatcher
        self._protocol = protocol
        self._messages: Any = messages
        self._answer = dispatcher.answer

    def CreateTask(self, request: Any, context: Context) -> Awaitable[Any]:
        """Start a job; what comes is the resource meta, which its writer puts into the response."""
        return self._answer(started(self._protocol, _CREATE, request, context), refuse, context)

    def GetTask(self, request: Any, context: Context) -> Awaitable[Any]:
        """Poll a job; what comes is the resource, which its writer puts into the response."""
        return self._answer(self._on_job(_GET, request, context), refuse, context)

    async def DeleteTask(self, request: Any, context: Context) -> Any:
        """Stop a job."""
        outcome = await self._dispatcher.dispatch(self._on_job(Operation.DELETE, request, context))
        await answer(context, outcome)
        return self._messages.DeleteTaskResponse()

    async def GetTaskMetrics(self, request: Any, context: Context) -> Any:
        """Read a job's metrics."""
        call = self._on_job(Operation.GET_METRICS, request, context)
        return await answer(context, await self._dispatcher.dispatch(call))

    async def GetTaskLogs(self, request: Any, context: Context) -> None:
        """Stream a job's log."""
        call = self._on_job(Operation.GET_LOGS, request, context)
        outcome = await self._dispatcher.stream(call, functools.partial(send, context))
        await answer(context, outcome)

    def _on_job(self, operation: Operation, request: Any, context: Context) -> Call:
        """Read the task category, or Flyte 1's deprecated task type where there is none."""
        given = request.task_category
        name, version, problem = given.name, given.version, None
        if not name:
            name, version = getattr(request, "task_type", ""), 0
            problem = None if name else _missing(operation, "task_category.name")
        category, deadline = _category(name, version), read_deadline(context)
        return Call(self._protocol, operation, category, request, None, deadline, problem)


def started(
    protocol: FlyteProtocol,
    operation: Operation,
    message: Any,
    context: Context,
    inputs: Any = None,
) -> Call:
    """Read a request that starts work: its template names the task category."""
    template = message.template
    name = template.type
    problem = None if name else _missing(operation, "template.type")
    category, deadline = _category(name, template.task_type_version), read_deadline(context)
    data, wide = take_apart() if inputs is None else (None, None)
    return Call(
        protocol, operation, category, message, inputs, deadline, problem, data, template_data=wide
    )


def about(protocol: FlyteProtocol, operation: Operation, request: Any, context: Context) -> Call:
    """Read a request about the service's connectors."""
    return Call(protocol, operation, None, request, deadline=read_deadline(context))


def read_deadline(context: Context) -> float | None:
    """Return when to answer at the latest, on our monotonic clock; None without a deadline.

    It is a little before the client's own: our refusal says what happened, its timer does not.
    """
    remaining = context.time_remaining()
    if remaining is None:
        return None
    return time.monotonic() + remaining - min(_MARGIN, remaining * _MARGIN_SHARE)


def _missing(operation: Operation, field: str) -> InvalidRequestError:
    return InvalidRequestError(f"{operation} has no {field}.")
