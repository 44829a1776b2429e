"""Judges what a connector raised: whose trouble it is, and whether waiting can help.

No HTTP, gRPC or cloud library is imported here: their errors are told by the names of their
classes and by their attributes, and a process has only the libraries its connectors need.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import math
import socket
import ssl
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from connector_service.errors import (
    CallError,
    ConnectorFault,
    ConnectorServiceError,
    DeadlineError,
    GoneError,
    InvalidInputError,
    PermanentError,
    SecretNotFoundError,
    TransientError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "HTTP_CODES",
    "Fault",
    "Judgement",
    "backend_code",
    "is_unmapped_state",
    "judge",
    "said",
]


class Fault(StrEnum):
    """What kind of trouble an exception is."""

    # The backend or the way to it is busy, restarting or out of reach: try again.
    TRANSIENT = "transient"
    # The backend refuses our credentials or broke (401, 403, other 5xx). Trying again at once
    # does not help, yet it is no bug of the connector and the job may well be running.
    TROUBLED = "troubled"
    # The remote job no longer exists.
    GONE = "gone"
    # The connector said, or listed, that trying again cannot help.
    PERMANENT = "permanent"
    # The task's inputs, template or configuration are wrong; its user mends them.
    INVALID = "invalid"
    # The call itself cannot be answered: no such connector, not its meta, the wrong RPC.
    REFUSED = "refused"
    # Anything else: the connector's code did what nobody foresaw.
    BUG = "bug"


class Judgement(NamedTuple):
    """The verdict on one exception; ``retry_after`` is the backend's own wish, in seconds."""

    fault: Fault
    retry_after: float | None = None


# What a backend's HTTP status means in the words of gRPC; wire/status.py answers with these.
HTTP_CODES: Mapping[int, str] = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    408: "UNAVAILABLE",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}
# A backend's own gRPC status is passed on where it says something about the backend. Its
# DEADLINE_EXCEEDED would read as our caller's, so it becomes what a timeout is.
_GRPC_CODES: Mapping[str, str] = {
    "UNAVAILABLE": "UNAVAILABLE",
    "RESOURCE_EXHAUSTED": "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED": "UNAVAILABLE",
    "PERMISSION_DENIED": "PERMISSION_DENIED",
    "UNAUTHENTICATED": "UNAUTHENTICATED",
}
_TRANSIENT_CODES = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
_BROKEN = frozenset({"INTERNAL", "UNKNOWN", "ABORTED", "DATA_LOSS"})

# Errors of the network that derive from none of Python's own, by package and class.
_TRANSIENT_CLASSES = frozenset(
    {
        "httpx.TimeoutException",
        "httpx.NetworkError",
        "httpx.ProxyError",
        "httpx.RemoteProtocolError",
        "httpcore.TimeoutException",
        "httpcore.NetworkError",
        "httpcore.RemoteProtocolError",
        "requests.ConnectionError",
        "requests.Timeout",
        "requests.ChunkedEncodingError",
        "urllib3.MaxRetryError",
        "urllib3.ProtocolError",
        "urllib3.TimeoutError",
        "urllib3.NewConnectionError",
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
        "aiohttp.ServerTimeoutError",
        "botocore.ConnectionError",
        "botocore.HTTPClientError",
        "http.IncompleteRead",
        "http.BadStatusLine",
    }
)
_TRANSIENT_ERRNOS = frozenset(
    {
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ETIMEDOUT,
    }
)
# A certificate that does not verify is for people; a connection that broke in TLS is a reset.
_TRANSIENT_BUILTINS = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)
_OURS: tuple[tuple[type[BaseException], Fault], ...] = (
    (GoneError, Fault.GONE),
    (InvalidInputError, Fault.INVALID),
    (PermanentError, Fault.PERMANENT),
    (TransientError, Fault.TRANSIENT),
    (DeadlineError, Fault.TRANSIENT),
    (UnavailableError, Fault.TRANSIENT),
    (CallError, Fault.REFUSED),
    (SecretNotFoundError, Fault.TROUBLED),
)
_DEEPEST = 3  # wrapped errors looked into
_LONGEST_WISH = 86_400.0  # seconds of Retry-After believed


def judge(
    error: BaseException,
    permanent: Sequence[type[Exception]] = (),
    *,
    wall: Callable[[], float] = time.time,
) -> Judgement:
    """Say what kind of trouble ``error`` is; it never raises.

    ``permanent`` lists further classes that the connector calls permanent. A group of errors is
    as transient as all of it.
    """
    for kind, fault in _OURS:
        if isinstance(error, kind):
            return Judgement(fault, _own_wish(error) if fault is Fault.TRANSIENT else None)
    if permanent and isinstance(error, tuple(permanent)):
        return Judgement(Fault.PERMANENT)
    if isinstance(error, ConnectorServiceError):
        return Judgement(Fault.BUG)
    if isinstance(error, BaseExceptionGroup):
        return _judge_group(error, permanent, wall)
    with contextlib.suppress(Exception):  # a stranger's attributes may raise when they are read
        return _judge_stranger(error, wall)
    return Judgement(Fault.BUG)


