"""Log lines for people (text) and for collectors (JSON), with secrets masked in both."""

from __future__ import annotations

import functools
import logging
import re
import sys
import traceback
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

import msgspec

from connector_service.runtime.hooks import OK, Hook
from connector_service.sdk.secrets import redact
from connector_service.telemetry.lines import Line, Lines, milliseconds, stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from connector_service.config import Log
    from connector_service.runtime.hooks import CallRecord

__all__ = ["JsonFormatter", "LogHook", "TextFormatter", "configure"]

_log = logging.getLogger("connector_service.calls")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MASK = "***"
_SIMPLE = frozenset({str, int, float, bool, type(None)})
# Every character at which some reader of text begins a new line.
_LINE_BREAK = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Creating and deleting are events in a job's life; polls are too many for the default level.
_EVENTS = frozenset({"create", "delete", "do"})


def configure(settings: Log, *, worker: str = "") -> None:
    """Send every logger of the process to standard error, in the format asked for.

    ``worker`` becomes a field of every line: which of several processes wrote it.
    """
    handler = Lines(sys.stderr, worker)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())


class TextFormatter(logging.Formatter):
    """One line a record: time, level, logger, event, its facts; a traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        """Render and redact."""
        facts = "".join(
            f" {key}={_MASK if _names_secret(key) else value}"
            for key, value in _facts(record).items()
            if value != ""
        )
        level = record.levelname.lower()
        line = f"{stamp(record.created)} {level:<7} {record.name}: {record.getMessage()}{facts}"
        # What a caller wrote must not begin a line of its own.
        line = redact(line)
        if not line.isprintable():
            line = _LINE_BREAK.sub(lambda found: ascii(found[0])[1:-1], line)
        trace = _trace(record)
        return f"{line}\n{redact(trace)}" if trace else line


class JsonFormatter(logging.Formatter):
    """One JSON object a record: constant event names, facts as fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render and redact."""
        fields: dict[str, Any] = {
            "time": stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if trace := _trace(record):
            fields["traceback"] = trace
        facts = {**fields, **_facts(record), **fields}  # no fact replaces what every line has
        if not _plain(facts):
            facts = {key: _masked(value, key) for key, value in facts.items()}
        return msgspec.json.encode(facts).decode()


class LogHook(Hook):
    """Writes what became of each call: failures always, events at info, polls at debug."""

    def loud(self, operation: str) -> Callable[[], bool]:
        """Return what tells whether such calls are written when they end well."""
        return functools.partial(_log.isEnabledFor, _level(operation))

    def well(self, protocol: str, operation: str, task_type: str) -> Callable[[float], None] | None:
        """Return what writes an event's line without a record; polls are seldom written."""
        if operation not in _EVENTS:
            return None

        def record(took: float) -> logging.LogRecord:
            return _record(logging.INFO, None, operation, task_type, OK, took, protocol)

        return Line(_log, logging.INFO, record).well

    def ended(self, record: CallRecord) -> None:
        """Write one record."""
        if record.code == OK:
            level = _level(record.operation)
        elif record.code == "CANCELLED":
            level = logging.INFO
        else:
            level = logging.ERROR if record.code == "INTERNAL" else logging.WARNING
        if not _log.isEnabledFor(level):
            return
        _log.handle(
            _record(
                level,
                record.error if record.incident else None,
                record.operation,
                record.task_type,
                record.code,
                milliseconds(record.seconds),
                record.protocol,
                record.incident,
                record.details,
            )
        )


def _record(
    level: int,
    error: BaseException | None,
    operation: str,
    task_type: str,
    code: str,
    took: float,
    protocol: str,
    incident: str = "",
    details: str = "",
) -> logging.LogRecord:
    """Make a call's record here and not by `log()`, which would look for its caller's frame."""
    trace = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord(_log.name, level, __file__, 0, "call", (), trace, "ended")
    vars(made).update(
        operation=str(operation),
        task_type=task_type,
        code=code,
        milliseconds=took,
        protocol=protocol,
        incident=incident,
        details=details,
    )
    return made


def _level(operation: str) -> int:
    return logging.INFO if operation in _EVENTS else logging.DEBUG


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _trace(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return record.exc_text or ""  # a child's: it comes as text
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()


def _plain(facts: Mapping[str, Any]) -> bool:
    """Tell, by one look at all of them, that there is nothing to mask or escape in any."""
    if any(type(value) not in _SIMPLE or _names_secret(key) for key, value in facts.items()):
        return False
    texts = "\n".join(value for value in facts.values() if type(value) is str)
    return texts.isascii() and redact(texts) == texts


def _masked(value: Any, key: str) -> Any:
    """Return ``value`` as JSON can hold it, every text in it redacted, by its key and by itself."""
    if value is None or value == "" or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {_text(each): _masked(item, _text(each)) for each, item in value.items()}
    if isinstance(value, list | tuple | Set):
        return [_masked(item, key) for item in value]
    if _names_secret(key):
        return _MASK
    return value if isinstance(value, int | float) else _text(value)


def _text(value: object) -> str:
    """Return the redacted text of ``value``; surrogates, which UTF-8 refuses, are escaped."""
    return redact(str(value)).encode("utf-8", "backslashreplace").decode()


@functools.lru_cache(1024)
def _names_secret(key: str) -> bool:
    return redact(f"{key}=value") != f"{key}=value"
