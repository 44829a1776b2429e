"""What a child says beside its answers: log records and last words, with secrets masked."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import traceback
from pathlib import Path

__all__ = ["RecordHandler", "adopt", "install", "learn", "learn_mounted", "redact", "say"]

_MASK = "***"
_SHORTEST = 4  # masking a shorter value would blot out ordinary words
_MOST_VALUES = 1_000
_MOST_FILES = 200
_LONGEST_SECRET = 16_384  # bytes of a file
_LONGEST = 16_000  # characters of a record's text

_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

_known: dict[str, None] = {}
_known_lock = threading.Lock()
_PATTERNS = (
    re.compile(
        r"()-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
        re.DOTALL,
    ),
    re.compile(r"(\b(?i:bearer|basic)\s{1,8})(?=[\w+/.~=-]*\d)[\w+/.~=-]{8,}"),
    re.compile(
        r"(?i)((?:passw(?:or)?d|secret[_-]?(?:access[_-]?)?key|api[_-]?key|access[_-]?token)"
        r"[\"']?\s{0,8}[=:]\s{0,8}[\"']?)[^\s\"',;&)}\]]+"
    ),
    re.compile(r"(://[^\s:/@]{0,256}:)[^\s/\"<>]+(?=@)"),
)


def learn(value: str) -> None:
    """Mask ``value`` in whatever is said from now on."""
    if len(value) < _SHORTEST:
        return
    with _known_lock:
        _known.pop(value, None)
        _known[value] = None
        while len(_known) > _MOST_VALUES:
            del _known[next(iter(_known))]


def learn_mounted() -> None:
    """Learn the secrets where both SDKs find them: variables of a prefix, files of a folder."""
    prefix = os.environ.get("FLYTE_SECRETS_ENV_PREFIX", "_FSEC_")
    for name, value in os.environ.items():
        if prefix and name.startswith(prefix):
            learn(value.strip())
    folder = Path(os.environ.get("FLYTE_SECRETS_DEFAULT_DIR", "/etc/secrets"))
    try:
        files = sorted(folder.rglob("*"))[:_MOST_FILES] if folder.is_dir() else []
        for file in files:
            if file.is_file() and file.stat().st_size <= _LONGEST_SECRET:
                learn(file.read_text(encoding="utf-8", errors="replace").strip())
    except OSError:
        return  # what cannot be read here, a connector cannot read either


def redact(text: str) -> str:
    """Mask the secrets that are known and what looks like one; the parent does so once more."""
    if _known:
        with _known_lock:
            values = sorted(_known, key=len, reverse=True)
        for value in values:
            if value in text:
                text = text.replace(value, _MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<1>{_MASK}", text)
    return text


class RecordHandler(logging.Handler):
    """Writes each record as one line that the parent reads as a record of its own log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record``; one that cannot be formatted is written as it was meant."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - wrong arguments of somebody's log call
            message = f"{record.msg!r} {record.args!r}"
        extra = [
            f"{name}={value}"
            for name, value in vars(record).items()
            if name not in _USUAL and isinstance(value, (str, int, float))
        ]
        if extra:
            message = f"{message} ({', '.join(extra)})"
        fields = {
            "level": record.levelname,
            "logger": record.name,
            "message": redact(message[:_LONGEST]),
        }
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info))
            fields["exc"] = redact(text[-_LONGEST:])
        say("connector-host-log", fields)


def say(kind: str, fields: object, descriptor: int = 2) -> None:
    """Write one line of ``kind`` in one piece; nobody may be left to read it."""
    data = f"{kind} {json.dumps(fields, separators=(',', ':'), default=str)}\n".encode()
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return


def install(level: str) -> None:
    """Have every log record of this process written for the parent."""
    root = logging.getLogger()
    root.handlers[:] = [RecordHandler()]
    root.setLevel(getattr(logging, level.upper(), logging.INFO))
    logging.captureWarnings(True)


def adopt(*names: str) -> None:
    """Lead loggers that a library gave handlers of their own to the root's."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
