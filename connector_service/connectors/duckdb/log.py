"""The job's log: stamped lines from the child, pages of them for whoever asks."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
from typing import TYPE_CHECKING

from flyteidl.admin import agent_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from connector_service.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["log_pages", "say"]

_PAGE_LINES = 1000  # a page when the caller names no number
_MOST_LINES = 10_000
_CHUNK_LINES = 200
_CHUNK_BYTES = 256 << 10  # a message stays far below gRPC's 4 MiB
_LONGEST_LINE = 8 << 10
_STAMPED = re.compile(rb"(\d{4}-\d\d-\d\dT\S+) ([SU]) (.*)", re.DOTALL)


def say(text: str, originator: str = "S") -> None:
    """Write to the job's log, which is the child's standard error, one stamp a line.

    ``originator`` is U for what concerns the user's SQL, S for the rest.
    """
    now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
    lines = "".join(f"{now} {originator} {line}\n" for line in text.splitlines() or [""])
    with contextlib.suppress(OSError):
        os.write(2, lines.encode("utf-8", "replace"))


def log_pages(path: Path, lines: int, token: str) -> Iterator[agent_pb2.GetTaskLogsResponse]:
    """Yield one page of the log in chunks, then where the next page starts, if there is one.

    ``token`` is the offset in bytes; ``lines`` 0 is a page of 1000.

    Raises:
        InvalidRequestError: The token is none of this log's.
    """
    if token and not re.fullmatch(r"\d{1,18}", token):
        raise InvalidRequestError(f"The log token {token[:40]!r} is none that this service gave.")
    wanted = min(lines or _PAGE_LINES, _MOST_LINES)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        size = os.fstat(file.fileno()).st_size
        start = int(token or 0)
        if start > size:
            raise InvalidRequestError(f"The log token {token} lies behind the log's end.")
        file.seek(start)
        # What a library or a crash prints has no stamp: it gets that of the line before.
        moment, originator = (
            dt.datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, dt.UTC),
            b"S",
        )
        body = agent_pb2.GetTaskLogsResponseBody()
        held = 0
        for _ in range(wanted):
            if not (line := file.readline(_LONGEST_LINE)):
                break
            text = line.rstrip(b"\r\n")
            if stamped := _STAMPED.fullmatch(text):
                moment, originator = _moment(stamped[1], moment), stamped[2]
                text = stamped[3]
            stamp = Timestamp()
            stamp.FromDatetime(moment)
            body.structured_lines.append(
                agent_pb2.LogLine(
                    timestamp=stamp,
                    message=text.decode("utf-8", "replace") + "\n",
                    originator="USER" if originator == b"U" else "SYSTEM",
                )
            )
            held += len(text)
            if len(body.structured_lines) >= _CHUNK_LINES or held >= _CHUNK_BYTES:
                yield agent_pb2.GetTaskLogsResponse(body=body)
                body, held = agent_pb2.GetTaskLogsResponseBody(), 0
        if body.structured_lines:
            yield agent_pb2.GetTaskLogsResponse(body=body)
        if file.tell() < size:
            header = agent_pb2.GetTaskLogsResponseHeader(token=str(file.tell()))
            yield agent_pb2.GetTaskLogsResponse(header=header)


def _moment(stamp: bytes, otherwise: dt.datetime) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(stamp.decode("ascii"))
    except ValueError:
        return otherwise
