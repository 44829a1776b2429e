"""Folders of distributions, for one test or for a module's."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributions import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty folder of distributions."""
    return Site(tmp_path / "site")


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """An empty folder of distributions for all tests of a module."""
    return Site(tmp_path_factory.mktemp("plugins") / "site")
