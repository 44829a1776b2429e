"""Makes the environments that are compared: locked, and with nothing that is not needed.

Ours and the floors' hold the releases of ``requirements.lock``, of what each needs and no more,
as a user's installation without extras would; the peers have locks of their own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ROOT", "MissingToolError", "installed_size", "make", "python_of", "variant"]

ROOT = Path(__file__).parent.parent
_FLOOR = ("grpcio", "protobuf", "flyteidl", "flyteidl2", "grpcio-health-checking")
_ROOTS = {
    "ours": ("connector-service",),
    "floor": _FLOOR,
    "floor-uvloop": (*_FLOOR, "uvloop"),
}
_INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")


class MissingToolError(Exception):
    """A program that is not Python's is not installed."""


def python_of(name: str) -> Path:
    """Return where an environment's interpreter is, or would be."""
    return ROOT / f".venv-bench-{name}" / "bin" / "python"


def make(name: str) -> Path:
    """Make an environment if its lock has changed since, and return its interpreter.

    Our own service is installed anew each time: its code may have changed.

    Raises:
        MissingToolError: uv is not installed.
    """
    python = python_of(name)
    lock = _lock(name)
    stamp = python.parent.parent / ".lock"
    wanted = hashlib.sha256(lock.encode() + sys.version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="ascii") != wanted:
        folder = python.parent.parent
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        requirements = folder / "requirements.txt"
        requirements.write_text(lock, encoding="utf-8")
        _uv("venv", "--allow-existing", "--python", sys.executable, folder)
        _uv("pip", "install", "--python", python, "--require-hashes", "-r", requirements)
        stamp.write_text(wanted, encoding="ascii")
    if name == "ours":
        with tempfile.TemporaryDirectory() as built:
            command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", built]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # noqa: S603
            (wheel,) = Path(built).glob("*.whl")
            _uv("pip", "install", "--python", python, "--no-deps", "--reinstall", wheel)
    return python


def variant(name: str, change: str, instead: Sequence[str]) -> Path:
    """Make an environment like ``name`` with some releases replaced; return its interpreter.

    Raises:
        MissingToolError: uv is not installed.
    """
    python = python_of(f"{name}-{change}")
    folder = python.parent.parent
    requirements = folder / "requirements.txt"
    if not requirements.exists():
        _uv("venv", "--clear", "--python", sys.executable, folder)
        written = folder / "locked.txt"
        written.write_text(_lock(name), encoding="utf-8")
        _uv("pip", "install", "--python", python, "--require-hashes", "-r", written)
        _uv("pip", "install", "--python", python, "--no-deps", *instead)
        written.rename(requirements)
    return python


def installed_size(name: str) -> int:
    """Return the bytes on disk of what is installed, with bytecode, without pip and setuptools.

    Whole blocks of files and of folders, as ``du`` counts: so were the peers' known sizes taken.
    """
    python = python_of(name)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = python.parent.parent / "lib" / version / "site-packages"
    subprocess.run(  # noqa: S603 - our own interpreter
        [python, "-m", "compileall", "-q", "-j0", packages], check=False, capture_output=True
    )
    return sum(
        file.lstat().st_blocks * 512
        for entry in packages.iterdir()
        if not entry.name.startswith(_INSTALLERS)
        for file in (entry, *entry.rglob("*"))
    )


def _lock(name: str) -> str:
    if name not in _ROOTS:
        return (ROOT / "bench" / f"{name}.lock").read_text(encoding="utf-8")
    wanted = _closure(_ROOTS[name]) - {"connector-service"}
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.split("==")[0].split("[")[0] in wanted)


def _closure(roots: Iterable[str]) -> set[str]:
    """Return the distributions that ``roots`` need, as installed here, by normalised name."""
    found: set[str] = set()
    left = list(roots)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found


def _uv(*arguments: str | Path) -> None:
    """Run uv: that of ``make``, or the one on the path."""
    own = ROOT / ".venv-uv" / "bin" / "uv"
    program = str(own) if own.exists() else shutil.which("uv")
    if program is None:
        raise MissingToolError(
            "uv is not installed; `make bench` brings it, and so does `pip install uv`."
        )
    subprocess.run([program, *arguments, "--quiet"], check=True)  # noqa: S603
