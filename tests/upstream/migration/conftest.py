"""The environments of both SDKs, and the backends whose jobs move between servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from upstream.backends.airflow import Outside
from upstream.backends.bigquery import BigQuery
from upstream.backends.keys import make_keys
from upstream.backends.slurm import Slurm
from upstream.servers import templates


@pytest.fixture(scope="session")
def bigquery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigQuery]:
    keys = make_keys(tmp_path_factory.mktemp("keys"))
    with BigQuery(tmp_path_factory.mktemp("bigquery"), keys) as bigquery:
        yield bigquery


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with Outside(tmp_path_factory.mktemp("outside")) as outside:
        yield outside


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if missing := Slurm.missing():
        pytest.skip(f"NO JOB MOVES ON SLURM: {', '.join(missing)} not found")
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """Make the templates of a program once for the session."""
    known: dict[tuple[object, ...], dict[str, bytes]] = {}

    def make(python: Path, program: Path, *arguments: str) -> dict[str, bytes]:
        key = (python, program, *arguments)
        if key not in known:
            known[key] = templates(python, program, tmp_path_factory.mktemp("tasks"), *arguments)
        return known[key]

    return make
