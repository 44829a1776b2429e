"""What is known of a polled job: its last phase, its streak of troubles, its end, in words."""

from __future__ import annotations

import functools
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from flyteidl.core.execution_pb2 import TaskExecution

from connector_service.codec.convert import FlyteProtocol
from connector_service.runtime.faults import said
from connector_service.runtime.sizes import elide
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Callable

    from connector_service.runtime.call import Call
    from connector_service.sdk.resource import TaskCategory

__all__ = ["LONGEST_TEXT", "End", "Job", "Trouble", "job_id", "job_key", "say_unknown", "say_why"]

LONGEST_TEXT = 512  # bytes of a last message, and of a reason
# Bytes. A key that is short is its own; what is longer is digested, which takes a microsecond.
_LONGEST_KEY = 96
_DIGEST = 16


class Trouble(msgspec.Struct, gc=False):
    """A streak of polls that told nothing."""

    since: float
    seen: float
    why: str = ""
    waited: float = 0.0
    is_bug: bool = False
    waited_for_bug: float = 0.0
    incident: str = ""
    logged: float | None = None


class Job(msgspec.Struct, gc=False):
    """What is known of a job that has not ended."""

    seen: float
    phase: int = int(TaskExecution.RUNNING)
    message: str = ""
    known_at: float | None = None
    # The next poll that may reach the connector.
    not_before: float = 0.0
    reply: bytes | None = None
    trouble: Trouble | None = None


class End(msgspec.Struct, gc=False):
    """A terminal reply, and until when it is remembered."""

    until: float
    reply: bytes


def say_unknown(job: Job, why: str, now: float, wall: Callable[[], float]) -> str:
    """Say since when a job's status is unknown, why, and what was known last.

    ``now`` is on the clock of the job's own times, ``wall`` the time of day that people read.
    """

    def at(moment: float) -> str:
        then = datetime.fromtimestamp(wall() - (now - moment), UTC)
        return then.strftime("%Y-%m-%dT%H:%M:%SZ")

    since = job.trouble.since if job.trouble else job.known_at
    unknown = f"Status unknown since {at(now if since is None else since)}: {why}."
    if job.known_at is None:
        return unknown
    phase = TaskExecution.Phase.Name(job.phase)
    last = f"{unknown} Last known at {at(job.known_at)}: {phase}"
    return f"{last}, {job.message}" if job.message else f"{last}."


def say_why(error: BaseException, incident: str = "") -> str:
    """Say what happened in words that the caller may read, without a full stop."""
    text = said(error)
    if text is not None:
        return elide(redact(text).rstrip(". "), LONGEST_TEXT)
    suffix = f" (incident {incident})" if incident else ""
    return f"the connector's get failed with {type(error).__name__}{suffix}"


def job_key(call: Call) -> bytes:
    """Return what identifies a job and all that its connector sees of a poll.

    A meta alone may be empty, with the output prefix telling jobs apart, and who polls with
    other secrets must not be answered with what these have seen.
    """
    message = call.message
    meta: bytes = message.resource_meta
    said = b"%b%d:%b%b" % (
        _begun(call.protocol, call.category),
        len(meta),
        meta,
        message.output_prefix.encode(),
    )
    if call.protocol == FlyteProtocol.FLYTE2 and message.HasField("connection"):
        # No UTF-8 holds this byte, so the prefix ends where it seems to.
        said += b"\xff" + message.connection.SerializeToString(deterministic=True)
        return _digest(said)  # secrets are not kept
    if len(said) <= _LONGEST_KEY:
        return said
    return hashlib.blake2b(said, digest_size=_DIGEST).digest()  # every poll comes by here


def job_id(key: bytes) -> str:
    """Name a job in a log line; a key may hold its resource meta."""
    return (key if len(key) == _DIGEST else _digest(key)).hex()


@functools.lru_cache(4096)
def _begun(protocol: str, category: TaskCategory | None) -> bytes:
    """Begin a key with what the jobs of one category have in common; longer than a digest."""
    return _digest(f"{protocol}\0{category}\0".encode()) + b":"


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