def backend_code(error: BaseException) -> str | None:
    """Return the gRPC code, by name, that says what a backend's library reported, if it did.

    A response's status counts in ``status_code`` (requests, httpx), ``status`` (aiohttp,
    googleapiclient), ``code`` (urllib, google-api-core) and botocore's dictionary; a gRPC
    status in ``code()``.
    """
    with contextlib.suppress(Exception):  # as above
        name = _grpc_status(error)
        if name is not None:
            return _GRPC_CODES.get(name)
        number = _http_status(error)
        return None if number is None else HTTP_CODES.get(number)
    return None


def is_unmapped_state(error: BaseException) -> bool:
    """Tell whether a ``get`` failed at a state that ``convert_to_flyte_phase`` does not know.

    The job is there and its backend answered; ours and flytekit's raise this same text.
    """
    with contextlib.suppress(Exception):  # as above
        return isinstance(error, ValueError) and str(error).startswith("Unrecognized state")
    return False


def said(error: BaseException) -> str | None:
    """Return the text of ``error`` that was written for the caller to read, if there is one."""
    if isinstance(error, ConnectorServiceError) and not isinstance(error, ConnectorFault):
        with contextlib.suppress(Exception):  # a connector's subclass may fail at its own text
            return error.public
    return None


def _judge_group(
    group: BaseExceptionGroup[BaseException],
    permanent: Sequence[type[Exception]],
    wall: Callable[[], float],
) -> Judgement:
    verdicts = [judge(error, permanent, wall=wall) for error in group.exceptions]
    kinds = {verdict.fault for verdict in verdicts}
    if len(kinds) > 1:
        return Judgement(Fault.BUG)
    wishes = [verdict.retry_after for verdict in verdicts if verdict.retry_after is not None]
    return Judgement(kinds.pop(), max(wishes, default=None))


def _judge_stranger(error: BaseException, wall: Callable[[], float]) -> Judgement:
    # An answer of the backend says more than the class that brought it.
    status = _http_status(error)
    name = _grpc_status(error)
    if status is not None or name is not None:
        code = backend_code(error)
        if code in _TRANSIENT_CODES:
            return Judgement(Fault.TRANSIENT, _wish(error, wall))
        if code is not None or name in _BROKEN or (status or 0) >= 500:
            return Judgement(Fault.TROUBLED)
        return Judgement(Fault.BUG)
    for inner in _unwrapped(error):
        if isinstance(inner, _TRANSIENT_BUILTINS) or _class_names(inner) & _TRANSIENT_CLASSES:
            return Judgement(Fault.TRANSIENT, _wish(error, wall))
        if isinstance(inner, OSError) and inner.errno in _TRANSIENT_ERRNOS:
            return Judgement(Fault.TRANSIENT)
    return Judgement(Fault.TROUBLED if isinstance(error, PermissionError) else Fault.BUG)


def _unwrapped(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what its library wrapped: URLError and urllib3 keep it in ``reason``."""
    for _ in range(_DEEPEST):
        yield error
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            return
        error = inner


def _class_names(error: BaseException) -> set[str]:
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _grpc_status(error: BaseException) -> str | None:
    """Return the name of a gRPC status; by the class's name, as other errors have a ``code``."""
    if not any(kind.__name__ == "RpcError" for kind in type(error).__mro__):
        return None
    code = getattr(error, "code", None)
    name = getattr(code() if callable(code) else code, "name", None)
    return name if isinstance(name, str) else None


def _http_status(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        if isinstance(holder, dict):
            holder = holder.get("ResponseMetadata", {})  # noqa: PLW2901 - botocore's response
            value: Any = holder.get("HTTPStatusCode")
            if isinstance(value, int):
                return value
            continue
        # `resp` is googleapiclient's, whose `status` is text in old releases.
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return int(value)
    return None


def _wish(error: BaseException, wall: Callable[[], float]) -> float | None:
    own = _own_wish(error)
    if own is not None:
        return own
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        headers: Any = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    else:
        headers = getattr(response, "headers", None) or getattr(error, "headers", None)
    for name in ("retry-after", "Retry-After"):
        value = headers.get(name) if hasattr(headers, "get") else None
        if value is not None:
            return _seconds(value, wall)
    return None


def _own_wish(error: BaseException) -> float | None:
    with contextlib.suppress(Exception):  # as above
        return _seconds(getattr(error, "retry_after", None))
    return None


def _seconds(value: object, wall: Callable[[], float] = time.time) -> float | None:
    """Read seconds, or an HTTP date; anything else is no wish."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if isinstance(value, str):
        value = _parsed(value, wall)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return min(max(float(value), 0.0), _LONGEST_WISH)


def _parsed(text: str, wall: Callable[[], float]) -> float | None:
    with contextlib.suppress(ValueError):
        return float(text)
    with contextlib.suppress(ValueError, OverflowError):
        return email.utils.parsedate_to_datetime(text).timestamp() - wall()
    return None
