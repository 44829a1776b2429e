"""flytekit's and flyte 2's own stubs and encoders talk to the installed service unchanged.

Each SDK runs in its own locked environment: its type engine encodes the vocabulary's values, its
serializer makes the task template, its generated stubs make the calls, its type engine decodes the
replies. ``make test-upstream`` builds the environments and sets the two variables that name their
interpreters.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import COMMAND, Daemon

HERE = Path(__file__).parent
CLIENTS = {
    "flytekit": ("client_flytekit.py", "CONNECTOR_SERVICE_FLYTEKIT_PYTHON", "1.16.31"),
    "flyte": ("client_flyte.py", "CONNECTOR_SERVICE_FLYTE_PYTHON", "2.12.1"),
}

if not any(os.environ.get(variable) for _, variable, _ in CLIENTS.values()):
    pytest.skip(
        "THE SDKS' OWN CLIENTS DO NOT CALL THE SERVICE: run `make test-upstream`, which sets "
        "CONNECTOR_SERVICE_FLYTEKIT_PYTHON and CONNECTOR_SERVICE_FLYTE_PYTHON",
        allow_module_level=True,
    )

ECHOES = {"echo_base", "echo_python", "echo_sync"}
# A poll has no template: a connector that keeps Python values returns them by their own types, and
# the SDK must choose a union's variant, a tuple's record and an enum's name from the value alone.
UNDECLARED = {
    "flytekit": {"Union[int, List[str], Dict[str, int]] {'a': 1}"},
    "flyte": {
        "Union[int, List[str], Dict[str, int]] {'a': 1}",
        "Union[str, float, bool, None] 2.0",
        "Dict[str, Color] {'a': Color.RED}",
        "Tuple[int, str] (1, 'x')",
        "tuple[int, Color, datetime.timedelta] (1, Color.GREEN, datetime.timedelta(days=1))",
        "List[Tuple[int, str]] [(1, 'x'), (2, 'y')]",
    },
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Serve the connectors of echoes.py, in every shape, from the installed command."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CONNECTOR_SERVICE_")}
    flags = ("--port=0", "--prometheus-port=0", "--drain-delay=0", "--module=echoes")
    process = subprocess.Popen(
        [str(COMMAND), "serve", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ | {"PYTHONPATH": str(HERE)},
        cwd=tmp_path_factory.mktemp("service"),
    )
    daemon = Daemon(process)
    yield daemon
    daemon.kill()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


@pytest.fixture(params=sorted(CLIENTS))
def client(request: pytest.FixtureRequest, service: Daemon, tmp_path: Path) -> Any:
    """Run an SDK's client against the service and read what it saw."""
    program, variable, version = CLIENTS[request.param]
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} is not set: run `make test-upstream`")

    def run(task_type: str, kind: str) -> dict[str, Any]:
        done = subprocess.run(
            [python, "-W", "ignore", str(HERE / program), service.endpoint, task_type, kind],
            capture_output=True,
            text=True,
            timeout=120,
            # Nothing of this run's environment, such as FLYTE_* settings, reaches the SDK.
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr[-4000:] + service.log[-4000:]
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert answer["version"] == version
        return answer

    run.name = request.param  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize("task_type", ["echo_base", "echo_python"])
def test_an_sdk_s_client_drives_a_job(client: Any, task_type: str) -> None:
    """Create, poll, logs, metrics and delete; every value returns as the SDK sent it."""
    seen = client(task_type, "async")
    assert (seen["phase"], seen["message"]) == ("SUCCEEDED", "echoed")
    expected = UNDECLARED[client.name] if task_type == "echo_python" else set()
    assert set(seen["different"]) == expected, seen["different"]
    assert seen["links"] == ["https://backend.example/1"]
    assert seen["logs"] == ["body", "header"]
    assert seen["metrics"] == ["q"]
    assert seen["after delete"] == "SUCCEEDED"  # how a job ended is remembered


def test_an_sdk_s_client_runs_a_sync_task(client: Any) -> None:
    """In one stream with flytekit's stubs, by create and poll with flyte's; nothing differs."""
    seen = client("echo_sync", "sync")
    assert (seen["phase"], seen["message"]) == ("SUCCEEDED", "echoed")
    assert seen["different"] == {}
    if client.name == "flyte":
        assert seen["logs"] == seen["metrics"] == "UNIMPLEMENTED"
        assert seen["after delete"] == "SUCCEEDED"  # it had ended when it was created


def test_an_sdk_s_client_discovers_and_is_refused(client: Any) -> None:
    """Both lists have every connector, one is described by name, an unknown type is NOT_FOUND."""
    seen = client("echo_base", "async")
    assert set(seen["listed"]) >= ECHOES
    if client.name == "flytekit":
        assert {name: seen["listed"][name] for name in ECHOES} == {
            "echo_base": False,
            "echo_python": False,
            "echo_sync": True,
        }
    assert seen["described"] is True
    code, details = seen["refused"]
    assert code == "NOT_FOUND"
    assert details.startswith("No connector for task type 'nobody' version 0; registered: ")
