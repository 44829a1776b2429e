"""A call on its way through the service, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import msgspec

from connector_service.errors import CallError
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory

__all__ = ["Call", "Outcome", "Refuse", "Status"]


class Call(msgspec.Struct, frozen=True, gc=False):
    """One request of either protocol, read as far as its route needs and no further.

    ``message`` is the request as it came. ``inputs`` is set only where the protocol sends them in
    a message of their own (ExecuteTaskSync). ``inputs_data``, where it is set, is the bytes of the
    inputs, and ``message`` is without them: they are decoded once, in the protocol that the
    connector wants, and not at all when nobody does. ``template_data`` is the bytes of a large
    template, which ``message`` has too. ``deadline`` is on ``time.monotonic``'s clock.
    ``problem`` is what the wire found wrong with the request; such a call is refused, not run.
    ``idempotency_key`` is the same whenever the client repeats a create.
    """

    protocol: str
    operation: Operation
    category: TaskCategory | None
    message: Any
    inputs: Any = None
    deadline: float | None = None
    problem: CallError | None = None
    inputs_data: bytes | memoryview | None = None
    idempotency_key: str = ""
    template_data: bytes | memoryview | None = None


class Status(msgspec.Struct, frozen=True, gc=False):
    """A gRPC status in plain words: the code's name, one safe line, the incident's id if any.

    ``retry_after`` is when the caller may try again, in seconds.
    """

    code: str
    details: str
    incident: str = ""
    retry_after: float | None = None


# Ends a call with its status, by raising; it is given what the wire knows of the call.
Refuse: TypeAlias = Callable[[Any, Status], Awaitable[NoReturn]]


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a call came to: a value, or the status that refuses it."""

    value: Any = None
    status: Status | None = None
