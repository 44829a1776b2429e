"""What children print becomes log records: bounded, redacted, and named by their host."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator

import pytest
from process_hosts import QUICK, Hosts, ask, get, pid_of, until

from connector_service.hosts.output import HANDSHAKE, Output, Reader, Throttle
from connector_service.sdk.secrets import redact
from connector_service.telemetry.logging import JsonFormatter, TextFormatter

NAME = "connector_service.hosts.output"


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """Every record of this process, as its handlers see it."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            record.message = record.getMessage()
            found.append(record)

    root, handler = logging.getLogger(), Keep()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield found
    root.removeHandler(handler)
    root.setLevel(level)


async def test_prints_become_records(hosts: Hosts, records: list[logging.LogRecord]) -> None:
    """A line that a plugin prints is a record with the host, the worker and the pid."""
    host, _ = await hosts.started()
    pid = await pid_of(host)
    await ask(host, "print", "a plain line, password=hunter22")
    await until(lambda: any("a plain line" in record.message for record in records))
    (record,) = [record for record in records if "a plain line" in record.message]
    assert record.message == "a plain line, password=***"
    assert record.levelno == logging.INFO
    assert (vars(record)["host"], vars(record)["worker"], vars(record)["pid"]) == (
        "faulty",
        0,
        pid,
    )


async def test_secrets_of_the_environment_are_masked(
    hosts: Hosts, records: list[logging.LogRecord]
) -> None:
    """A value of the host's env with a secret's name is masked in whatever a child prints."""
    host, _ = await hosts.started(env={"BACKEND_TOKEN": "Vt7-quite-secret", "PLAIN": "in-the-open"})
    await ask(host, "print", "got Vt7-quite-secret and in-the-open")
    await until(lambda: any("in-the-open" in record.message for record in records))
    assert any(record.message == "got *** and in-the-open" for record in records)
    assert redact("Vt7-quite-secret") == "***"


async def test_lives_are_logged(hosts: Hosts, records: list[logging.LogRecord]) -> None:
    """Each start and each end is one record: who, and how it ended after how long."""
    host, events = await hosts.started()
    pid = await pid_of(host)
    with pytest.raises(Exception, match="ended while"):
        await host.run(get("exit", "9"))
    await events.seen("exited")
    started = next(record for record in records if record.message == "host process started")
    ended = next(record for record in records if record.message == "host process ended")
    assert (vars(started)["host"], vars(started)["worker"], vars(started)["pid"]) == (
        "faulty",
        0,
        pid,
    )
    assert vars(ended)["exit"] == "code 9"
    assert vars(ended)["pid"] == pid
    assert vars(ended)["seconds"] > 0
    assert ended.levelno == logging.WARNING


async def test_binary_junk_survives(hosts: Hosts, records: list[logging.LogRecord]) -> None:
    """Bytes that are no text are shown as escapes, and the next line is unharmed."""
    host, _ = await hosts.started()
    await ask(host, "bytes", (b"\xff\xfe junk \x00\n" + b"after it\n").hex())
    await until(lambda: any(record.message == "after it" for record in records))
    assert any(record.message == "\\xff\\xfe junk \0" for record in records)


async def test_flood_is_bounded(hosts: Hosts, records: list[logging.LogRecord]) -> None:
    """A child that floods its log is not slowed to a halt, few lines pass, the rest is counted."""
    host, events = await hosts.started(timing=QUICK._replace(lines=50), heartbeat_timeout=10.0)
    before = len(records)
    flood = asyncio.create_task(ask(host, "flood", "200000", seconds=60.0))
    calls = 0
    while not flood.done() and calls < 2000:
        await pid_of(host, seconds=5.0)
        calls += 1
    assert await flood == "done"

    def dropped() -> int:
        return sum(
            vars(record)["lines"] for record in records if record.message == "output dropped"
        )

    await until(lambda: dropped() > 150_000)
    passed = [record for record in records[before:] if record.message.startswith("flood")]
    await until(lambda: dropped() + len(passed) >= 200_000)
    assert len(passed) <= 50 * 60
    assert dropped() + len(passed) == 200_000
    assert not events.counts["hung"]


