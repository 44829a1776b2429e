"""The Dockerfile's promises, read from its text."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from connector_service import config

REPOSITORY = Path(__file__).parents[2]
USER = "65532:65532"


def _instructions() -> list[tuple[str, str]]:
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in lines if line.strip()]


def _last_stage() -> list[tuple[str, str]]:
    instructions = _instructions()
    start = max(index for index, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[start:]


def _value(word: str) -> str:
    (value,) = (value for name, value in _last_stage() if name == word)
    return value


def _environment() -> dict[str, str]:
    pairs = (pair for word, value in _last_stage() if word == "ENV" for pair in shlex.split(value))
    return dict(pair.split("=", 1) for pair in pairs)


def test_last_stage_holds_python_and_one_virtual_environment() -> None:
    """No compiler, no cache and no source reaches the image: it copies the venv, runs nothing."""
    words = [word for word, _ in _last_stage()]
    assert "RUN" not in words
    assert "ADD" not in words
    assert _value("COPY").split() == [
        "--from=builder",
        "/opt/connector-service",
        "/opt/connector-service",
    ]
    assert _value("FROM") == "python:3.11-slim-bookworm"


def test_no_image_is_latest() -> None:
    """Each base is named with a tag that says what it is."""
    bases = [value.split()[0] for word, value in _instructions() if word == "FROM"]
    assert len(bases) == 2
    assert all(re.fullmatch(r"[\w./-]+:(?!latest)[\w.-]+", base) for base in bases)


def test_process_is_a_numeric_user_who_is_not_root() -> None:
    """`runAsNonRoot` can tell, for the user is a number, and nothing after it changes it."""
    assert _value("USER") == USER


def test_environment_is_settings_that_the_service_knows() -> None:
    """Every variable of ours is a setting, and the address is one a container is reached at."""
    ours = {
        name: value for name, value in _environment().items() if name.startswith(config.ENV_PREFIX)
    }
    assert config.load(environ=ours).listen.host == "::"


def test_ports_are_the_defaults() -> None:
    """The image exposes what the service listens on when nobody says otherwise."""
    defaults = config.Config()
    ports = [str(defaults.listen.port), str(defaults.metrics.prometheus_port)]
    assert _value("EXPOSE").split() == ports


def test_command_is_the_service_as_process_one() -> None:
    """The service gets SIGTERM itself: no shell stands between, and `serve` can be replaced."""
    assert json.loads(_value("ENTRYPOINT")) == ["connector-service"]
    assert json.loads(_value("CMD")) == ["serve"]
    assert _value("STOPSIGNAL") == "SIGTERM"


def test_health_is_asked_over_grpc() -> None:
    """The health check asks what probes ask, of the port that the image exposes."""
    options, command = _value("HEALTHCHECK").split(" CMD ")
    assert json.loads(command) == [
        "connector-service",
        "call",
        "health",
        "--endpoint",
        f"127.0.0.1:{config.Config().listen.port}",
    ]
    assert "--start-period=" in options


def test_dependencies_are_those_of_the_lock_checked_by_hash() -> None:
    """The one step that reaches an index demands hashes; every other installs from what it got."""
    runs = " && ".join(value for word, value in _instructions() if word == "RUN")
    for step in (re.sub(r"\s+", " ", step) for step in runs.split("&&")):
        if " pip " not in step.replace("/pip ", " pip "):
            continue
        if "pip download" in step:
            assert "--require-hashes" in step
            assert "--only-binary=:all:" in step
        else:
            assert "--no-index" in step


def test_build_sees_only_what_it_copies() -> None:
    """The build's context is exactly what the builder copies, and all of it exists."""
    ignore = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore
    copied = {
        source.removeprefix("./")
        for word, value in _instructions()
        if word == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }
    assert copied == allowed
    assert [name for name in sorted(copied) if not (REPOSITORY / name).exists()] == []


def test_hadolint_has_nothing_to_say() -> None:
    """The usual mistakes of Dockerfiles are not in this one."""
    hadolint = Path(sys.executable).with_name("hadolint")
    outcome = subprocess.run(
        [hadolint, str(REPOSITORY / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert outcome.stdout == ""
    assert outcome.returncode == 0
