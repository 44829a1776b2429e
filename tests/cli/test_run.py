"""``connector-service run``: one job to its end, in a pipe and on a terminal."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from daemon import PATIENCE

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


@pytest.fixture
def no_rich(tmp_path: Path) -> None:
    """An installation without rich, as the commands of a test see it."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('No module named rich')")


@pytest.mark.usefixtures("no_rich")
def test_a_job_is_shown_on_a_terminal_without_rich(service: Service, terminal: Any) -> None:
    """Without the extra a terminal gets a line a change, the end in colour, and nothing moves."""
    screen = terminal(*job(service, "ok", *FAST))
    assert screen.end() == 0
    before, _, outputs = screen.screen.partition("{")
    assert [re.sub(r"^ +\d+\.\ds ", "", line) for line in before.splitlines()] == [
        "RUNNING: warming up",
        "  dashboard: http://dashboard.example/1",
        "\x1b[32mSUCCEEDED: done\x1b[0m",
    ]
    assert json.loads("{" + outputs) == {"n": 3, "s": "ü"}


@pytest.mark.usefixtures("no_rich")
def test_ctrl_c_on_a_terminal_without_rich(service: Service, terminal: Any) -> None:
    """The key deletes the job without the extra too."""
    screen = terminal(*job(service, "forever", *FAST))
    screen.until("RUNNING: still [/going] on")
    screen.type("\x03")
    assert screen.end() == 130
    assert service.job.deleted == ["forever"]
    assert "interrupted; deleting the job" in screen.screen
    assert "Traceback" not in screen.screen


@pytest.mark.usefixtures("no_rich")
def test_commands_need_no_rich(service: Service, cli: Cli) -> None:
    """Whatever a command prints in a pipe is the same without the extra."""
    run = cli("list", "--endpoint", service.endpoint)
    assert (run.code, run.err) == (0, "")
    rows = [re.split("  +", line) for line in run.out.splitlines()]
    assert ["Job Connector", "job v0", "async"] in rows
    run = cli("describe", "--endpoint", service.endpoint, "ask")
    assert (run.code, run.out) == (0, "Ask: sync connector\n  task types: ask v0\n")
    run = cli(*job(service, "ok", *FAST))
    assert (run.code, run.json) == (0, {"n": 3, "s": "ü"})
    assert "\x1b" not in run.err


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_asks_for_plain_text_gets_it(
    service: Service,
    terminal: Any,
    environ: dict[str, str],
    variable: dict[str, str],
    no_rich: None,
) -> None:
    """NO_COLOR, and a terminal that understands no colours, are heeded."""
    environ.update(variable)
    screen = terminal(*job(service, "ok", *FAST))
    assert screen.end() == 0
    assert "SUCCEEDED: done" in screen.screen
    assert "\x1b" not in screen.screen
