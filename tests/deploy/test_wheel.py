"""What the package's wheel holds, with a C compiler and without one."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from connector_service.codec import plans

REPOSITORY = Path(__file__).parents[2]
SOURCE = "connector_service/codec/quick.pyx"


def build(kind: str, folder: Path, **environ: str) -> tuple[Path, str]:
    """Build a distribution; return its file, and what was said meanwhile."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory"]
    done = subprocess.run(
        [*command, folder],
        cwd=REPOSITORY,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    (file,) = folder.iterdir()
    return file, done.stdout


def modules(wheel: Path) -> list[str]:
    """Return the files of the codec's compiled module."""
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.startswith("connector_service/codec/q")]


def tree() -> set[Path]:
    return {file for file in (REPOSITORY / "connector_service").rglob("*") if file.suffix != ".pyc"}


@pytest.mark.skipif(
    not plans.COMPILED,
    reason="there is no C compiler, or Python's headers are missing: install them, then again",
)
def test_a_wheel_has_the_compiled_reader_and_is_for_this_platform(tmp_path: Path) -> None:
    """It must not be installed elsewhere; and nothing that is made is left among the sources."""
    before = tree()
    wheel, said = build("wheel", tmp_path)
    assert not wheel.name.endswith("-none-any.whl")
    (module,) = (name for name in modules(wheel) if not name.endswith(".pyi"))
    assert Path(module).suffix in (".so", ".pyd")
    assert "left out" not in said
    assert tree() == before


def test_a_wheel_without_a_compiler_is_whole_but_for_that(tmp_path: Path) -> None:
    """A compiler that fails is as good as none: it is said, and the wheel is for any platform."""
    wheel, said = build("wheel", tmp_path, CC="false", CXX="false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert modules(wheel) == ["connector_service/codec/quick.pyi"]
    assert "it takes a C compiler and Python's headers" in said


def test_the_sources_can_be_built_again(tmp_path: Path) -> None:
    """A source distribution has what the wheel is made of."""
    archive, _ = build("sdist", tmp_path)
    with tarfile.open(archive) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    assert {SOURCE, "hatch_build.py", "pyproject.toml", "LICENSE", "README.md"} <= names
