"""flytekit's plugins as published, served by upstream's own server and by this service.

Every test of this folder runs three times: against ``pyflyte serve connector``, and against
``connector-service serve`` with a process host, asked in Flyte 1's protocol and in Flyte 2's. Both
serve the same environment of packages with the same settings, over the same backends.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flyteidl.core import tasks_pb2
from upstream.backends.aws import Aws
from upstream.backends.bigquery import BigQuery
from upstream.backends.databricks import Databricks
from upstream.backends.keys import Keys, make_keys
from upstream.backends.openai import OpenAi
from upstream.backends.program import interpreter
from upstream.backends.snowflake import Snowflake
from upstream.backends.webhook import Webhook
from upstream.plugins.jobs import TYPES, Client
from upstream.servers import Ours, Server, serving, templates

HERE = Path(__file__).parent
# A plugin's first call imports its client, which on a busy machine takes longer than Flyte waits.
LIMITS = "".join(f"{name}_timeout = 25.0\n" for name in ("create", "get", "delete", "do"))
PATIENT = "".join(f"[connectors.{task_type}]\n{LIMITS}" for task_type in sorted(TYPES))
SERVED = [("theirs", "flyteidl"), ("ours", "flyteidl"), ("ours", "flyteidl2")]


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
def tasks(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """The templates of ``tasks_program.py``, by name."""
    return templates(python, HERE / "tasks_program.py", tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def template(tasks: Mapping[str, bytes]) -> Any:
    """Give a fresh template by its name."""
    return lambda name: tasks_pb2.TaskTemplate.FromString(tasks[name])


@pytest.fixture(scope="session")
def theirs(
    python: Path, backends: Backends, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Upstream's own server."""
    folder = tmp_path_factory.mktemp("theirs")
    with serving("theirs", "flytekit", python, folder, backends.settings()) as server:
        yield server


@pytest.fixture(scope="session")
def ours(
    python: Path, backends: Backends, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """This service, with the plugins in a process host, flytekit's own webhook and sensor too."""
    host = {"python": str(python), "sources": ["flytekit"], "enable": ["*"]}
    hosts = {"plugins": {**host, "env": backends.settings()}}
    server = Ours(tmp_path_factory.mktemp("ours"), hosts, more=PATIENT)
    yield server
    server.stop()


@pytest.fixture(params=SERVED, ids="-".join)
async def flyte(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """Flyte's own client at one of the servers."""
    side, protocol = request.param
    server: Server = request.getfixturevalue(side)
    client = Client(protocol, server.endpoint, is_ours=side == "ours")
    yield client
    await client.channel.close()
