"""Turns what a connector calls final into a job that ended so, instead of a call that failed.

A create that fails as a call costs the task an attempt, and the next one meets the same bad SQL;
a sync reply that fails as a call loses its code. A phase says FAILED once and for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import ExecutionError, TaskExecution

from connector_service.codec.convert import MESSAGES, FlyteProtocol
from connector_service.errors import BackendError, ConnectorServiceError
from connector_service.runtime import envelope
from connector_service.runtime.faults import Fault, judge
from connector_service.runtime.sizes import MAX_MESSAGE, elide
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ended", "failed_at_create", "failure", "final_fault"]

_FINAL = frozenset({Fault.PERMANENT, Fault.INVALID})
_ORIGINS = {"user": ExecutionError.USER, "system": ExecutionError.SYSTEM}
_MAX_CODE = 128  # bytes


def final_fault(error: BaseException, permanent: Sequence[type[Exception]] = ()) -> bool:
    """Tell whether ``error`` ends the job for good rather than this one call.

    It does when a connector raised ``PermanentError``, ``InvalidInputError`` or a class that it
    lists in ``permanent_errors``. A missing connector or a malformed request does not.
    """
    return judge(error, permanent).fault in _FINAL


def failure(protocol: str, error: BaseException) -> Any:
    """Build the ``Resource`` of ``protocol`` that says FAILED, and why.

    A class in ``permanent_errors`` is listed because its text is what the user needs; it goes
    out redacted, as any text does.
    """
    code, origin, text = _told(error)
    return ended(protocol, TaskExecution.FAILED, text, code=code, origin=origin)


def ended(
    protocol: str, phase: int, message: str, *, code: str = "", origin: str = "system"
) -> Any:
    """Build the ``Resource`` of a job that we end, its message redacted and cut.

    Flyte 1 gets ``code`` and ``origin`` in ``agent_error`` too. Of all that, its client passes
    only the message on, except after ExecuteTaskSync, where it takes the code.
    """
    resource: Any = MESSAGES[protocol].resource(
        phase=phase, message=elide(redact(message), MAX_MESSAGE)
    )
    if protocol == FlyteProtocol.FLYTE1 and code:
        resource.agent_error.CopyFrom(_agent_error(code, origin, phase))
    return resource


def failed_at_create(error: BaseException) -> bytes:
    """Make the resource meta of a job that failed for good before there was one.

    Any replica, now or after a restart, answers its GetTask from the bytes alone: FAILED, with
    this message and code. There is nothing to delete.
    """
    return envelope.seal(failure(FlyteProtocol.FLYTE1, error))


def _agent_error(code: str, origin: str, phase: int) -> agent_pb2.AgentError:
    again = phase == TaskExecution.RETRYABLE_FAILED
    kind = agent_pb2.AgentError.RECOVERABLE if again else agent_pb2.AgentError.NON_RECOVERABLE
    return agent_pb2.AgentError(code=elide(code, _MAX_CODE), kind=kind, origin=_ORIGINS[origin])


def _told(error: BaseException) -> tuple[str, str, str]:
    """Return the code, the origin and the text of an error that is final."""
    name = type(error).__name__
    try:
        text = error.public if isinstance(error, ConnectorServiceError) else str(error)
        if isinstance(error, BackendError):
            origin = error.origin if error.origin in _ORIGINS else "user"
            return str(error.code), origin, text or name
    except Exception:  # noqa: BLE001 - a connector's subclass may fail at its own text
        text = ""
    return name.removesuffix("Error") or name, "user", text or name
