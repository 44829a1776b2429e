"""A service with connectors of every behaviour, and the installed command to drive it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemon import COMMAND, PATIENCE
from flyteidl.admin import agent_pb2
from flyteidl.core.execution_pb2 import TaskExecution, TaskLog
from flyteidl.core.metrics_pb2 import ExecutionMetricResult

from connector_service import (
    AsyncConnectorBase,
    GoneError,
    InvalidInputError,
    PermanentError,
    Resource,
    ResourceMeta,
    SyncConnectorBase,
    from_literal_map,
    to_literal_map,
)
from connector_service.cli.main import main
from connector_service.errors import InvalidRequestError
from connector_service.testing import Served, serve_in_thread


@dataclass
class JobMeta(ResourceMeta):
    mode: str
    padding: str = ""


class Job(AsyncConnectorBase):
    """A job whose input ``mode`` says how it goes."""

    name = "Job Connector"

    def __init__(self) -> None:
        super().__init__(metadata_type=JobMeta, task_type_name="job")
        self.polled = threading.Event()
        self.polls: list[str] = []
        self.deleted: list[str] = []
        self.created: list[Any] = []

    def create(
        self, task_template: Any, output_prefix: str, inputs: Any, task_execution_metadata: Any
    ) -> JobMeta:
        values = from_literal_map(inputs)
        self.created.append((task_template, output_prefix, values, task_execution_metadata))
        mode = values.get("mode", "ok")
        if mode == "refuse":
            raise InvalidInputError("The table is unknown: password=hunter2.")
        if mode == "bug":
            raise RuntimeError("text that is nobody's business")
        if mode == "file":
            outputs = to_literal_map({"from": "the file"})
            folder = Path(output_prefix.removeprefix("file://"))
            (folder / "outputs.pb").write_bytes(outputs.SerializeToString())
        return JobMeta(mode, "x" * 400 if mode == "long" else "")

    def get(self, resource_meta: JobMeta) -> Resource:
        self.polls.append(resource_meta.mode)
        self.polled.set()
        link = TaskLog(name="dashboard", uri="http://dashboard.example/1")
        if resource_meta.mode == "gone":
            raise GoneError("The job is no more.")
        if resource_meta.mode == "hidden":
            raise InvalidRequestError("Nobody may look.")
        if resource_meta.mode == "fail":
            return Resource(TaskExecution.FAILED, "no such table")
        if resource_meta.mode in ("forever", "sticky"):
            return Resource(TaskExecution.RUNNING, "still [/going] on", [link])
        if resource_meta.mode == "ok" and len(self.polls) < 3:
            return Resource(TaskExecution.RUNNING, "warming up", [link])
        outputs = None if resource_meta.mode == "file" else {"n": 3, "s": "ü"}
        return Resource(TaskExecution.SUCCEEDED, "done", outputs=outputs)

    def delete(self, resource_meta: JobMeta) -> None:
        if resource_meta.mode == "sticky":
            raise PermanentError("The backend holds on to it.")
        self.deleted.append(resource_meta.mode)

    def get_logs(self, resource_meta: JobMeta, lines: int, token: str) -> Iterator[Any]:
        for text in ("first", "second"):
            line = f"{text} of {lines} from {token or 'the start'}"
            body = agent_pb2.GetTaskLogsResponseBody(results=[line])
            yield agent_pb2.GetTaskLogsResponse(body=body)
        header = agent_pb2.GetTaskLogsResponseHeader(token="next")
        yield agent_pb2.GetTaskLogsResponse(header=header)

    def get_metrics(self, resource_meta: JobMeta, queries: list[str]) -> Any:
        return agent_pb2.GetTaskMetricsResponse(
            results=[ExecutionMetricResult(metric=query) for query in queries or ["cpu", "memory"]]
        )


class Ask(SyncConnectorBase):
    """Answers at once, or refuses."""

    name = "Ask"

    def __init__(self) -> None:
        super().__init__(task_type_name="ask")

    def do(self, inputs: Any) -> Resource:
        values = from_literal_map(inputs)
        if values.get("mode") == "fail":
            return Resource(TaskExecution.FAILED, "I would rather not")
        return Resource(TaskExecution.SUCCEEDED, outputs={"answer": 42})


@dataclass
class Service:
    """A running service and the connector whose jobs a test looks at."""

    served: Served
    job: Job

    @property
    def endpoint(self) -> str:
        return self.served.endpoint


@pytest.fixture(scope="session")
def running() -> Iterator[Service]:
    """One service for all tests of the command line."""
    job = Job()
    with serve_in_thread(job, Ask()) as served:
        yield Service(served, job)


@pytest.fixture
def service(running: Service) -> Service:
    """The service, with what its job connector remembers forgotten."""
    for remembered in (running.job.polls, running.job.deleted, running.job.created):
        remembered.clear()
    running.job.polled.clear()
    return running


@dataclass
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The last line of standard error, where every command says what went wrong."""
        assert "Traceback" not in self.err, self.err
        return self.err.rstrip("\n").rpartition("\n")[2]


class Started:
    """A command that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def end(self, number: signal.Signals | None = None, stdin: str = "") -> Ran:
        """Wait for the end, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(stdin, timeout=PATIENCE)
        return Ran(self.process.returncode, out, err)


Start = Callable[..., Started]
Cli = Callable[..., Ran]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """No setting of the machine's, a plain terminal, and modules of the test's folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CONNECTOR_SERVICE_")}
    return {**clean, "PYTHONPATH": str(tmp_path), "TERM": "xterm", "COLUMNS": "100"}


@pytest.fixture
def start(tmp_path: Path, environ: dict[str, str]) -> Iterator[Start]:
    """Start the installed command; whatever still runs at the end is killed by its id."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **settings: str) -> Started:
        chosen = {f"CONNECTOR_SERVICE_{key.upper()}": text for key, text in settings.items()}
        process = subprocess.Popen(
            [str(COMMAND), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environ, **chosen},
            cwd=tmp_path,
        )
        processes.append(process)
        return Started(process)

    yield start
    for process in processes:
        with process:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def cli(start: Start) -> Cli:
    """Run the installed command to its end."""

    def run(*arguments: str, stdin: str = "", **settings: str) -> Ran:
        return start(*arguments, **settings).end(stdin=stdin)

    return run


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command's entry in this process: the same code, without a new interpreter."""
    for name in [name for name in os.environ if name.startswith("CONNECTOR_SERVICE_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        out, err = capsys.readouterr()
        return Ran(int(caught.value.code or 0), out, err)

    return run


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
