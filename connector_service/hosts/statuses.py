"""What a gRPC status from a host means, as an exception that the policies can judge.

Two tables: a child of ours says what its statuses mean; of another service only gRPC's own words
are believed, and its details go to the log alone, for upstream puts tracebacks there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio
from grpc import StatusCode

from connector_service.errors import (
    DeadlineError,
    InvalidMetaError,
    InvalidRequestError,
    TransientError,
    UnsupportedOperationError,
    WrongKindError,
)
from connector_service.hosts.replica import rebuild
from connector_service.runtime.sizes import elide
from connector_service.sdk.method import Operation
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from connector_service.runtime.call import Call

__all__ = [
    "CHILD",
    "ERROR_KEY",
    "REMOTE",
    "PeerError",
    "Refusal",
    "lost",
    "read_refusal",
    "was_cancelled",
]

# The trailing metadata in which a child describes what its connector raised.
ERROR_KEY = "connector-host-error-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_MAX_DETAILS = 8192  # bytes of a peer's details that the log gets
_STARTS = (Operation.CREATE, Operation.DO)
_OPTIONAL = (Operation.GET_METRICS, Operation.GET_LOGS)
_CLOCKS_DIFFER = 0.5  # seconds by which a peer's deadline may pass before ours


class PeerError(grpc.RpcError):
    """A status of a host's that says no more than its code; ``faults`` judges it by ``code()``.

    The text has the peer's own details, which are for the log: they may hold a traceback.
    """

    def __init__(
        self, host: str, code: StatusCode, details: str, retry_after: float | None = None
    ) -> None:
        """Take which host answered, what, and when the peer wants to be asked again (seconds)."""
        super().__init__(f"Host {host!r} answered {code.name}: {elide(details, _MAX_DETAILS)}")
        self._code = code
        self.retry_after = retry_after

    def code(self) -> StatusCode:
        """Return the status's code, as every gRPC error does."""
        return self._code


class Refusal(NamedTuple):
    """A status that is no OK: which host gave it to which call, and when to try again."""

    host: str
    call: Call
    code: StatusCode
    details: str
    retry_after: float | None = None

    @property
    def task_type(self) -> str:
        """The call's task category in a sentence."""
        return self.call.category.spoken if self.call.category else "unknown"


Reading = Callable[[Refusal], Exception]


def read_refusal(
    host: str, call: Call, error: grpc.aio.AioRpcError, readings: Mapping[StatusCode, Reading]
) -> Exception:
    """Return what ``error`` means for ``call``; raise it ``from None``, it says all there is."""
    trailing: Any = error.trailing_metadata() or {}
    if readings is CHILD and (facts := trailing.get(ERROR_KEY)) is not None:
        return rebuild(facts)
    code: StatusCode = error.code()
    refusal = Refusal(host, call, code, error.details() or "", _pushback(trailing))
    meaning = readings.get(code, _as_it_is)(refusal)
    if not isinstance(meaning, PeerError) and refusal.details:
        meaning.add_note(redact(f"{code.name}: {elide(refusal.details, _MAX_DETAILS)}"))
    return meaning


def lost(host: str) -> TransientError:
    """Return what a call fails with when its connection was taken away under it."""
    return TransientError(f"The connection to host {host!r} was closed during the call; try again.")


def _pushback(trailing: Any) -> float | None:
    """Read when the peer wants to be asked again; gRFC A6 has it in milliseconds."""
    try:
        return max(0.0, int(trailing.get(_PUSHBACK_KEY)) / 1000)
    except (TypeError, ValueError):
        return None


# --- the meanings ------------------------------------------------------------------------------


def _as_it_is(refusal: Refusal) -> Exception:
    return PeerError(refusal.host, refusal.code, refusal.details, refusal.retry_after)


def _away(refusal: Refusal) -> Exception:
    return TransientError(
        f"Host {refusal.host!r} cannot take the call at this moment; try again.",
        retry_after=refusal.retry_after,
    )


def _not_here(refusal: Refusal) -> Exception:
    return TransientError(
        f"Host {refusal.host!r} does not serve task type {refusal.task_type} at this moment; try"
        f" again, or see in its own log what became of the connector."
    )


def _late(refusal: Refusal) -> Exception:
    deadline = refusal.call.deadline
    if deadline is not None and deadline - time.monotonic() > _CLOCKS_DIFFER:
        return _as_it_is(refusal)  # a deadline of the peer's own, not the caller's
    return DeadlineError(f"Host {refusal.host!r} did not answer within the call's deadline.")


def _gave_up(refusal: Refusal) -> Exception:
    return lost(refusal.host)  # our own cancellation never comes here


def _unsupported(refusal: Refusal) -> Exception:
    return UnsupportedOperationError(
        f"The connector of task type {refusal.task_type} has no {refusal.call.operation}."
    )


def _unsupported_option(refusal: Refusal) -> Exception:
    # What every connector has is not missing: it is a proxy that says 404 for a moment.
    if refusal.call.operation in _OPTIONAL:
        return _unsupported(refusal)
    return _not_here(refusal)


def _invalid(refusal: Refusal) -> Exception:
    kind = InvalidRequestError if refusal.call.operation in _STARTS else InvalidMetaError
    return kind(
        refusal.details
        or f"Host {refusal.host!r} could not read the request of {refusal.call.operation}."
    )


def _wrong_kind(refusal: Refusal) -> Exception:
    return WrongKindError(
        refusal.details
        or f"Task type {refusal.task_type} is of the other kind: sync ones are done in one call,"
        f" async ones are created and polled."
    )


def _too_large(refusal: Refusal) -> Exception:
    if "larger than max" not in refusal.details:
        return _as_it_is(refusal)
    return InvalidRequestError(
        f"The service behind host {refusal.host!r} takes no message of this size: pass less inline,"
        f" or raise its limit."
    )


CHILD: Mapping[StatusCode, Reading] = {
    StatusCode.UNAVAILABLE: _away,
    StatusCode.UNAUTHENTICATED: _away,  # another process has the socket: ours is starting
    StatusCode.NOT_FOUND: _not_here,
    StatusCode.DEADLINE_EXCEEDED: _late,
    StatusCode.CANCELLED: _gave_up,
    StatusCode.UNIMPLEMENTED: _unsupported,
    StatusCode.INVALID_ARGUMENT: _invalid,
    StatusCode.FAILED_PRECONDITION: _wrong_kind,
}
REMOTE: Mapping[StatusCode, Reading] = {
    StatusCode.UNAVAILABLE: _away,
    StatusCode.NOT_FOUND: _not_here,
    StatusCode.DEADLINE_EXCEEDED: _late,
    StatusCode.CANCELLED: _gave_up,
    StatusCode.UNIMPLEMENTED: _unsupported_option,
    StatusCode.RESOURCE_EXHAUSTED: _too_large,
}


def was_cancelled() -> bool:
    """Tell whether a CancelledError is our caller's: a closed channel raises the same."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
