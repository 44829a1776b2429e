"""flytekit's plugins as published, served by upstream's own server and by this service.

Every test of this folder runs three times: against ``pyflyte serve connector``, and against
``connector-service serve`` with a process host, asked in Flyte 1's protocol and in Flyte 2's. Both
serve the same environment of packages with the same settings, over the same backends.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemon import COMMAND, Daemon
from flyte_clients import Flyte
from flyteidl.core import tasks_pb2
from upstream.backends.aws import Aws
from upstream.backends.bigquery import BigQuery
from upstream.backends.databricks import Databricks
from upstream.backends.keys import Keys, make_keys
from upstream.backends.openai import OpenAi
from upstream.backends.program import Program, bare_environment, free_port, interpreter
from upstream.backends.snowflake import Snowflake
from upstream.backends.webhook import Webhook

HERE = Path(__file__).parent
HOST = "flytekit"
SERVED = [("upstream", "flyteidl"), ("ours", "flyteidl"), ("ours", "flyteidl2")]


@dataclass
class Backends:
    """Every backend, up for the session."""

    bigquery: BigQuery
    snowflake: Snowflake
    databricks: Databricks
    aws: Aws
    openai: OpenAi
    webhook: Webhook

    def settings(self) -> dict[str, str]:
        """What the process that runs the plugins is told."""
        return {
            **self.bigquery.settings,
            **self.snowflake.settings,
            **self.databricks.settings,
            **self.aws.settings,
            **self.openai.settings,
        }


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of the environment that holds flytekit's plugins."""
    return interpreter("flytekit-plugins")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def backends(
    python: Path, tmp_path_factory: pytest.TempPathFactory, keys: Keys
) -> Iterator[Backends]:
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp
        yield Backends(
            stack.enter_context(BigQuery(folder("bigquery"), keys)),
            stack.enter_context(Snowflake(folder("snowflake"), keys)),
            stack.enter_context(Databricks(folder("databricks"), keys)),
            stack.enter_context(Aws(folder("aws"))),
            stack.enter_context(OpenAi(folder("openai"))),
            stack.enter_context(Webhook()),
        )


@pytest.fixture(scope="session")
def templates(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """The templates of ``tasks_program.py``, by name."""
    done = subprocess.run(
        [python, "-W", "ignore", HERE / "tasks_program.py"],
        env=bare_environment(tmp_path_factory.mktemp("tasks")),
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    return {name: base64.b64decode(text) for name, text in json.loads(done.stdout).items()}


@pytest.fixture
def template(templates: Mapping[str, bytes]) -> Any:
    """Give a fresh template by its name."""
    return lambda name: tasks_pb2.TaskTemplate.FromString(templates[name])


@pytest.fixture(scope="session")
def theirs(
    python: Path, backends: Backends, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """Upstream's own server."""
    port = free_port()
    command = [python.with_name("pyflyte"), "serve", "connector", "--port", str(port)]
    command += ["--prometheus_port", str(free_port())]
    with Program(command, port, tmp_path_factory.mktemp("pyflyte"), backends.settings()) as program:
        yield program


def write_config(folder: Path, python: Path, settings: Mapping[str, str]) -> Path:
    """Write a configuration whose one process host serves the plugins, every type of them."""
    lines = [f"[hosts.{HOST}]", f"python = {json.dumps(str(python))}"]
    lines += ['sources = ["flytekit"]', 'enable = ["*"]', f"[hosts.{HOST}.env]"]
    # A JSON string is a TOML string, the RSA key's line ends included.
    lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    path = folder / "service.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[Daemon]:
    """Run the installed service for a block; its errors are kept in the daemon."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CONNECTOR_SERVICE_")}
    process = subprocess.Popen(
        [COMMAND, "serve", "--port=0", "--prometheus-port=0", "--drain-delay=0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ | {"HOME": str(folder)},
        cwd=folder,
    )
    try:
        daemon = Daemon(process)
        yield daemon
        process.terminate()
        daemon.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="session")
def ours(
    python: Path, backends: Backends, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """This service, with the plugins in a process host."""
    folder = tmp_path_factory.mktemp("ours")
    path = write_config(folder, python, backends.settings())
    with serving(folder, "--config", str(path)) as daemon:
        yield daemon


@pytest.fixture(params=SERVED, ids="-".join)
async def flyte(request: pytest.FixtureRequest) -> AsyncIterator[Flyte]:
    """Flyte's own client at one of the servers; its ``is_ours`` tells at which."""
    who, protocol = request.param
    server = request.getfixturevalue("theirs" if who == "upstream" else "ours")
    client = Flyte(protocol, server.address if who == "upstream" else server.endpoint)
    client.is_ours = who == "ours"
    yield client
    await client.channel.close()
