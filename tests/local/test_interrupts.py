"""Ctrl+C and SIGTERM in mid-job delete it once and say so; the display suits where it is shown."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("connector-service")
PATIENCE = 30.0

CONNECTOR = """
import pathlib, time
from dataclasses import dataclass
from flyteidl.core.execution_pb2 import TaskLog
from connector_service import AsyncConnectorBase, ConnectorRegistry, Phase, Resource, ResourceMeta

@dataclass
class Job(ResourceMeta):
    until: float

class Waits(AsyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="waits", metadata_type=Job)
    async def create(self, task_template):
        return Job(time.time() + task_template.custom["seconds"])
    async def get(self, resource_meta):
        phase = Phase.RUNNING if time.time() < resource_meta.until else Phase.SUCCEEDED
        message = "busy \\x1b[2J" if phase == Phase.RUNNING else "finished"
        link = TaskLog(name="console", uri="https://backend.example/1")
        return Resource(phase, message, [link])
    def delete(self, resource_meta):
        with open("deleted", "a") as file:
            file.write("once ")
        time.sleep(float(pathlib.Path("slowness").read_text()))

ConnectorRegistry.register(Waits())
"""

PROGRAM = """
import asyncio, signal, sys
import waits
from connector_service.local import AsyncConnectorExecutorMixin, ConnectorTask

class Task(AsyncConnectorExecutorMixin, ConnectorTask):
    poll_interval = 0.05

class Bare(ConnectorTask):
    poll_interval = 0.05

class Keeps(Task):
    def connector_signal_handler(self, resource_meta, signum, frame):
        print("kept", type(resource_meta).__name__, signal.Signals(signum).name)

class Extends(Task):
    def connector_signal_handler(self, resource_meta, signum, frame):
        print("extended")
        super().connector_signal_handler(resource_meta, signum, frame)

def call():
    return globals()[sys.argv[1]]("nap", "waits", custom={"seconds": float(sys.argv[2])})()

async def inside():
    return call()

try:
    print(asyncio.run(inside()) if sys.argv[3:] == ["inside"] else call())
except BaseException as error:
    print(type(error).__name__, getattr(error, "code", ""))
    raise
