"""What a log line looks like, for people and for collectors, and what it must not hold."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from flyteidl.core.execution_pb2 import TaskExecution
from flyteidl.core.tasks_pb2 import TaskTemplate

from connector_service import (
    AsyncConnectorBase,
    Resource,
    ResourceMeta,
    TaskCategory,
    get_connector_secret,
)
from connector_service.config import ConnectorSection, Log
from connector_service.errors import TransientError
from connector_service.runtime.hooks import CallRecord
from connector_service.telemetry.logging import JsonFormatter, LogHook, TextFormatter, configure
from connector_service.testing import serve

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = "connector_service.calls"


def record(message: str, *args: object, **facts: object) -> logging.LogRecord:
    """Make a record as a logger makes it, at a fixed time."""
    made = logging.getLogger("tests").makeRecord(
        "tests", logging.WARNING, __file__, 1, message, args, None, extra=facts
    )
    made.created = 1_700_000_000.123
    return made


def failed(message: str, error: BaseException) -> logging.LogRecord:
    made = record(message)
    try:
        raise error
    except type(error):
        made.exc_info = sys.exc_info()
    return made


def text(made: logging.LogRecord) -> str:
    return TextFormatter().format(made)


def fields(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(made)
    assert "\n" not in line
    decoded: dict[str, Any] = json.loads(line)
    return decoded


def test_a_line_for_people() -> None:
    """Text: time in UTC, level, logger, event, and the facts that are not empty."""
    made = record("plugin %s", "loaded", plugin="duckdb", incident="", count=3)
    assert text(made) == (
        "2023-11-14T22:13:20.123+00:00 warning tests: plugin loaded plugin=duckdb count=3"
    )


def test_an_object_for_collectors() -> None:
    """JSON: one object with the same, facts as fields of their own types."""
    made = record("plugin %s", "loaded", plugin="duckdb", incident="", count=3, share=0.5)
    assert fields(made) == {
        "time": "2023-11-14T22:13:20.123+00:00",
        "level": "warning",
        "logger": "tests",
        "event": "plugin loaded",
        "plugin": "duckdb",
        "incident": "",
        "count": 3,
        "share": 0.5,
    }


def test_a_traceback_stands_below_or_in_its_field() -> None:
    """Text has the traceback on lines of its own, JSON in one field."""
    made = failed("call", ValueError("why"))
    first, *rest = text(made).splitlines()
    assert first.endswith("tests: call")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ValueError: why"
    assert fields(made)["traceback"].splitlines() == rest


class Odd:
    def __str__(self) -> str:
        return "odd password=hunter2"


SECRETS: dict[str, Callable[[], logging.LogRecord]] = {
    "in the message": lambda: record("token=hunter2 was refused"),
    "in an argument": lambda: record("refused: %s", {"password": "hunter2"}),
    "in an address": lambda: record("connecting to %s", "psql://me:hunter2@db/x"),
    "in a fact": lambda: record("event", details="Authorization: Bearer hunter2hunter2A"),
    "as a fact": lambda: record("event", api_key="hunter2"),
    "as a fact with spaces": lambda: record("event", password="hunter2 hunter2"),
    "as a fact that is a number": lambda: record("event", password=31415926),
    "in a fact that is a mapping": lambda: record("event", options={"token": "hunter2"}),
    "deep in a fact": lambda: record("event", options=[{"a": ("password=hunter2",)}]),
    "in a fact of another type": lambda: record("event", thing=Odd()),
    "in an exception": lambda: failed("event", ValueError("secret_key: hunter2")),
    "in an exception's note": lambda: failed("event", noted("password=hunter2")),
    "handed out, anywhere": lambda: record("s3cr3t-value", fact=["s3cr3t-value"]),
    "handed out, in an exception": lambda: failed("event", KeyError("s3cr3t-value")),
}


def noted(note: str) -> Exception:
    error = ValueError("why")
    error.add_note(note)
    return error


@pytest.mark.parametrize("format_", [TextFormatter, JsonFormatter])
@pytest.mark.parametrize("case", SECRETS)
def test_secrets_are_masked_in_every_format(
    monkeypatch: pytest.MonkeyPatch, format_: type[logging.Formatter], case: str
) -> None:
    """Wherever a secret stands in a record, neither format writes it."""
    monkeypatch.setenv("_FSEC_WAREHOUSE", "s3cr3t-value")
    get_connector_secret("warehouse")
    line = format_().format(SECRETS[case]())
    for secret in ("hunter2", "s3cr3t-value", "31415926"):
        assert secret not in line
    assert "***" in line
    if format_ is JsonFormatter:
        json.loads(line)


def test_what_is_no_secret_stays() -> None:
    """Masking touches credentials, not the facts beside them."""
    assert fields(record("event", tokens=5, task_type="spark", author="me", none=None)) == {
        **fields(record("event")),
        "tokens": 5,
        "task_type": "spark",
        "author": "me",
        "none": None,
    }


ODDITIES = {
    "a lone surrogate": "\udcff path",
    "not a number": float("nan"),
    "infinity": float("inf"),
    "a large number": 1 << 80,
    "bytes": b"\xff\x00",
    "a set": {1},
    "keys that are no text": {1: "a", (2, 3): "b", None: "c"},
    "an exception": ValueError("why"),
    "a type": int,
    "control characters": "a\x00b\x1b[31m",
    "unicode": "Größe 例外 🦆",
}


@pytest.mark.parametrize("case", ODDITIES)
def test_no_fact_loses_its_line(case: str) -> None:
    """Whatever a fact is, its record is written: one line, and valid JSON in JSON."""
    made = record("event", fact=ODDITIES[case])
    assert fields(made)["event"] == "event"
    line = text(made)
    assert " fact=" in line
    assert len(line.splitlines()) == 1
    line.encode("utf-8", "backslashreplace")


def test_a_caller_cannot_forge_a_line() -> None:
    """Line breaks in a message or a fact stay in their record's one line."""
    forged = "x\n2023-11-14T22:13:20.123+00:00 info tests: forged\r\n\x0b\x0c\x1c\x85\u2028y"
    assert len(text(record(forged)).splitlines()) == 1
    assert len(text(record("event", fact=forged)).splitlines()) == 1
    assert len(text(record("event %s", forged)).splitlines()) == 1
    assert fields(record(forged))["event"] == forged


