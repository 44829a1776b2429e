"""What the documents say, held against the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from connector_service import config
from connector_service.runtime.hooks import CallRecord
from connector_service.sdk.method import ARGUMENTS
from connector_service.server.supervisor import SupervisorMetrics
from connector_service.telemetry.metrics import ServiceMetrics

ROOT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).with_name("connector-service")
DOCS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_the_readme_s_connector_has_fifteen_lines_and_runs(tmp_path: Path) -> None:
    """The README's first code block is a connector of at most 15 lines, and a job of it runs."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "egg.py").write_text(code)
    done = subprocess.run(
        [COMMAND, "run", "--module", "egg", "--task-type", "egg", "--poll", "0.1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}
    assert "RUNNING" in done.stderr
    assert "SUCCEEDED" in done.stderr


def settings_under(heading: str = "") -> dict[str, str]:
    """Return the rows of docs/configuration.md under ``heading``; before any, the service's."""
    text = (ROOT / "docs/configuration.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    (section,) = (
        [one for one in sections[1:] if one.startswith(heading)] if heading else sections[:1]
    )
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))


def test_every_setting_stands_in_the_table_with_its_default_and_meaning() -> None:
    """docs/configuration.md lists exactly the settings there are."""
    rows = settings_under()
    expected = {}
    for field in config.fields():
        defaults = field.default if field.repeatable else (field.default,)
        default = ", ".join(f"`{value}`" for value in defaults if value != "")
        expected[field.name] = f"{default} | {field.description}".lstrip()
    assert rows == expected


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("One connector's settings", config.ConnectorSection), ("One host's", config.HostSection)],
)
def test_every_setting_of_a_section_stands_in_its_table(heading: str, kind: type) -> None:
    """docs/configuration.md lists exactly the fields of a connector's table and of a host's."""
    hints = get_type_hints(kind, include_extras=True)
    expected = {}
    for field in msgspec.structs.fields(kind):
        (meaning,) = [
            extra.description
            for extra in hints[field.name].__metadata__
            if isinstance(extra, msgspec.Meta) and extra.description
        ]
        has_default = field.default is not msgspec.NODEFAULT and field.default not in ("", ())
        default = f"`{field.default}`" if has_default else ""
        expected[field.name] = f"{default} | {meaning}".lstrip()
    assert settings_under(heading) == expected


def test_the_guarantees_name_every_setting_and_metric_that_is_theirs() -> None:
    """docs/guarantees.md leaves out no setting, states true defaults, and makes up no metric."""
    text = (ROOT / "docs/guarantees.md").read_text()
    fields = {field.name: field for field in msgspec.structs.fields(config.ConnectorSection)}
    named = set(re.findall(r"`(\w+)(?: = \w+)?`", text))
    assert fields.keys() - {"options"} <= named
    assert {field.name for field in config.fields() if field.concern == "ledger"} <= named
    for name, number, unit in re.findall(r"`(\w+)` \((\d+)(?: (s|min|h))?\)", text):
        seconds = int(number) * {"": 1, "s": 1, "min": 60, "h": 3600}[unit]
        assert fields[name].default == seconds, name
    spoken = set(re.findall(r"\*\*Metrics?\*\*: (.*)", text))
    known = (ROOT / "docs/metrics.md").read_text()
    for name in re.findall(r"`(\w+)`", " ".join(spoken)):
        assert f"`connector_service_{name}`" in known or f"`{name}`" in known, name


def test_every_metric_stands_in_the_table_with_its_labels() -> None:
    """docs/metrics.md lists exactly the metrics of our own that are scraped."""
    text = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|(.*?)\|", text, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, _, labels in rows}
    service = ServiceMetrics()
    # What is counted of calls has its labels once there was one; "le" is Prometheus' own.
    for code in ("OK", "INTERNAL"):
        service.calls.started("flyteidl", "do")
        service.calls.ended(CallRecord("flyteidl", "do", "t", code, 0.1, input_bytes=1))
    collectors = [
        collector
        for metrics in (service, SupervisorMetrics())
        for collector in metrics.registry._collector_to_names
    ]
    found = {}
    for collector in collectors:
        for family in collector.collect():
            if family.name.startswith(("flyte_connector_", "connector_service_")):
                suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
                labels = getattr(collector, "_labelnames", ()) or (
                    family.samples[0].labels if family.samples else ()
                )
                found[family.name + suffix] = set(labels) - {"le"}
    assert documented == found


def test_every_argument_stands_in_the_table_of_methods() -> None:
    """docs/connectors.md names what each method can take."""
    text = (ROOT / "docs/connectors.md").read_text()
    for operation, arguments in ARGUMENTS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{operation}`"))
        assert set(re.findall(r"`(\w+)`", row.split("|")[2])) == set(arguments), operation


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    """No relative link of the README or the docs is broken."""
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_python_in_the_documents_compiles(document: Path) -> None:
    """Every Python block of the documents is valid Python."""
    for code in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        compile(code, document.name, "exec")


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_toml_in_the_documents_is_accepted(document: Path, tmp_path: Path) -> None:
    """Every settings file that the documents show loads."""
    for number, block in enumerate(
        re.findall(r"```toml\n(.*?)```", document.read_text(), re.DOTALL)
    ):
        if "[project" in block:
            continue  # a pyproject.toml
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        config.load(file=file)