finally:
    print("left", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "waits.py").write_text(CONNECTOR)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "slowness").write_text("0")
    running: list[subprocess.Popen[str]] = []

    def begin(*command: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CONNECTOR_SERVICE_")}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=tmp_path,
            env={**environ, "TERM": "xterm", "PYTHONPATH": str(tmp_path), "COLUMNS": "100"},
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(ValueError):
            process.communicate()


@pytest.fixture(params=["rich", "no rich"])
def has_rich(request: pytest.FixtureRequest, tmp_path: Path) -> bool:
    """Whether the processes of a test find rich."""
    if request.param == "no rich":
        (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('No module named rich')")
    return bool(request.param == "rich")


def program(kind: str, seconds: float, *more: str) -> tuple[str, ...]:
    return sys.executable, "program.py", kind, str(seconds), *more


def command(seconds: float) -> tuple[str, ...]:
    template = f'{{"type": "waits", "custom": {{"seconds": {seconds}}}}}'
    return str(COMMAND), "run", "--module=waits", "--poll=0.05", f"--template={template}"


def until(process: subprocess.Popen[str], text: str) -> str:
    """Read standard error up to the line with ``text``."""
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(
    "how",
    [program("Task", 60), program("Bare", 60), program("Task", 60, "inside"), command(60)],
    ids=["mixin", "bare task", "inside a loop", "command"],
)
def test_a_signal_in_mid_job_deletes_it_once(
    how: tuple[str, ...], number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    """The job is deleted, once, that is said, and the process ends as the signal asks."""
    process = start(*how)
    until(process, "RUNNING")
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert "interrupted; deleting the job" in err
    assert "the job was deleted" in err
    assert (tmp_path / "deleted").read_text() == "once "
    if how[0] == str(COMMAND):
        assert out == ""
        assert process.returncode == 128 + number
    else:
        ended = "KeyboardInterrupt" if number is signal.SIGINT else "SystemExit 143"
        assert ended in out
        assert "left True" in out
        assert process.returncode == (-number if number is signal.SIGINT else 128 + number)


def test_a_second_signal_does_not_wait_for_the_deletion(start: Start, tmp_path: Path) -> None:
    """Who presses Ctrl+C twice is let go at once."""
    (tmp_path / "slowness").write_text("3")
    process = start(*program("Task", 60))
    until(process, "RUNNING")
    process.send_signal(signal.SIGINT)
    end = time.monotonic() + PATIENCE
    while not (tmp_path / "deleted").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    pressed = time.monotonic()
    assert "KeyboardInterrupt" in process.stdout.readline()
    assert time.monotonic() - pressed < 2
    _, err = process.communicate(timeout=PATIENCE)
    assert "not waiting any longer; the job may still run" in err
    assert (tmp_path / "deleted").read_text() == "once "


def test_an_override_that_keeps_the_job_keeps_it(start: Start, tmp_path: Path) -> None:
    """``connector_signal_handler`` gets the decoded meta; who does not call ours keeps the job."""
    process = start(*program("Keeps", 60))
    until(process, "RUNNING")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert "kept Job SIGINT" in out
    assert "KeyboardInterrupt" in out
    assert "the job was left to its signal handler" in err
    assert not (tmp_path / "deleted").exists()


def test_an_override_that_calls_ours_deletes(start: Start, tmp_path: Path) -> None:
    """``super().connector_signal_handler`` deletes, as upstream's does."""
    process = start(*program("Extends", 60))
    until(process, "RUNNING")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert "extended" in out
    assert "the job was deleted" in err
    assert (tmp_path / "deleted").read_text() == "once "


@pytest.mark.parametrize("how", [program("Task", 0.3), command(0.3)], ids=["task", "command"])
def test_a_pipe_gets_plain_lines(how: tuple[str, ...], start: Start) -> None:
    """Without a terminal each change is one line on standard error, with nothing to steer one."""
    process = start(*how)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    lines = [line.split("s ", 1)[-1].strip() for line in err.splitlines()]
    assert lines == [
        "RUNNING: busy  [2J",
        "console: https://backend.example/1",
        "SUCCEEDED: finished",
    ]
    assert "\x1b" not in err + out


def on_terminal(start: Start, how: tuple[str, ...], react: Callable[..., None]) -> tuple[str, int]:
    """Run with standard error on a pseudo-terminal; return what it showed and the exit code."""
    ours, theirs = pty.openpty()
    try:
        process = start(*how, stderr=theirs)
        os.close(theirs)
        shown = b""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other end was closed
                break
            if not data:
                break
            shown += data
            react(process, shown.decode(errors="replace"))
        return shown.decode(errors="replace"), process.wait(PATIENCE)
    finally:
        os.close(ours)


def test_a_terminal_gets_a_live_display(start: Start) -> None:
    """Name, phase, message, time and links are redrawn in place; the end stays on the screen."""
    shown, code = on_terminal(start, program("Task", 1.0), lambda *_: None)
    assert code == 0
    for part in ("nap", "RUNNING", "busy", "console: ", "https://backend.example/1"):
        assert part in shown
    assert "\x1b[2J" not in shown  # what the backend wrote never reaches the terminal
    assert shown.index("\x1b[?25l") < shown.rindex("\x1b[?25h")  # the cursor is shown again
    assert shown.count("RUNNING") > 2
    last = shown[shown.rindex("\x1b[?25h") :]
    assert "SUCCEEDED: finished" in last


def test_a_terminal_without_rich_gets_plain_lines(start: Start, tmp_path: Path) -> None:
    """Where the extra is not installed each change is one line, and the end has its colour."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('No module named rich')")
    shown, code = on_terminal(start, program("Task", 0.3), lambda *_: None)
    assert code == 0
    assert [line.split("s ", 1)[-1].strip() for line in shown.splitlines()] == [
        "RUNNING: busy  [2J",
        "console: https://backend.example/1",
        "\x1b[32mSUCCEEDED: finished\x1b[0m",
    ]


@pytest.mark.parametrize("how", [program("Task", 60), command(60)], ids=["task", "command"])
def test_ctrl_c_on_a_terminal_restores_it(
    how: tuple[str, ...], has_rich: bool, start: Start, tmp_path: Path
) -> None:
    """The live display, if any, gives way to the words, and the cursor comes back."""
    sent = []

    def react(process: subprocess.Popen[str], shown: str) -> None:
        if "RUNNING" in shown and not sent:
            sent.append(True)
            process.send_signal(signal.SIGINT)

    shown, code = on_terminal(start, how, react)
    assert code == (130 if how[0] == str(COMMAND) else -signal.SIGINT)
    assert "interrupted; deleting the job" in shown
    assert "the job was deleted" in shown
    assert ("\x1b[?25l" in shown) is has_rich
    assert shown.rfind("\x1b[?25h") >= shown.rfind("\x1b[?25l")
    assert (tmp_path / "deleted").read_text() == "once "
