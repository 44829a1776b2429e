"""What ``docs/deploy.md`` tells operators, against the manifests it is about."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
DEPLOY = REPOSITORY / "deploy"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)


def _documents(name: str) -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def _numbers(name: str) -> dict[str, int]:
    documents = _documents(name)
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod.get("initContainers", pod["containers"])
    settings = documents["ConfigMap"]["data"]["connector-service.toml"]
    return {
        "termination": pod["terminationGracePeriodSeconds"],
        "drain_delay": int(re.findall(r"^drain_delay = (\d+)", settings, re.MULTILINE)[0]),
        "grace": int(re.findall(r"^grace = (\d+)", settings, re.MULTILINE)[0]),
        **{
            f"{probe} {what}": container[f"{probe}Probe"][what]
            for probe in ("startup", "readiness", "liveness")
            for what in ("periodSeconds", "failureThreshold")
        },
    }


def test_arithmetic_is_that_of_the_manifests() -> None:
    """The numbers in the four inequalities are the ones that are deployed."""
    ours, theirs = _numbers("service.yaml"), _numbers("sidecar.yaml")
    period, failures = ours["readiness periodSeconds"], ours["readiness failureThreshold"]
    assert f"{ours['drain_delay']} >= {period} x {failures}" in GUIDE
    leaving = f"{ours['drain_delay']} + {ours['grace']} + 5"
    assert f"{ours['termination']} >= {leaving}" in GUIDE
    assert (
        f"{theirs['termination']} = 30 + {theirs['drain_delay']} + {theirs['grace']} + 5" in GUIDE
    )
    liveness = ours["liveness periodSeconds"] * ours["liveness failureThreshold"]
    assert f"{liveness} > {ours['drain_delay'] + ours['grace'] + 5}" in GUIDE


@pytest.mark.parametrize("probe", ["startup", "readiness", "liveness"])
def test_table_of_probes_is_that_of_the_manifests(probe: str) -> None:
    """Each row of the table holds for the service and for the sidecar."""
    for name in ("service.yaml", "sidecar.yaml"):
        numbers = _numbers(name)
        period, failures = numbers[f"{probe} periodSeconds"], numbers[f"{probe} failureThreshold"]
        assert f"| {probe} | {period} s | {failures} | {period * failures} s" in GUIDE


def test_flyte_2_is_told_of_the_headless_service() -> None:
    """The values for Flyte 2 name the Service by DNS and spell the timeouts as Flyte reads them."""
    (values,) = (yaml.safe_load(block) for block in _blocks("yaml") if "dns:///" in block)
    plugin = values["configuration"]["inline"]["plugins"]["connector-service"]
    service = _documents("service.yaml")["Service"]
    metadata, (port, _) = service["metadata"], service["spec"]["ports"]
    client = plugin["defaultConnector"]
    assert client["endpoint"] == (
        f"dns:///{metadata['name']}.{metadata['namespace']}.svc.cluster.local:{port['port']}"
    )
    propeller = yaml.safe_load((DEPLOY / "propeller.yaml").read_text(encoding="utf-8"))
    theirs = propeller["plugins"]["connector-service"]
    assert plugin["supportedTaskTypes"] == theirs["supportedTaskTypes"]
    shared = [
        item for item in theirs["defaultConnector"]["timeouts"] if "ExecuteTaskSync" not in item
    ]
    assert client["timeouts"] == shared
    assert json.loads(client["defaultServiceConfig"])["loadBalancingConfig"]


def test_scrape_job_finds_the_ports_that_are_declared() -> None:
    """The job keeps the container and the port that both manifests declare."""
    (job,) = next(
        yaml.safe_load(block)["scrape_configs"] for block in _blocks("yaml") if "scrape_" in block
    )
    (keep,) = (rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
    for name in ("service.yaml", "sidecar.yaml"):
        pod = _documents(name)["Deployment"]["spec"]["template"]["spec"]
        (container,) = pod.get("initContainers", pod["containers"])
        labels = {f"{container['name']};{port['containerPort']}" for port in container["ports"]}
        assert keep["regex"] in labels


def test_every_file_named_is_there() -> None:
    """The guide points at files that exist."""
    for path in set(re.findall(r"`(deploy/[\w.-]+)`", GUIDE)):
        assert (REPOSITORY / path).is_file(), path
