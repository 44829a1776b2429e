"""Flyte 2's plugins as published, served by upstream's own server (c0) and by this service.

Both serve the same environment of packages with the same settings, over the same backends; every
test of this folder runs against both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from flyte_clients import Flyte
from flyteidl2.task import common_pb2
from upstream.backends.bigquery import BigQuery
from upstream.backends.databricks import Databricks
from upstream.backends.keys import Keys, make_keys
from upstream.backends.program import interpreter
from upstream.backends.slurm import Slurm
from upstream.backends.snowflake import Snowflake
from upstream.driving import calling, template_of
from upstream.servers import Server, serving, templates

HERE = Path(__file__).parent
SNOWFLAKE_SETTINGS = {"SNOWFLAKE_DISABLE_PLATFORM_DETECTION": "true"}


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of the environment that holds Flyte 2's plugins."""
    return interpreter("flyte-plugins")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def bigquery(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[BigQuery]:
    with BigQuery(tmp_path_factory.mktemp("bigquery"), keys) as bigquery:
        yield bigquery


@pytest.fixture(scope="session")
def snowflake(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Snowflake]:
    """Reached by its plain port: Flyte 2's plugin lets a task name the server."""
    with Snowflake(tmp_path_factory.mktemp("snowflake"), keys) as snowflake:
        yield snowflake


@pytest.fixture(scope="session")
def databricks(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Databricks]:
    with Databricks(tmp_path_factory.mktemp("databricks"), keys) as databricks:
        yield databricks


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm | None]:
    """The cluster, or nothing where Slurm is not installed; its own tests skip then."""
    if Slurm.missing():
        yield None
        return
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def tasks(
    python: Path,
    snowflake: Snowflake,
    databricks: Databricks,
    cluster: Slurm | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The templates of ``tasks_program.py``, by name."""
    folder = tmp_path_factory.mktemp("tasks")
    work = cluster.work if cluster else folder
    arguments = (str(snowflake.port), databricks.address, str(work))
    return templates(python, HERE / "tasks_program.py", folder, *arguments)


@pytest.fixture(scope="session")
def settings(bigquery: BigQuery, databricks: Databricks, cluster: Slurm | None) -> dict[str, str]:
    """What the process that runs the plugins is told; of secrets only what no caller can send."""
    slurm = {}
    if cluster:
        slurm = {
            "FLYTE_SLURM_HOST": "127.0.0.1",
            "FLYTE_SLURM_PORT": str(cluster.port),
            "FLYTE_SLURM_USERNAME": cluster.user,
            "FLYTE_SLURM_SKIP_HOST_KEY_VERIFICATION": "true",
        }
    return {
        "BIGQUERY_EMULATOR_HOST": bigquery.settings["BIGQUERY_EMULATOR_HOST"],
        "SSL_CERT_FILE": databricks.settings["SSL_CERT_FILE"],
        **SNOWFLAKE_SETTINGS,
        **slurm,
    }


@pytest.fixture(scope="session", params=["theirs", "ours"])
def server(
    request: pytest.FixtureRequest,
    python: Path,
    settings: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    with serving(request.param, "flyte", python, folder, settings) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Flyte]:
    """Flyte 2's own client."""
    async with calling("flyteidl2", server.endpoint) as client:
        yield client


@pytest.fixture
def template(tasks: dict[str, bytes], client: Flyte) -> Any:
    """Give a fresh template by its name."""
    return lambda name: template_of(client, tasks[name])


@pytest.fixture
def inputs() -> Any:
    """Make the inputs that Flyte 2 sends for these values."""

    def make(**values: str | int) -> common_pb2.Inputs:
        made = common_pb2.Inputs()
        for name, value in values.items():
            primitive = made.literals.add(name=name).value.scalar.primitive
            if isinstance(value, int):
                primitive.integer = value
            else:
                primitive.string_value = value
        return made

    return make
