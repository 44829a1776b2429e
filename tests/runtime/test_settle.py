"""What ends a job for good, and how both clients read that end."""

from __future__ import annotations

from typing import Any

import pytest
from flyteidl.admin.agent_pb2 import AgentError
from flyteidl.admin.agent_pb2 import Resource as ResourceMessage
from flyteidl.core.execution_pb2 import ExecutionError, TaskExecution
from flyteidl2.connector import connector_pb2

from connector_service.errors import (
    BackendError,
    ConnectorNotFoundError,
    InvalidInputError,
    InvalidMetaError,
    PermanentError,
    TransientError,
)
from connector_service.runtime import envelope
from connector_service.runtime.settle import ended, failed_at_create, failure, final_fault
from connector_service.sdk.connector import AsyncConnectorBase, ConnectorBase


class SyntaxMistakeError(Exception):
    """A library's own error, which a connector lists."""


class MuteError(PermanentError):
    """An error that fails at its own text."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (PermanentError("x"), True),
        (InvalidInputError("x"), True),
        (SyntaxMistakeError("x"), True),
        (TransientError("x"), False),
        (ConnectorNotFoundError("x", []), False),
        (InvalidMetaError("x"), False),
        (ValueError("x"), False),
        (SystemExit(1), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_final(error: Any, final: bool) -> None:
    """The connector's word ends a job; our refusals, faults and bugs end a call."""
    assert final_fault(error, (SyntaxMistakeError,)) is final


@pytest.mark.parametrize(
    ("error", "code", "origin", "message"),
    [
        (PermanentError("Quota is 0."), "Permanent", ExecutionError.USER, "Quota is 0."),
        (
            PermanentError("No region.", code="NoRegion", origin="system"),
            "NoRegion",
            ExecutionError.SYSTEM,
            "No region.",
        ),
        (InvalidInputError("Bad SQL."), "InvalidInput", ExecutionError.USER, "Bad SQL."),
        (SyntaxMistakeError("line 3"), "SyntaxMistake", ExecutionError.USER, "line 3"),
        (SyntaxMistakeError(), "SyntaxMistake", ExecutionError.USER, "SyntaxMistakeError"),
        (MuteError("x"), "Mute", ExecutionError.USER, "MuteError"),
        (PermanentError("password=hunter2"), "Permanent", ExecutionError.USER, "password=***"),
    ],
    ids=repr,
)
def test_a_failure_carries_message_code_and_origin(
    error: Exception, code: str, origin: Any, message: str
) -> None:
    """Flyte 1 reads all of it, Flyte 2 phase and message; text is redacted."""
    assert failure("flyteidl", error) == ResourceMessage(
        phase=TaskExecution.FAILED,
        message=message,
        agent_error=AgentError(code=code, kind=AgentError.NON_RECOVERABLE, origin=origin),
    )
    assert failure("flyteidl2", error) == connector_pb2.Resource(
        phase=TaskExecution.FAILED, message=message
    )


def test_endless_texts_are_cut() -> None:
    """Neither a message nor a code grows beyond what a client stores."""
    resource = failure("flyteidl", PermanentError("x" * 100_000, code="c" * 1000))
    assert len(resource.message) <= 4096
    assert len(resource.agent_error.code) <= 128


def test_what_may_be_retried_says_so() -> None:
    """RETRYABLE_FAILED is recoverable, by its phase and by its agent_error."""
    resource = ended("flyteidl", TaskExecution.RETRYABLE_FAILED, "x", code="Gone")
    assert resource.agent_error.kind == AgentError.RECOVERABLE
    assert resource.agent_error.origin == ExecutionError.SYSTEM


@pytest.mark.parametrize("protocol", ["flyteidl", "flyteidl2"])
def test_a_create_that_failed_for_good_is_a_meta_that_says_so(protocol: str) -> None:
    """Any replica opens it, in either protocol: FAILED with the message, and the code."""
    error = PermanentError("Table t is gone.", code="NoTable")
    meta = failed_at_create(error)
    assert envelope.holds(meta)
    resource = envelope.open_as(protocol, meta)
    resource.DiscardUnknownFields()
    assert resource == failure(protocol, error)


def test_connectors_list_further_classes() -> None:
    """``permanent_errors`` is a class attribute, empty unless its author fills it."""
    assert ConnectorBase.permanent_errors == AsyncConnectorBase.permanent_errors == ()
    assert issubclass(BackendError, Exception)
