"""Every status of the table, provoked over a real port in every RPC where it matters."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from connector_service import errors, get_connector_secret
from connector_service.errors import (
    BackendError,
    ConnectorFault,
    GoneError,
    InvalidInputError,
    PermanentError,
    TransientError,
)
from connector_service.runtime.call import Call
from connector_service.sdk.method import Operation
from connector_service.sdk.resource import TaskCategory
from connector_service.telemetry.logging import JsonFormatter, TextFormatter
from connector_service.testing import serve
from connector_service.wire.status import CODES, HTTP_CODES, MAX_DETAILS, classify, elide

ON_JOB = ("get", "delete", "get_metrics", "get_logs")
ASYNC = ("create", *ON_JOB)
OPERATIONS = (*ASYNC, "do")
PRIVATE = "psql://admin:hunter2@db/ failed in /srv/app/connector.py, password=hunter2"


class HttpError(Exception):
    """An error as HTTP libraries raise them: the status in one attribute or another."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(PRIVATE)
        vars(self).update(attributes)


class BackendRpcError(grpc.RpcError):
    """An error as gRPC's synchronous client raises it: ``code`` is a method."""

    def __init__(self, code: StatusCode) -> None:
        super().__init__(PRIVATE)
        self._code = code

    def code(self) -> StatusCode:
        return self._code


def http(status: int) -> HttpError:
    return HttpError(response=SimpleNamespace(status_code=status))


def aio(code: StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=PRIVATE)


# Errors whose text was written to be read.
SPOKEN: dict[str, tuple[Exception, StatusCode]] = {
    "invalid input": (InvalidInputError("Column x is missing."), StatusCode.INVALID_ARGUMENT),
    "permanent": (PermanentError("The table was dropped."), StatusCode.FAILED_PRECONDITION),
    "transient": (TransientError("The warehouse restarts."), StatusCode.UNAVAILABLE),
    "gone": (GoneError("Job 1 was purged."), StatusCode.NOT_FOUND),
}
# Errors of any other kind: their text stays here.
UNSPOKEN: dict[str, tuple[BaseException, StatusCode]] = {
    "NotImplementedError": (NotImplementedError(PRIVATE), StatusCode.UNIMPLEMENTED),
    "PermissionError": (PermissionError(PRIVATE), StatusCode.PERMISSION_DENIED),
    "ConnectionError": (ConnectionRefusedError(PRIVATE), StatusCode.UNAVAILABLE),
    "TimeoutError": (TimeoutError(PRIVATE), StatusCode.UNAVAILABLE),
    "ValueError": (ValueError(PRIVATE), StatusCode.INTERNAL),
    "KeyError": (KeyError(PRIVATE), StatusCode.INTERNAL),
    "ConnectorFault": (ConnectorFault(PRIVATE), StatusCode.INTERNAL),
    "http 418": (http(418), StatusCode.INTERNAL),
    "status_code 401": (HttpError(status_code=401), StatusCode.UNAUTHENTICATED),
    "status 403": (HttpError(status=403), StatusCode.PERMISSION_DENIED),
    "code 429": (HttpError(code=HTTPStatus(429)), StatusCode.RESOURCE_EXHAUSTED),
    "a status that is no number": (HttpError(status="429"), StatusCode.INTERNAL),
    **{f"http {status}": (http(status), code) for status, code in HTTP_CODES.items()},
    "grpc RESOURCE_EXHAUSTED": (
        aio(StatusCode.RESOURCE_EXHAUSTED),
        StatusCode.RESOURCE_EXHAUSTED,
    ),
    "grpc PERMISSION_DENIED": (aio(StatusCode.PERMISSION_DENIED), StatusCode.PERMISSION_DENIED),
    "grpc UNAUTHENTICATED": (
        BackendRpcError(StatusCode.UNAUTHENTICATED),
        StatusCode.UNAUTHENTICATED,
    ),
    "grpc UNAVAILABLE": (aio(StatusCode.UNAVAILABLE), StatusCode.UNAVAILABLE),
    "grpc NOT_FOUND": (aio(StatusCode.NOT_FOUND), StatusCode.INTERNAL),
    "grpc OK": (aio(StatusCode.OK), StatusCode.INTERNAL),
}