class Pipe:
    """An output read from a real pipe."""

    def __init__(self, lines: int = 1000, *, skips: bool = True) -> None:
        self.output = Output("h", 3, Throttle("h", lines))
        self.heard: list[bytes] = []
        self.reader = Reader(self.output, self._on_line, skips=skips)
        self.near, self.far = os.pipe()

    def _on_line(self, line: bytes) -> None:
        self.heard.append(line)
        self.output.line(line)

    async def write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: self.reader, os.fdopen(self.near, "rb", 0))

        def put() -> None:
            with os.fdopen(self.far, "wb", 0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]

        await asyncio.to_thread(put)
        await asyncio.wait_for(self.reader.closed.wait(), 20)


async def test_long_lines_are_cut(records: list[logging.LogRecord]) -> None:
    """A line without end costs no memory and is logged as its first 8 KiB."""
    pipe = Pipe()
    await pipe.write(b"x" * 5_000_000 + b"\nshort\nno line break at the end")
    assert [record.message for record in records if record.name == NAME] == [
        "x" * 8192 + " ...",
        "short",
        "no line break at the end",
    ]
    assert len(pipe.heard[0]) <= 64 * 1024


async def test_records_of_the_child(records: list[logging.LogRecord]) -> None:
    """A record that a child writes keeps its level, its logger and its traceback."""
    pipe = Pipe()
    said = {"level": "ERROR", "logger": "theirs.code", "message": "oh", "exc": "Trace token=abcd1"}
    lines = [
        b"connector-host-log " + json.dumps(said).encode(),
        b"connector-host-log {broken",
        b"connector-host-log " + json.dumps({"level": "NONE", "message": 5}).encode(),
    ]
    await pipe.write(b"\n".join(lines) + b"\n")
    first = next(record for record in records if record.name == "theirs.code")
    assert (first.levelname, first.message, first.exc_text) == ("ERROR", "oh", "Trace token=***")
    assert vars(first)["worker"] == 3
    assert TextFormatter().format(first).endswith("h worker=3 pid=0\nTrace token=***")
    assert json.loads(JsonFormatter().format(first))["traceback"] == "Trace token=***"
    rest = [record.message for record in records if record.name == NAME]
    assert rest[0] == "connector-host-log {broken"
    assert len(rest) == 2
    assert "theirs.code" not in logging.root.manager.loggerDict


async def test_last_words_survive_a_flood() -> None:
    """What a child gives as the reason of its end is kept though its flood was dropped."""
    pipe = Pipe(lines=2)
    reason = b'connector-host-error {"error": "Install grpcio there."}\n'
    await pipe.write(b"noise\n" * 500_000 + reason)
    assert pipe.output.last_words == "Install grpcio there."
    pipe = Pipe(lines=2)
    await pipe.write(b"noise\n" * 500_000 + b"MemoryError: secret=abc1\n")
    assert "MemoryError: secret=***" in pipe.output.last_words


async def test_handshake_survives_a_flood() -> None:
    """A handshake is heard in full whatever was printed before, and however long it is."""
    pipe = Pipe(lines=2, skips=False)
    handshake = HANDSHAKE + b'{"v": 1' + b" " * 3_000_000 + b"}"
    await pipe.write(b"noise\n" * 50_000 + handshake + b"\n")
    assert pipe.heard[-1] == handshake


async def test_dropped_lines_are_counted_exactly(records: list[logging.LogRecord]) -> None:
    """Lines that pass and lines that are dropped add up to what was printed."""
    pipe = Pipe(lines=10)
    await pipe.write(b"".join(b"line %d\n" % number for number in range(123_457)))
    pipe.output._throttle.close()
    passed = sum(record.message.startswith("line ") for record in records)
    dropped = sum(vars(r)["lines"] for r in records if r.message == "output dropped")
    assert passed + dropped == 123_457
    assert passed < 1000
