"""The one table from exceptions to gRPC statuses, and the one way a call is refused.

The client never acts on a code (it looks only at UNIMPLEMENTED on ListAgents), so codes inform
people and retry policies; the text is one redacted line. Over 5 KiB of details, Python and C++
clients see RESOURCE_EXHAUSTED whatever the code was: the 16 KiB limit on metadata counts twice.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from connector_service.errors import (
    ConnectorFault,
    ConnectorNotFoundError,
    DeadlineError,
    GoneError,
    InvalidInputError,
    InvalidRequestError,
    PermanentError,
    SecretNotFoundError,
    TransientError,
    UnavailableError,
    UnsupportedOperationError,
    WrongKindError,
)
from connector_service.runtime import faults
from connector_service.runtime.call import Call, Outcome, Status
from connector_service.runtime.sizes import elide
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["CODES", "HTTP_CODES", "MAX_DETAILS", "answer", "classify", "refuse", "send"]

MAX_DETAILS = 2048  # bytes of UTF-8

# First match wins, so a subclass stands before its base.
CODES: tuple[tuple[type[BaseException], grpc.StatusCode], ...] = (
    (ConnectorNotFoundError, grpc.StatusCode.NOT_FOUND),
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnsupportedOperationError, grpc.StatusCode.UNIMPLEMENTED),
    (WrongKindError, grpc.StatusCode.FAILED_PRECONDITION),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (GoneError, grpc.StatusCode.NOT_FOUND),
    (PermanentError, grpc.StatusCode.FAILED_PRECONDITION),
    (TransientError, grpc.StatusCode.UNAVAILABLE),
    (SecretNotFoundError, grpc.StatusCode.FAILED_PRECONDITION),
    (NotImplementedError, grpc.StatusCode.UNIMPLEMENTED),
    (PermissionError, grpc.StatusCode.PERMISSION_DENIED),
    (ConnectionError, grpc.StatusCode.UNAVAILABLE),
    (TimeoutError, grpc.StatusCode.UNAVAILABLE),
)

# What a backend's HTTP library reports, whichever attribute it uses; `faults` finds it.
HTTP_CODES: Mapping[int, grpc.StatusCode] = {
    status: grpc.StatusCode[name] for status, name in faults.HTTP_CODES.items()
}


def classify(error: BaseException, call: Call) -> Status:
    """Turn whatever ended a call into the status that refuses it.

    Only text that was written to be read goes out: ours, and that of ``BackendError``. Anything
    else is named by its type and an incident id, under which the log has the rest.
    """
    if isinstance(error, asyncio.CancelledError):
        return Status(grpc.StatusCode.CANCELLED.name, "The caller left.")
    code = _code(error)
    said = faults.said(error)
    if said is not None:
        incident = secrets.token_hex(4) if code is grpc.StatusCode.INTERNAL else ""
        text = said + (f" (incident {incident})" if incident else "")
        after = getattr(error, "retry_after", None)
        details = elide(_one_line(redact(text)), MAX_DETAILS)
        return Status(code.name, details, incident, after)
    incident = secrets.token_hex(4)
    what = f"task type {call.category.spoken}" if call.category else "the service"
    cause = error.__cause__ if isinstance(error, ConnectorFault) and error.__cause__ else error
    text = (
        f"{call.operation} failed for {what} with {type(cause).__name__};"
        f" the service's log has the details under incident {incident}."
    )
    return Status(code.name, elide(_one_line(text), MAX_DETAILS), incident)


async def answer(context: grpc.aio.ServicerContext[Any, Any], outcome: Outcome) -> Any:
    """Return the outcome's value, or end the call with its status."""
    if outcome.status is not None:
        await refuse(context, outcome.status)
    return outcome.value


async def refuse(context: grpc.aio.ServicerContext[Any, Any], status: Status) -> NoReturn:
    """End the call with a status; it always raises."""
    if status.retry_after is not None:
        # What gRPC's own retries obey (gRFC A6, "pushback").
        pushback = str(max(0, round(status.retry_after * 1000)))
        context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
    await context.abort(grpc.StatusCode[status.code], status.details)
    raise AssertionError("abort() always raises")


async def send(context: grpc.aio.ServicerContext[Any, Any], message: Any) -> None:
    """Send one message of a stream.

    Raises:
        CancelledError: The caller has left. grpc cancels the call's task too, but what is being
            sent may fail before that.
    """
    try:
        await context.write(message)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


def _code(error: BaseException) -> grpc.StatusCode:
    for kind, code in CODES:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode[faults.backend_code(error) or "INTERNAL"]


def _one_line(text: str) -> str:
    return " ".join(text.split())