def failing(fake: Any, error: BaseException) -> list[Any]:
    """Make connectors whose every method raises ``error``."""

    async def raises(self: object, **_kwargs: Any) -> None:
        raise error

    return [fake(**dict.fromkeys(ASYNC, raises)), fake(do=raises)]


def running() -> Counter[str]:
    """Count the event loop's tasks by what they run."""
    return Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks())


async def refused(calling: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calling
    return caught.value


async def test_a_task_type_nobody_registered_is_not_found(fake: Any, ask: Any) -> None:
    """NOT_FOUND names what was asked for and what is registered, in every RPC."""
    async with (
        serve(fake(), fake(task_type="spark", version=2)) as served,
        served.client() as client,
    ):
        for operation in OPERATIONS:
            error = await refused(ask(client, operation, "nobody", 1))
            assert (error.code(), error.details()) == (
                StatusCode.NOT_FOUND,
                "No connector for task type 'nobody' version 1; registered: fake v0, spark v2.",
            )
        error = await refused(client.get_agent("Nobody"))
        assert error.code() is StatusCode.NOT_FOUND
        assert error.details() == "No connector for name 'Nobody'; registered: Fake."


@pytest.mark.parametrize(
    "meta", [b"", b"{", b"[]", b'{"jobs": "1"}', b'{"job": 1}', b"\xff\xfe", b"null"]
)
async def test_a_malformed_meta_is_an_invalid_argument(fake: Any, ask: Any, meta: bytes) -> None:
    """INVALID_ARGUMENT says that the meta is none of this connector's, in every RPC on a job."""
    connector = fake(
        get_metrics=lambda self, resource_meta: None, get_logs=lambda self, resource_meta: None
    )
    async with serve(connector) as served, served.client() as client:
        for operation in ON_JOB:
            error = await refused(ask(client, operation, meta=meta))
            assert error.code() is StatusCode.INVALID_ARGUMENT
            assert error.details().startswith("The resource meta is not a Meta: ")


@pytest.mark.parametrize("operation", ["get_metrics", "get_logs"])
async def test_an_optional_operation_that_lacks_is_unimplemented(
    fake: Any, ask: Any, operation: str
) -> None:
    """UNIMPLEMENTED names the connector, its task type and what it lacks."""
    async with serve(fake()) as served, served.client() as client:
        error = await refused(ask(client, operation))
        assert error.code() is StatusCode.UNIMPLEMENTED
        assert error.details() == f"Fake (task type 'fake' version 0) has no {operation}."


async def test_the_wrong_kind_of_call_is_a_failed_precondition(fake: Any, ask: Any) -> None:
    """FAILED_PRECONDITION tells a sync connector's caller which RPC to use, and the reverse."""
    do = lambda self: None  # noqa: E731 - a method in one line
    async with serve(fake(), fake(do=do, name="Sync")) as served, served.client() as client:
        for operation in set(ASYNC) - {"create"}:  # a sync type is done at create
            error = await refused(ask(client, operation, "fake_sync"))
            assert (error.code(), error.details()) == (
                StatusCode.FAILED_PRECONDITION,
                "Sync serves task type 'fake_sync' version 0 synchronously: call ExecuteTaskSync,"
                f" not {operation}; ListAgents says is_sync for it.",
            )
        error = await refused(ask(client, "do", "fake"))
        assert (error.code(), error.details()) == (
            StatusCode.FAILED_PRECONDITION,
            "Fake serves task type 'fake' version 0 asynchronously: call CreateTask and GetTask,"
            " not ExecuteTaskSync.",
        )


@pytest.mark.parametrize("name", SPOKEN)
async def test_an_error_written_for_the_caller_arrives_word_for_word(
    fake: Any, ask: Any, name: str
) -> None:
    """What a connector says through BackendError reaches the caller under the right code."""
    raised, code = SPOKEN[name]
    async with serve(*failing(fake, raised)) as served, served.client() as client:
        for operation in OPERATIONS:
            error = await refused(ask(client, operation))
            assert (error.code(), error.details()) == (code, str(raised))


@pytest.mark.parametrize("name", UNSPOKEN)
async def test_any_other_error_is_named_and_kept(
    fake: Any, ask: Any, call_log: Any, name: str
) -> None:
    """Of any other exception the caller learns the type and an incident, under the right code."""
    raised, code = UNSPOKEN[name]
    async with serve(*failing(fake, raised)) as served, served.client() as client:
        for operation in OPERATIONS:
            error = await refused(ask(client, operation))
            record = await call_log.next()
            task_type = "fake_sync" if operation == "do" else "fake"
            assert (error.code(), error.details()) == (
                code,
                f"{operation} failed for task type '{task_type}' version 0 with"
                f" {type(raised).__name__}; the service's log has the details under incident"
                f" {record.incident}.",
            )
            assert re.fullmatch(r"[0-9a-f]{8}", record.incident)
            assert (record.operation, record.code) == (operation, code.name)
            for formatter in (TextFormatter(), JsonFormatter()):
                line = formatter.format(record)
                assert "Traceback" in line
                assert "connector.py" in line
                assert record.incident in line
                assert "hunter2" not in line


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class UnreadableError(Exception):
    @property
    def response(self) -> Any:
        raise RuntimeError("no response was received")


class CodeIsNoMethod(grpc.RpcError):
    code = 7


class CodeRaises(grpc.RpcError):
    def code(self) -> Any:
        raise RuntimeError("not yet")


class UnspeakableBackendError(TransientError):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (UnspeakableError(), StatusCode.INTERNAL),
        (UnreadableError(), StatusCode.INTERNAL),
        (CodeIsNoMethod(), StatusCode.INTERNAL),
        (CodeRaises(), StatusCode.INTERNAL),
        (UnspeakableBackendError(""), StatusCode.UNAVAILABLE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
async def test_an_exception_that_raises_when_looked_at_is_classified_all_the_same(
    fake: Any, ask: Any, call_log: Any, raised: Exception, code: StatusCode
) -> None:
    """An exception with broken attributes or a broken text still gets a code and an incident."""
    async with serve(*failing(fake, raised)) as served, served.client() as client:
        for operation in OPERATIONS:
            error = await refused(ask(client, operation))
            record = await call_log.next()
            assert error.code() is code
            assert error.details().endswith(f"under incident {record.incident}.")
            assert type(raised).__name__ in TextFormatter().format(record)


TEXTS = {
    "a secret in a word": ("token=hunter2 was refused", "token=*** was refused"),
    "a secret in an address": ("psql://u:hunter2@db is down", "psql://u:***@db is down"),
    "a secret that was handed out": ("the key is s3cr3t-value", "the key is ***"),
    "several lines": ("first\n\tsecond\r\nthird\x0bfourth", "first second third fourth"),
    "unicode": ("Größe überschritten: 例外 🦆", "Größe überschritten: 例外 🦆"),
    "empty": ("", ""),
}


@pytest.mark.parametrize("name", TEXTS)
async def test_the_text_of_an_error_is_one_safe_line(
    fake: Any, ask: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Secrets in a text that goes to the caller are masked, and it is one line."""
    monkeypatch.setenv("_FSEC_WAREHOUSE", "s3cr3t-value")
    assert get_connector_secret("warehouse") == "s3cr3t-value"
    text, expected = TEXTS[name]
    async with serve(*failing(fake, TransientError(text))) as served, served.client() as client:
        for operation in OPERATIONS:
            error = await refused(ask(client, operation))
            assert (error.code(), error.details()) == (StatusCode.UNAVAILABLE, expected)


@pytest.mark.parametrize("word", ["x", "x-", "lorem ", "größe ", "例外 ", "🦆 "], ids=ascii)
async def test_a_text_of_200_kb_is_cut_in_its_middle(fake: Any, ask: Any, word: str) -> None:
    """A huge text keeps its code, its beginning and its end, in any script, for every client."""
    text = f"BEGIN {word * (200_000 // len(word.encode()))}END"
    async with serve(*failing(fake, PermanentError(text))) as served, served.client() as client:
        for operation in OPERATIONS:
            error = await refused(ask(client, operation))
            assert error.code() is StatusCode.FAILED_PRECONDITION
            assert len(error.details().encode()) <= MAX_DETAILS
            assert re.fullmatch(
                rf"BEGIN {word}.* \.\.\. \[\d+ bytes cut\] \.\.\. .*{word}END", error.details()
            )


async def test_a_huge_made_up_task_type_is_refused_like_any_other(fake: Any, ask: Any) -> None:
    """A caller's name of 1 MB gets NOT_FOUND at once, and its middle is cut."""
    async with serve(fake()) as served, served.client(timeout=5) as client:
        for operation in OPERATIONS:
            error = await refused(ask(client, operation, "a." * 500_000))
            assert error.code() is StatusCode.NOT_FOUND
            assert len(error.details()) <= MAX_DETAILS
            assert error.details().startswith("No connector for task type 'a.a.")
            assert error.details().endswith("version 0; registered: fake v0.")


@pytest.mark.parametrize("limit", [60, 61, 62, 63, 64, 2048])
def test_elide_never_cuts_a_character_nor_exceeds_the_limit(limit: int) -> None:
    """Whatever the limit falls on, the result is whole characters within it."""
    for text in ("é" * 3000, "🦆" * 3000, "a" * 3000):
        cut = elide(text, limit)
        assert len(cut.encode()) <= limit
        assert set(cut) <= set(text) | set(" .[]bytes cut0123456789")
        assert elide("short", limit) == "short"


async def test_a_secret_the_service_lacks_is_named_without_its_place(fake: Any, ask: Any) -> None:
    """A missing secret is FAILED_PRECONDITION; where secrets are kept stays in the log."""

    def needs_secret(self: object, **_kwargs: Any) -> None:
        get_connector_secret("no_such_secret")

    connectors = [fake(**dict.fromkeys(ASYNC, needs_secret)), fake(do=needs_secret)]
    async with serve(*connectors) as served, served.client() as client:
        for operation in OPERATIONS:
            error = await refused(ask(client, operation))
            assert (error.code(), error.details()) == (
                StatusCode.FAILED_PRECONDITION,
                "The service has no secret 'no_such_secret'; its operator must add it.",
            )


WRONG_RESULTS = {
    "create": (7, "Fake.create returned int, not a ResourceMeta."),
    "get": ("done", "Fake.get returned str, not a Resource."),
    "get_metrics": ({}, "Fake.get_metrics returned dict, not a GetTaskMetricsResponse."),
    "get_logs": (None, "Fake.get_logs returned NoneType, not a GetTaskLogsResponse."),
    "do": (None, "Fake.do returned NoneType, not a Resource."),
}


@pytest.mark.parametrize("operation", WRONG_RESULTS)
async def test_a_result_of_the_wrong_type_is_internal_and_says_whose(
    fake: Any, ask: Any, call_log: Any, operation: str
) -> None:
    """What a connector returns by mistake is its author's to mend, and the text says so."""
    value, sentence = WRONG_RESULTS[operation]
    async with serve(fake(**{operation: lambda self: value})) as served, served.client() as client:
        error = await refused(ask(client, operation))
        record = await call_log.next()
        assert error.code() is StatusCode.INTERNAL
        assert error.details() == f"{sentence} (incident {record.incident})"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("style", ["async def", "def"])
async def test_the_service_refuses_before_the_clients_own_clock(
    fake: Any, ask: Any, call_log: Any, style: str, operation: str
) -> None:
    """DEADLINE_EXCEEDED comes from us, with our sentence, before the client gives up."""
    release = threading.Event()

    async def waits(self: object) -> None:
        await asyncio.Event().wait()

    def blocks(self: object) -> None:
        release.wait(10)

    method = waits if style == "async def" else blocks
    async with serve(fake(**{operation: method})) as served, served.client(timeout=1) as client:
        error = await refused(ask(client, operation))
        release.set()
        record = await call_log.next()
    assert (error.code(), error.details()) == (
        StatusCode.DEADLINE_EXCEEDED,
        "The connector did not answer within the call's deadline.",
    )
    assert (record.code, record.operation) == ("DEADLINE_EXCEEDED", operation)


async def test_a_deadline_falls_between_two_messages_of_a_stream(fake: Any) -> None:
    """GetTaskLogs delivers what came in time, then says DEADLINE_EXCEEDED itself."""
    from flyteidl.admin.agent_pb2 import GetTaskLogsResponse  # noqa: PLC0415 - only here

    async def get_logs(self: object) -> Any:
        yield GetTaskLogsResponse()
        await asyncio.Event().wait()

    async with serve(fake(get_logs=get_logs)) as served, served.client(timeout=1) as client:
        logs = client.get_logs(TaskCategory("fake"), b'{"job": "1"}')
        assert await anext(logs) == GetTaskLogsResponse()
        error = await refused(anext(logs))
    assert (error.code(), error.details()) == (
        StatusCode.DEADLINE_EXCEEDED,
        "The connector did not answer within the call's deadline.",
    )


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_caller_who_leaves_cancels_the_connector(
    fake: Any, ask: Any, call_log: Any, operation: str
) -> None:
    """CANCELLED: the connector's code is cancelled, the record says so, and nothing is left."""
    entered, left = asyncio.Event(), asyncio.Event()

    async def waits(self: object) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with serve(fake(**{operation: waits})) as served, served.client() as client:
        await client.list_agents()  # the connection and its background tasks are up
        await call_log.next()
        before = running()
        calling = asyncio.create_task(ask(client, operation))
        await entered.wait()
        calling.cancel()
        async with asyncio.timeout(10):
            await left.wait()
        record = await call_log.next()
        assert (record.code, record.operation) == ("CANCELLED", operation)
        assert record.details == "The caller left."
        assert record.exc_info is None
        in_flight = served.service.metrics.registry.get_sample_value(
            "connector_service_requests_in_flight",
            {"protocol": "flyteidl", "operation": operation},
        )
        assert in_flight == 0
        async with asyncio.timeout(10):
            while running() - before:
                assert await client.list_agents()  # the connection and the server go on


def test_every_error_that_callers_meet_has_a_row() -> None:
    """A class of the tree that is not the operator's has a code, or is a bug's INTERNAL."""
    internal = {
        errors.JobFailedError,  # raised by local runs; the daemon never does
        errors.ConnectorServiceError,
        errors.AuthorError,
        errors.DuplicateConnectorError,
        errors.ConnectorFault,
        errors.CallError,
        errors.BackendError,
    }
    rows = [kind for kind, _code in CODES]
    for name in errors.__all__:
        kind = getattr(errors, name)
        if issubclass(kind, errors.OperatorError) or kind in internal:
            continue
        assert any(issubclass(kind, row) for row in rows), name


def test_a_subclass_stands_before_its_base_in_the_table() -> None:
    """The first match wins, so no row hides a later one."""
    for later, (kind, _code) in enumerate(CODES):
        for earlier, _ in CODES[:later]:
            assert not issubclass(kind, earlier), f"{earlier.__name__} hides {kind.__name__}"


def test_a_backend_error_of_no_special_kind_is_internal_and_spoken() -> None:
    """A plain BackendError is INTERNAL, its text is shown, and an incident leads to the log."""
    call = Call("flyteidl", Operation.GET, TaskCategory("fake"), None)
    status = classify(BackendError("The backend said no."), call)
    assert status.code == "INTERNAL"
    assert status.details == f"The backend said no. (incident {status.incident})"
