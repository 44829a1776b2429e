"""Tasks written for flytekit's executor mixins run here after changing one import.

One file of connectors and tasks runs twice under the locked flytekit: as it is, and with its one
import from ``base_connector`` changed to ours. ``make test-upstream`` builds the environment and
sets CONNECTOR_SERVICE_FLYTEKIT_PYTHON, which names its interpreter.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import connector_service

HERE = Path(__file__).parent
VARIABLE = "CONNECTOR_SERVICE_FLYTEKIT_PYTHON"
PYTHON = os.environ.get(VARIABLE, "")

if not PYTHON:
    pytest.skip(
        f"TASKS OF FLYTEKIT ARE NOT RUN: run `make test-upstream`, which sets {VARIABLE}",
        allow_module_level=True,
    )

UPSTREAM = re.compile(r"from flytekit\.extend\.backend\.base_connector import \(.*?\n\)", re.S)
OURS = """
from connector_service import (
    AsyncConnectorBase, ConnectorRegistry, Resource, ResourceMeta, SyncConnectorBase,
)
from connector_service.local import AsyncConnectorExecutorMixin, SyncConnectorExecutorMixin
"""
SAME = (
    "async",
    "plain",
    "outputs.pb",
    "sync",
    "sync async",
    "execute",
    "function",
    "workflow",
    "values",
)
CONSOLE = "https://backend.example/1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with both files, and our package alone on a path of its own."""
    folder = tmp_path_factory.mktemp("mixins")
    text = (HERE / "mixin_tasks.py").read_text()
    changed, times = UPSTREAM.subn(OURS, text)
    assert times == 1
    (folder / "theirs.py").write_text(text)
    (folder / "ours.py").write_text(changed)
    package = Path(connector_service.__file__).parent
    shutil.copytree(
        package, folder / "path" / package.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def begin(folder: Path, side: str, *arguments: str) -> subprocess.Popen[str]:
    # Nothing of this run's environment, such as FLYTE_* settings, reaches the SDK.
    environ = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder)}
    if side == "ours":
        environ["PYTHONPATH"] = str(folder / "path")
    return subprocess.Popen(
        [PYTHON, "-W", "ignore", f"{side}.py", *(arguments or (side,))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environ,
    )


def run(folder: Path, side: str) -> dict[str, Any]:
    process = begin(folder, side)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    told = json.loads(out.splitlines()[-1])
    assert isinstance(told, dict)
    assert told["version"] == "1.16.31"
    return {**told, "err": err}


@pytest.fixture(scope="module")
def theirs(folder: Path) -> dict[str, Any]:
    return run(folder, "theirs")


@pytest.fixture(scope="module")
def ours(folder: Path) -> dict[str, Any]:
    return run(folder, "ours")


def test_the_import_decides_who_runs_the_task(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """The comparison is one: each side runs its own mixins."""
    assert theirs["mixin"].startswith("flytekit.")
    assert ours["mixin"].startswith("connector_service.local.")


@pytest.mark.parametrize("case", SAME)
def test_a_task_returns_what_it_returned(
    case: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    """Async, plain, sync, file outputs, functions, workflows: same values with our import."""
    assert "value" in ours["outcomes"][case], ours["outcomes"][case]
    assert ours["outcomes"][case] == theirs["outcomes"][case]


def test_a_function_s_container_gets_its_places(ours: dict[str, Any]) -> None:
    """The arguments are rendered and inputs.pb is there, as pyflyte-execute wants them."""
    value, seen = ours["outcomes"]["function"]["value"]
    assert value == 105
    assert seen == {
        "--inputs": "PREFIX/inputs.pb",
        "--output-prefix": "PREFIX",
        "--raw-output-data-prefix": "PREFIX/raw_output",
    }


@pytest.mark.parametrize("phase", ["FAILED", "ABORTED", "RETRYABLE_FAILED"])
def test_a_failing_job_fails_the_task(
    phase: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    """Both sides raise with the job's message; ours is one error that names the phase."""
    failed = ours["outcomes"][phase]
    assert failed["error"] == "JobFailedError"
    assert f"ended {phase}: the cluster burned down" in failed["text"]
    assert "the cluster burned down" in theirs["outcomes"][phase]["text"]


@pytest.mark.parametrize("case", ["unknown async", "unknown sync"])
def test_an_unknown_task_type_is_told_apart(
    case: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    """Our sentence says what is registered."""
    told = ours["outcomes"][case]
    assert told["error"] == "ConnectorNotFoundError"
    assert "No connector for task type 'nobody' version 0; registered: aborted v0, " in told["text"]
    assert theirs["outcomes"][case]["error"] == "FlyteConnectorNotFound"


def test_a_task_runs_inside_a_running_loop(ours: dict[str, Any]) -> None:
    """As in a notebook, where upstream's mixins cannot."""
    assert ours["outcomes"]["inside a loop"] == {"value": 3}


def test_the_progress_is_told_in_plain_lines(ours: dict[str, Any]) -> None:
    """In a pipe each job leaves a line a phase and its links."""
    assert "SUCCEEDED: done" in ours["err"]
    assert f"console: {CONSOLE}" in ours["err"]
    assert "\x1b" not in ours["err"]


@pytest.fixture
def endless(folder: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    process = begin(folder, "ours", request.param)
    end = time.monotonic() + 60
    while not (folder / "polled").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()
    for name in ("polled", "deletions"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("endless", "number", "code"),
    [
        ("endless", signal.SIGINT, 1),
        ("endless", signal.SIGTERM, 143),
        ("endless on a thread", signal.SIGINT, 1),
    ],
    indirect=["endless"],
)
def test_a_signal_deletes_the_job_once(
    number: signal.Signals, code: int, endless: subprocess.Popen[str], folder: Path
) -> None:
    """The job is deleted, then flytekit's own handler of SIGINT ends the process, as it would."""
    endless.send_signal(number)
    _, err = endless.communicate(timeout=60)
    assert "interrupted; deleting the job" in err
    assert "the job was deleted" in err
    assert (folder / "deletions").read_text() == "once "
    assert endless.returncode == code


def test_our_own_tasks_never_load_flytekit(folder: Path) -> None:
    """Where flytekit is installed, a task of ours still runs without it."""
    program = (
        "import sys\n"
        "from connector_service.local import ConnectorTask\n"
        "import connector_service.errors as e\n"
        "try: ConnectorTask('t', 'nobody')()\n"
        "except e.ConnectorNotFoundError: pass\n"
        "print([name for name in ('flytekit', 'pandas') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [PYTHON, "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(folder / "path")},
        timeout=60,
    )
    assert done.stdout == "[]\n", done.stderr