def test_a_fact_never_replaces_what_every_line_has() -> None:
    """A fact called like a standard field does not change when, what or how severe it was."""
    made = record("event", time="never", level="info", logger="none", event="other")
    assert fields(made) == fields(record("event"))


# --- calls ------------------------------------------------------------------------------------


def ended(operation: str, code: str, **more: Any) -> CallRecord:
    return CallRecord(
        protocol="flyteidl",
        operation=operation,
        task_type="spark",
        code=code,
        seconds=0.0123456,
        **more,
    )


LEVELS = {
    ("create", "OK"): "INFO",
    ("delete", "OK"): "INFO",
    ("do", "OK"): "INFO",
    ("get", "OK"): "DEBUG",
    ("get_metrics", "OK"): "DEBUG",
    ("get_logs", "OK"): "DEBUG",
    ("list", "OK"): "DEBUG",
    ("describe", "OK"): "DEBUG",
    ("get", "CANCELLED"): "INFO",
    ("get", "NOT_FOUND"): "WARNING",
    ("create", "DEADLINE_EXCEEDED"): "WARNING",
    ("get", "UNAVAILABLE"): "WARNING",
    ("list", "INTERNAL"): "ERROR",
    ("get", "INTERNAL"): "ERROR",
}


@pytest.mark.parametrize(("operation", "code"), LEVELS)
def test_a_call_has_the_level_of_its_news(
    caplog: pytest.LogCaptureFixture, operation: str, code: str
) -> None:
    """Failures are always seen, a job's events at info, polls and discovery only at debug."""
    caplog.set_level(logging.DEBUG, CALLS)
    LogHook().ended(ended(operation, code))
    (logged,) = caplog.records
    assert logged.levelname == LEVELS[operation, code]


@pytest.mark.parametrize(("operation", "code"), LEVELS)
def test_polls_are_silent_at_the_default_level(
    caplog: pytest.LogCaptureFixture, operation: str, code: str
) -> None:
    """At info nothing is written of a poll that succeeds, and all the rest is."""
    caplog.set_level(logging.INFO, CALLS)
    LogHook().ended(ended(operation, code))
    assert len(caplog.records) == (LEVELS[operation, code] != "DEBUG")


def test_a_call_is_one_event_with_facts(caplog: pytest.LogCaptureFixture) -> None:
    """The event's name is constant; what differs between calls is in fields."""
    error = ValueError("why")
    LogHook().ended(ended("get", "INTERNAL", details="text", incident="0badcafe", error=error))
    written = fields(caplog.records[0])
    assert written.pop("time")
    assert written.pop("traceback") == "ValueError: why"
    assert written == {
        "level": "error",
        "logger": CALLS,
        "event": "call",
        "operation": "get",
        "task_type": "spark",
        "code": "INTERNAL",
        "milliseconds": 12.3,
        "protocol": "flyteidl",
        "incident": "0badcafe",
        "details": "text",
    }


