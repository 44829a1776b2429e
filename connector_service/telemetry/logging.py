"""Log lines for people (text) and for collectors (JSON), with secrets masked in both."""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from connector_service.runtime.hooks import OK, Hook
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from connector_service.config import Log
    from connector_service.runtime.hooks import CallRecord

__all__ = ["JsonFormatter", "LogHook", "TextFormatter", "configure"]

_log = logging.getLogger("connector_service.calls")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Creating and deleting are events in a job's life; polls are too many for the default level.
_EVENTS = frozenset({"create", "delete", "do"})


def configure(settings: Log) -> None:
    """Send every logger of the process to standard error, in the format asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())


class TextFormatter(logging.Formatter):
    """One line a record: time, level, logger, event, its facts; a traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        """Render and redact."""
        facts = "".join(f" {key}={value}" for key, value in _facts(record).items() if value != "")
        level = record.levelname.lower()
        line = f"{_time(record)} {level:<7} {record.name}: {record.getMessage()}{facts}"
        return redact(line + _trace(record, "\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object a record: constant event names, facts as fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render and redact."""
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_facts(record),
        }
        if trace := _trace(record, ""):
            fields["traceback"] = trace
        redacted = {
            key: redact(value) if isinstance(value, str) else value for key, value in fields.items()
        }
        return msgspec.json.encode(redacted, enc_hook=str).decode()


class LogHook(Hook):
    """Writes what became of each call: failures always, events at info, polls at debug."""

    def ended(self, record: CallRecord) -> None:
        """Write one record."""
        if record.code == OK:
            level = logging.INFO if record.operation in _EVENTS else logging.DEBUG
        elif record.code == "CANCELLED":
            level = logging.INFO
        else:
            level = logging.ERROR if record.code == "INTERNAL" else logging.WARNING
        if not _log.isEnabledFor(level):
            return
        _log.log(
            level,
            "call",
            extra={
                "operation": str(record.operation),
                "task_type": record.task_type,
                "code": record.code,
                "milliseconds": round(record.seconds * 1000, 1),
                "protocol": record.protocol,
                "incident": record.incident,
                "details": record.details,
            },
            exc_info=record.error if record.incident else None,
        )


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _trace(record: logging.LogRecord, before: str) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    return before + "".join(traceback.format_exception(*record.exc_info)).rstrip()
