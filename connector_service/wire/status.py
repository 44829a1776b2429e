"""The one table from exceptions to gRPC statuses, and the one way a call is refused.

The client never acts on a code (it looks only at UNIMPLEMENTED on ListAgents), so codes inform
people and retry policies; the text is one redacted line. Over 5 KiB of details, Python and C++
clients see RESOURCE_EXHAUSTED whatever the code was: the 16 KiB limit on metadata counts twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from connector_service.errors import (
    ConnectorFault,
    ConnectorNotFoundError,
    ConnectorServiceError,
    DeadlineError,
    GoneError,
    InvalidInputError,
    InvalidRequestError,
    PermanentError,
    SecretNotFoundError,
    TransientError,
    UnsupportedOperationError,
    WrongKindError,
)
from connector_service.runtime.call import Call, Outcome, Status
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["CODES", "HTTP_CODES", "MAX_DETAILS", "answer", "classify", "elide", "send"]

MAX_DETAILS = 2048  # bytes of UTF-8

# First match wins, so a subclass stands before its base.
CODES: tuple[tuple[type[BaseException], grpc.StatusCode], ...] = (
    (ConnectorNotFoundError, grpc.StatusCode.NOT_FOUND),
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnsupportedOperationError, grpc.StatusCode.UNIMPLEMENTED),
    (WrongKindError, grpc.StatusCode.FAILED_PRECONDITION),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (GoneError, grpc.StatusCode.NOT_FOUND),
    (PermanentError, grpc.StatusCode.FAILED_PRECONDITION),
    (TransientError, grpc.StatusCode.UNAVAILABLE),
    (SecretNotFoundError, grpc.StatusCode.FAILED_PRECONDITION),
    (NotImplementedError, grpc.StatusCode.UNIMPLEMENTED),
    (PermissionError, grpc.StatusCode.PERMISSION_DENIED),
    (ConnectionError, grpc.StatusCode.UNAVAILABLE),
    (TimeoutError, grpc.StatusCode.UNAVAILABLE),
)

# What a backend's HTTP library says through `status_code` (requests, httpx) or `status`.
HTTP_CODES: Mapping[int, grpc.StatusCode] = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    408: grpc.StatusCode.UNAVAILABLE,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.UNAVAILABLE,
}

# A backend's own gRPC status is passed on where it says something about the backend.
_PASSED_ON = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)


def classify(error: BaseException, call: Call) -> Status:
    """Turn whatever ended a call into the status that refuses it.

    Only text that was written to be read goes out: ours, and that of ``BackendError``. Anything
    else is named by its type and an incident id, under which the log has the rest.
    """
    if isinstance(error, asyncio.CancelledError):
        return Status(grpc.StatusCode.CANCELLED.name, "The caller left.")
    code = _code(error)
    said = _said(error)
    if said is not None:
        incident = secrets.token_hex(4) if code is grpc.StatusCode.INTERNAL else ""
        text = said + (f" (incident {incident})" if incident else "")
        return Status(code.name, elide(_one_line(redact(text)), MAX_DETAILS), incident)
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
    if outcome.status is None:
        return outcome.value
    await context.abort(grpc.StatusCode[outcome.status.code], outcome.status.details)
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


def elide(text: str, limit: int) -> str:
    """Cut ``text`` to ``limit`` bytes of UTF-8 by taking out its middle."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    mark = f" ... [{len(data) - limit} bytes cut] ... ".encode()
    head = (limit - len(mark)) * 2 // 3
    tail = limit - len(mark) - head
    parts = data[:head], mark, data[len(data) - tail :]
    return "".join(part.decode("utf-8", "ignore") for part in parts)


def _code(error: BaseException) -> grpc.StatusCode:
    for kind, code in CODES:
        if isinstance(error, kind):
            return code
    with contextlib.suppress(Exception):  # a stranger's attributes may raise when they are read
        return _backend_code(error)
    return grpc.StatusCode.INTERNAL


def _backend_code(error: BaseException) -> grpc.StatusCode:
    if isinstance(error, grpc.RpcError):
        theirs: object = error.code()
        for code in _PASSED_ON:
            if code is theirs:
                return code
        return grpc.StatusCode.INTERNAL
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and value in HTTP_CODES:
                return HTTP_CODES[value]
    return grpc.StatusCode.INTERNAL


def _said(error: BaseException) -> str | None:
    """Return the text that was written to be read; None when there is none."""
    if isinstance(error, ConnectorServiceError) and not isinstance(error, ConnectorFault):
        with contextlib.suppress(Exception):  # a connector's subclass may fail at its own text
            return error.public
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
