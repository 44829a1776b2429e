"""What docs/local.md shows first is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from connector_service.local import templates

GUIDE = Path(__file__).parents[2] / "docs/local.md"


def test_the_first_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The guide's task naps by the built-in connector, and its progress is told."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]
    exec(compile(code, GUIDE.name, "exec"), {})
    assert "SUCCEEDED: Slept 0.2 s." in capsys.readouterr().err


def test_every_template_that_is_rendered_stands_there() -> None:
    """The guide lists the names that are replaced."""
    listed = {name.lower() for name in re.findall(r"\{\{\.(\w+)\}\}", GUIDE.read_text())}
    assert listed == set(templates._VALUES)
