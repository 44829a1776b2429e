"""Hosts in the settings: tables and the short way, and what a mistake in one is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from connector_service import config
from connector_service.errors import ConfigError


def load(tmp_path: Path, toml: str, host_from: tuple[str, ...] = ()) -> config.Config:
    file = tmp_path / "settings.toml"
    file.write_text(toml)
    return config.load({"host_from": host_from} if host_from else {}, file=file)


def test_tables_and_the_short_way_come_together(tmp_path: Path) -> None:
    """A table has its fields, and --host-from makes a host that is named after its source."""
    toml = """
    [hosts.spark]
    python = "/opt/spark/bin/python"
    sources = ["flytekit"]
    env = { AWS_REGION = "eu-west-1" }
    workers = 2
    memory_limit = "512MiB"

    [hosts.old]
    endpoint = "dns:///old:8000"
    tls = true
    ca = "ca.pem"
    """
    hosts = load(tmp_path, toml, ("flyte", "module:acme.Jobs_2")).hosts
    assert list(hosts) == ["spark", "old", "flyte", "acme-jobs-2"]
    assert hosts["spark"].env == {"AWS_REGION": "eu-west-1"}
    assert hosts["spark"].memory_bytes == 512 * 2**20
    assert hosts["old"].ca == "ca.pem"
    assert hosts["flyte"] == config.HostSection(sources=("flyte",))
    assert hosts["acme-jobs-2"].sources == ("module:acme.Jobs_2",)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("0", 0),
        ("77", 77),
        ('"77B"', 77),
        ('"3k"', 3 * 2**10),
        ('"2 GB"', 2 * 2**30),
        ('"1gib"', 2**30),
    ],
)
def test_a_size_is_read_as_people_write_it(tmp_path: Path, written: str, size: int) -> None:
    """Bytes, or a number with a unit of 1,024s; no limit is 0."""
    toml = f'[hosts.x]\nsources = ["flyte"]\nmemory_limit = {written}'
    assert load(tmp_path, toml).hosts["x"].memory_bytes == size


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", "give either sources, for a process, or endpoint, for a service."),
        ('sources = ["flyte"]\nendpoint = "x:1"', "give either sources"),
        ('sources = ["flytekat"]', "'flytekat' is no source; choose flytekit, flyte"),
        ('sources = ["module:"]', "is no source"),
        ('sources = ["flyte"]\nmemory_limit = "lots"', "'lots' is no size; write it as 512MiB."),
        ('sources = ["flyte"]\nmemory_limit = "-1"', "is no size"),
        ('sources = ["flyte"]\nca = "x"', "ca is for an endpoint"),
        ('endpoint = "x:1"\npython = "/x"', "python is for a process"),
        ('endpoint = "x:1"\nca = "x"', "ca needs tls = true."),
        ('endpoint = "x:1"\ntls = true\ncert = "x"', "cert and key belong together."),
        ('sources = ["flyte"]\nworkers = 0', "Expected int >= 1"),
        ('sources = ["flyte"]\nworker = 1', "unknown field worker"),
    ],
)
def test_a_mistake_in_a_host_names_its_table(tmp_path: Path, table: str, sentence: str) -> None:
    """Every contradiction is one sentence that begins with where it stands."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, f"[hosts.spark]\n{table}")
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / 'settings.toml'}: [hosts.spark]: ")
    assert sentence in text


@pytest.mark.parametrize("name", ["Spark", "a b", "-x", "x" * 33, "ä"])
def test_a_host_s_name_fits_a_label_and_a_socket(tmp_path: Path, name: str) -> None:
    """A name that a path, a metric or a log could trip over is refused."""
    with pytest.raises(ConfigError, match="small letters, digits and hyphens"):
        load(tmp_path, f'[hosts."{name}"]\nsources = ["flyte"]')


def test_one_name_is_one_host(tmp_path: Path) -> None:
    """--host-from beside a table of the same name is no silent merge."""
    with pytest.raises(ConfigError, match="give one of the two"):
        load(tmp_path, '[hosts.flytekit]\nsources = ["flyte"]', ("flytekit",))


def test_the_short_way_is_checked_too() -> None:
    """A misspelt source of --host-from is told as such."""
    for source in ("pytest", "module:"):
        with pytest.raises(ConfigError, match=rf"--host-from {source}: .*no source"):
            config.load({"host_from": (source,)}, file=os.devnull)
