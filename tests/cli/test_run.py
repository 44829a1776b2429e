"""``connector-service run``: one job to its end, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import COMMAND, PATIENCE

Service = Any
Cli = Any
Start = Any

FAST = ("--poll", "0.01")


def job(service: Service, mode: str, *more: str) -> tuple[str, ...]:
    inputs = json.dumps({"mode": mode})
    return (
        "run", "--endpoint", service.endpoint, "--task-type", "job", "--inputs", inputs, *more
    )  # fmt: skip


def test_a_job_runs_to_its_outputs(service: Service, cli: Cli) -> None:
    """Outputs are JSON on standard output; in a pipe, progress is plain lines on the other."""
    run = cli(*job(service, "ok", *FAST))
    assert run.code == 0
    assert run.json == {"n": 3, "s": "ü"}
    assert [re.sub(r"^ +\d+\.\ds ", "", line) for line in run.err.splitlines()] == [
        "RUNNING: warming up",
        "  dashboard: http://dashboard.example/1",
        "SUCCEEDED: done",
    ]
    assert "\x1b" not in run.err
    assert service.job.polls == ["ok"] * 3
    assert service.job.deleted == []


def test_a_sync_connector_answers_at_once(service: Service, cli: Cli) -> None:
    """`run` finds out by itself that the task type is sync."""
    run = cli("run", "--endpoint", service.endpoint, "--task-type", "ask")
    assert (run.code, run.json) == (0, {"answer": 42})


def test_outputs_that_the_job_wrote_are_read(service: Service, here: Cli) -> None:
    """A reply without outputs means that they are a file, which Flyte would read too."""
    run = here(*job(service, "file", *FAST))
    assert (run.code, run.json) == (0, {"from": "the file"})
    [(_, prefix, _, _)] = service.job.created
    assert prefix.startswith("file:///")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("job", "fail"), 1, r"Error: [Tt]he job .*ended FAILED: no such table$"),
        (("ask", "fail"), 1, r"Error: [Tt]he job .*ended FAILED: I would rather not$"),
        (
            ("job", "refuse"),
            1,
            r"Error: [Tt]he job .*ended FAILED: The table is unknown: password=\*\*\*",
        ),
        (("job", "bug"), 1, "Error: INTERNAL: create failed for task type 'job' version 0 with"),
        (
            ("job", "gone"),
            1,
            r"Error: [Tt]he job .*ended RETRYABLE_FAILED: The job is gone: The job is no more$",
        ),
        (("jab", "ok"), 1, "Error: No connector for task type 'jab' version 0; registered: ask v0"),
        (("job:1", "ok"), 1, "Error: No connector for task type 'job' version 1; registered: ask"),
        (("job:x", "ok"), 2, "Error: --task-type job:x: the version after the colon is a number."),
    ],
)
def test_a_job_that_goes_wrong_is_one_sentence_and_a_code(
    arguments: tuple[str, str], code: int, sentence: str, service: Service, here: Cli
) -> None:
    """A job that failed or was refused is exit code 1, wrong usage 2; nothing is printed."""
    task_type, mode = arguments
    about = ("--endpoint", service.endpoint, "--task-type", task_type)
    run = here("run", *about, "--inputs", json.dumps({"mode": mode}), *FAST)
    assert re.match(sentence, run.sentence)
    assert (run.code, run.out) == (code, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Error: Name the task type with --task-type, or in --template as `type`."),
        (("--task-type", "t", "--poll", "0"), "Error: Invalid value for '--poll': 0.0 is not in"),
        (("--task-type", "t", "--inputs", "x"), "Error: Cannot read x: No such file or directory."),
        (("--template", "{}"), "Error: Name the task type with --task-type, or in --template as"),
        (
            ("--endpoint", "127.0.0.1:1", "--task-type", "t", "--module", "m"),
            "Error: --module cannot change the service at --endpoint; leave one of them out.",
        ),
    ],
)
def test_wrong_usage_is_code_two(arguments: tuple[str, ...], sentence: str, here: Cli) -> None:
    """A mistake on the command line is told before anything is started."""
    run = here("run", *arguments)
    assert run.sentence.startswith(sentence)
    assert (run.code, run.out) == (2, "")


def test_a_service_that_is_not_there_is_code_one(here: Cli) -> None:
    """An endpoint that nobody serves is told as such."""
    run = here("run", "--endpoint", "127.0.0.1:1", "--task-type", "t")
    assert (run.code, run.out) == (1, "")
    assert run.sentence.endswith("Is the service running there? Check --endpoint.")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_deletes_the_job(
    service: Service, start: Start, number: signal.Signals
) -> None:
    """Ctrl+C, or SIGTERM, deletes the job before the command leaves, and says so."""
    started = start(*job(service, "forever", *FAST))
    assert service.job.polled.wait(PATIENCE)
    run = started.end(number)
    assert run.code == 130 or (run.code == 143 and number is signal.SIGTERM)
    assert run.out == ""
    assert service.job.deleted == ["forever"]
    assert "interrupted; deleting the job" in run.err
    assert "Traceback" not in run.err


def test_a_job_that_cannot_be_deleted_is_told(service: Service, start: Start) -> None:
    """When the delete is refused, it is said that the job may still run, and why."""
    started = start(*job(service, "sticky", *FAST))
    assert service.job.polled.wait(PATIENCE)
    run = started.end(signal.SIGINT)
    assert run.code in (1, 130)
    assert "may still run" in run.err
    assert "The backend holds on to it." in run.err
    assert "Traceback" not in run.err


def test_a_job_that_is_lost_from_sight_is_deleted(service: Service, here: Cli) -> None:
    """When polling is refused nobody else would delete the job; the error stays the last line."""
    run = here(*job(service, "hidden", *FAST))
    assert service.job.deleted == ["hidden"]
    assert "deleted" in run.err
    assert run.sentence == "Error: INVALID_ARGUMENT: Nobody may look."


OWN = """
import sys
from connector_service import *

