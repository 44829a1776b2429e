"""Hosts that end with their test and leave nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from process_hosts import Hosts, own_children


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Hosts]:
    before = own_children()
    hosts = Hosts(tmp_path)
    yield hosts
    await hosts.close()
    assert own_children() == before
    assert not hosts.run_dir.exists() or not list(hosts.run_dir.iterdir())