@dataclass
class Meta(ResourceMeta):
    job: str


class Remote(AsyncConnectorBase):
    def __init__(self) -> None:
        super().__init__(task_type_name="remote", metadata_type=Meta)
        self.error: Exception | None = None

    def create(self) -> Meta:
        return Meta("1")

    def get(self, resource_meta: Meta) -> Resource:
        if self.error:
            raise self.error
        return Resource(TaskExecution.RUNNING)

    def delete(self, resource_meta: Meta) -> None:
        pass


async def test_a_jobs_life_as_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Over a real port: create and delete at info, polls at debug, a bug with its traceback."""
    caplog.set_level(logging.DEBUG, CALLS)
    connector, category = Remote(), TaskCategory("remote")
    bare = ConnectorSection(guarantees=False)
    async with serve(connector, policy=bare) as served, served.client() as client:
        meta = await client.create(TaskTemplate(type="remote"))
        await client.get(category, meta)
        for error in (TransientError("busy"), ValueError("password=hunter2")):
            connector.error = error
            with pytest.raises(grpc.aio.AioRpcError):
                await client.get(category, meta)
        await client.delete(category, meta)
    logged: list[Any] = [one for one in caplog.records if one.name == CALLS]
    assert [(one.levelname, one.operation, one.code) for one in logged] == [
        ("INFO", "create", "OK"),
        ("DEBUG", "get", "OK"),
        ("WARNING", "get", "UNAVAILABLE"),
        ("ERROR", "get", "INTERNAL"),
        ("INFO", "delete", "OK"),
    ]
    assert [one.exc_info is not None for one in logged] == [False, False, False, True, False]
    bug = text(logged[3])
    assert "in get\n" in bug
    assert "hunter2" not in bug


async def test_an_absorbed_poll_tells_its_fault_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The caller gets OK; the log has the fault, a bug with its traceback and its incident."""
    caplog.set_level(logging.DEBUG, CALLS)
    connector, category = Remote(), TaskCategory("remote")
    async with serve(connector) as served, served.client() as client:
        meta = await client.create(TaskTemplate(type="remote"))
        for error in (TransientError("busy"), ValueError("password=hunter2")):
            connector.error = error
            resource = await client.get(category, meta)
            assert resource.phase == TaskExecution.RUNNING
    calls: list[Any] = [one for one in caplog.records if one.name == CALLS]
    assert [(one.levelname, one.operation, one.code) for one in calls] == [
        ("INFO", "create", "OK"),
        ("DEBUG", "get", "OK"),
        ("DEBUG", "get", "OK"),
    ]
    transient, bug = [
        one
        for one in caplog.records
        if one.levelno >= logging.WARNING
        # grpc.aio's own complaints of a process with several loops, one a test, are not of it.
        and one.name.startswith("connector_service")
        and not one.name.endswith("watchdog")  # a machine that stood still for a moment
    ]
    assert (transient.levelname, fields(transient)["error"]) == ("WARNING", "busy")
    written = text(bug)
    assert bug.levelname == "ERROR"
    assert "in get\n" in written
    assert "hunter2" not in written
    assert f"(incident {fields(bug)['incident']})" in resource.message


# --- the process's logger ---------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["text", "json"])
def test_every_logger_of_the_process_writes_in_one_format(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], format_: Any
) -> None:
    """A library's record goes to standard error as ours do, redacted, from the level asked for."""
    configure(Log(log_format=format_, log_level="warning"))
    configure(Log(log_format=format_, log_level="warning"))  # twice adds no second line
    logging.getLogger("a.library").info("too quiet")
    logging.getLogger("a.library").warning("token=%s", "hunter2")
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "token=***" in line
    if format_ == "json":
        assert json.loads(line)["logger"] == "a.library"


def test_what_asyncio_complains_of_is_in_the_format_too(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that fails unseen is reported by the event loop, as one JSON object."""
    configure(Log(log_format="json"))

    async def main() -> None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "unseen", "exception": ValueError("password=hunter2")}
        )

    asyncio.run(main())
    written = json.loads(capsys.readouterr().err)
    assert (written["logger"], written["event"]) == ("asyncio", "unseen")
    assert "hunter2" not in written["traceback"]