class Mine(SyncConnectorBase):
    def __init__(self):
        super().__init__(task_type_name="mine")
    def configure(self, options):
        self.greeting = options.get("greeting", "none")
    def do(self, inputs):
        if from_literal_map(inputs).get("bug"):
            raise RuntimeError("token=abcdefgh1234")
        return Resource(Phase.Value("SUCCEEDED"), outputs={"greeting": self.greeting})

ConnectorRegistry.register(Mine())
"""


def test_a_job_runs_without_a_service(tmp_path: Path, cli: Cli) -> None:
    """Without --endpoint an author's module is served for one job, with its options."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "settings.toml").write_text('connectors.mine.options.greeting = "hello"\n')
    about = ("run", "--module", "own", "--config", "settings.toml", "--task-type", "mine")
    run = cli(*about)
    assert (run.code, run.json) == (0, {"greeting": "hello"}), run.err


def test_a_bug_of_the_author_is_located_and_redacted(tmp_path: Path, cli: Cli) -> None:
    """Here the terminal is the only log: the author reads type, text and file, secrets masked."""
    (tmp_path / "own.py").write_text(OWN)
    run = cli("run", "--module", "own", "--task-type", "mine", "--inputs", '{"bug": true}')
    assert (run.code, run.out) == (1, "")
    assert "RuntimeError: token=***" in run.err
    assert "own.py" in run.err
    assert "abcdefgh1234" not in run.err
    assert run.err.splitlines()[-1].startswith("Error: ")


# A process of its own session, whose controlling terminal is its standard input.
ON_A_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


class Terminal:
    """A pseudo-terminal with a command on it."""

    def __init__(self, arguments: tuple[str, ...], environ: dict[str, str], out: Any) -> None:
        self.screen = ""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, str(COMMAND), *arguments],
            stdin=slave,
            stdout=slave if out is None else out,
            stderr=slave,
            env=environ,
            start_new_session=True,
        )
        os.close(slave)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, text: str) -> None:
        """Read the screen until ``text`` stands on it."""
        end = time.monotonic() + PATIENCE
        while text not in self.screen:
            assert time.monotonic() < end, (
                f"never on the screen: {text!r} in {self.screen[-500:]!r}"
            )
            assert self._read(), f"ended without {text!r}: {self.screen[-500:]!r}"

    def end(self) -> int:
        """Read on until the command has ended."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        os.close(self._master)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], PATIENCE)
        assert ready, f"silent: {self.screen[-500:]!r}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.screen += data.decode()
        return bool(data)


@pytest.fixture
def terminal(environ: dict[str, str]) -> Iterator[Any]:
    """Put commands on terminals."""
    opened: list[Terminal] = []

    def start(*arguments: str, out: Any = None) -> Terminal:
        opened.append(Terminal(arguments, environ, out))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_ctrl_c_on_a_terminal_deletes_the_job(service: Service, terminal: Any) -> None:
    """The key itself, on a terminal with its moving progress: the job is gone, the code is 130."""
    screen = terminal(*job(service, "forever", *FAST))
    screen.until("still [/going] on")  # brackets in a message are no markup
    screen.type("\x03")
    assert screen.end() == 130
    assert service.job.deleted == ["forever"]
    assert "interrupted; deleting the job" in screen.screen
    assert "Traceback" not in screen.screen
    assert screen.screen.count("\x1b[?25l") == screen.screen.count("\x1b[?25h")  # cursor is back


def test_a_terminal_shows_progress_and_a_file_gets_the_outputs(
    service: Service, terminal: Any, tmp_path: Path
) -> None:
    """`run ... > outputs.json` shows progress on the terminal and leaves pure JSON in the file."""
    file = tmp_path / "outputs.json"
    with file.open("w") as out:
        screen = terminal(*job(service, "ok", "--poll", "0.2"), out=out)
        assert screen.end() == 0
    assert json.loads(file.read_text()) == {"n": 3, "s": "ü"}
    assert "\x1b[?25l" in screen.screen  # progress that moves
    assert "dashboard: http://dashboard.example/1" in screen.screen
    assert "SUCCEEDED" in screen.screen
