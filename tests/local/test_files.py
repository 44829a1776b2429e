"""Inputs and outputs are exchanged by path, by ``file://`` and through fsspec."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from connector_service import InvalidInputError
from connector_service.local.files import Files


@pytest.mark.parametrize("place", ["{}/a/x.pb", "file://{}/a/x.pb", "file://{}/a%20b/x.pb"])
def test_this_machine_s_files_are_read_and_written(place: str, tmp_path: Path) -> None:
    """Folders are made as needed, and what is not there is None."""
    uri = place.format(tmp_path)
    assert Files().read(uri) is None
    Files().write(uri, b"data")
    assert Files().read(uri) == b"data"


def test_other_places_go_through_fsspec() -> None:
    """Whatever fsspec knows can hold the output prefix."""
    pytest.importorskip("fsspec")
    assert Files().read("memory://bucket/x.pb") is None
    Files().write("memory://bucket/x.pb", b"data")
    assert Files().read("memory://bucket/x.pb") == b"data"


def test_a_place_that_nothing_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing fsspec and an unknown scheme are sentences, with what to install."""
    with pytest.raises(InvalidInputError, match="no place to read or write"):
        Files().read("nonsense://bucket/x.pb")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InvalidInputError, match=r"install connector-service\[fsspec\]"):
        Files().write("s3://bucket/x.pb", b"")
