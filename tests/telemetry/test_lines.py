"""Lines of calls that ended well: written together, a little later, and like any other."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

from connector_service.config import Log
from connector_service.runtime.hooks import OK, CallRecord
from connector_service.sdk.secrets import mask
from connector_service.telemetry.lines import Lines
from connector_service.telemetry.logging import LogHook, configure

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = "connector_service.calls"
WITHIN = 10.0  # seconds for what takes 20 ms


class Heard(io.StringIO):
    """A stream that tells when something was written, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        self.written.set()
        return super().write(text)


@pytest.fixture
def stream(root: logging.Logger) -> Heard:
    return Heard()


def begin(stream: Heard, settings: Log | None = None, worker: str = "") -> Lines:
    """Have the process log as a service does, but to ``stream``."""
    configure(settings or Log(), worker=worker)
    (lines,) = logging.getLogger().handlers
    assert isinstance(lines, Lines)
    lines.setStream(stream)
    return lines


def writer(task_type: str = "spark", operation: str = "create") -> Callable[[float], None]:
    found = LogHook().well("flyteidl", operation, task_type)
    assert found is not None
    return found


def record(task_type: str, seconds: float) -> CallRecord:
    return CallRecord("flyteidl", "create", task_type, OK, seconds)


def untimed(line: str) -> str:
    """Take the time out, which stands first in text and in the first field in JSON."""
    if line.startswith("{"):
        return json.dumps({**json.loads(line), "time": ""})
    return line.partition(" ")[2]


@pytest.mark.parametrize("worker", ["", "2"])
@pytest.mark.parametrize("format_", ["text", "json"])
async def test_a_line_is_what_its_record_would_have_been(
    stream: Heard, format_: Any, worker: str
) -> None:
    """In either format, of a worker or not, nothing but the moment of writing differs."""
    begin(stream, Log(log_format=format_), worker)
    writer()(0.01234)
    writer('a name = with {odd} \\ "things" 7.5')(12.0)
    LogHook().ended(record("spark", 0.01234))
    LogHook().ended(record('a name = with {odd} \\ "things" 7.5', 12.0))
    lines = [untimed(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 4
    assert lines[:2] == lines[2:]


async def test_lines_are_written_together_and_soon(stream: Heard) -> None:
    """A hundred creates are one write, which comes by itself."""
    begin(stream)
    write = writer()
    for _ in range(100):
        write(0.001)
    assert stream.writes == 0
    async with asyncio.timeout(WITHIN):
        await stream.written.wait()
    assert stream.writes == 1
    assert len(stream.getvalue().splitlines()) == 100


async def test_a_line_has_the_time_at_which_its_call_ended(stream: Heard) -> None:
    """However long it waited: the times are those of the calls, in their order."""
    lines = begin(stream)
    write = writer()
    write(0.001)
    await asyncio.sleep(0.01)
    write(0.001)
    lines.flush()
    first, second = (line.split()[0] for line in stream.getvalue().splitlines())
    assert first < second


async def test_another_record_comes_after_the_lines_before_it(stream: Heard) -> None:
    """The order of a log is the order of events, though some of its lines wait."""
    begin(stream)
    write = writer()
    write(0.001)
    logging.getLogger("other").warning("in between")
    write(0.002)
    logging.getLogger("other").warning("at the end")
    told = [line.split(": ", 1)[1].split()[0] for line in stream.getvalue().splitlines()]
    assert told == ["call", "in", "call", "at"]


async def test_nothing_that_waits_is_lost_at_the_end(stream: Heard) -> None:
    """What ends a process in order flushes its handlers, which writes what waits."""
    lines = begin(stream)
    writer()(0.001)
    lines.flush()
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("format_", ["text", "json"])
async def test_a_secret_handed_out_later_is_masked_in_lines_too(
    stream: Heard, format_: Any
) -> None:
    """A line is made once; what it holds is searched whenever it is written."""
    lines = begin(stream, Log(log_format=format_))
    write = writer(f"a-task-type-of-{format_}-lines")
    write(0.001)
    lines.flush()
    assert f"a-task-type-of-{format_}-lines" in stream.getvalue()
    mask(f"type-of-{format_}-lines")
    write(0.001)
    lines.flush()
    assert "a-task-***" in stream.getvalue().splitlines()[-1]


async def test_lines_obey_the_level(stream: Heard) -> None:
    """At warning no event is written, and none waits."""
    lines = begin(stream, Log(log_level="warning"))
    writer()(0.001)
    lines.flush()
    assert stream.getvalue() == ""


async def test_whoever_else_listens_hears_records(
    stream: Heard, root: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler of the embedding program gets each call as a record with its facts, at once."""
    begin(stream)
    root.addHandler(caplog.handler)
    writer()(0.0015)
    (heard,) = caplog.records
    assert (heard.name, heard.levelname, heard.getMessage()) == (CALLS, "INFO", "call")
    assert vars(heard)["milliseconds"] == 1.5
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("name", [CALLS, "connector_service", ""])
async def test_a_listener_that_comes_meanwhile_hears_what_waits(
    stream: Heard, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """On whichever logger: a line that waits becomes a record, with the time of its call."""
    lines = begin(stream)
    writer()(0.0015)
    log, ended = logging.getLogger(name), time.time()
    await asyncio.sleep(0.001)
    log.addHandler(caplog.handler)
    try:
        lines.flush()
    finally:
        log.removeHandler(caplog.handler)
    (heard,) = caplog.records
    assert vars(heard)["milliseconds"] == 1.5
    assert heard.created <= ended
    assert len(stream.getvalue().splitlines()) == 1


def test_a_loop_that_ends_with_lines_waiting_loses_none(stream: Heard) -> None:
    """The next loop's calls write them, though the timer that was to do it has gone."""
    lines = begin(stream)

    write = writer()

    async def main() -> None:
        write(0.001)

    asyncio.run(main())
    assert stream.getvalue() == ""
    lines.until = 0.0  # a second later
    asyncio.run(main())
    assert len(stream.getvalue().splitlines()) == 1
    lines.flush()
    assert len(stream.getvalue().splitlines()) == 2


def test_polls_have_no_line() -> None:
    """They are written at debug alone, as records."""
    assert LogHook().well("flyteidl", "get", "spark") is None
