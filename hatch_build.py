"""Builds ``codec/quick.pyx`` into the wheel where there is a C compiler; else it is left out."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.errors import BaseError, CCompilerError

__all__ = ["BuildQuick"]

_MODULE = "connector_service.codec.quick"
_PLACE = _MODULE.replace(".", "/")


class BuildQuick(BuildHookInterface[Any]):
    """Adds the compiled module to a wheel, which is then one for this platform and Python."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build it; whatever is made on the way stays out of the source tree."""
        if self.target_name != "wheel" or version == "editable":  # that finds sources alone
            return
        self._folder = tempfile.TemporaryDirectory()
        try:
            built = _build(Path(self.root), Path(self._folder.name))
        except (BaseError, CCompilerError):  # what failed is printed above
            self.app.display_warning(
                f"{_MODULE} is left out, and creates are slower without it: to compile it takes a"
                " C compiler and Python's headers."
            )
            return
        build_data["force_include"][str(built)] = f"{Path(_PLACE).parent}/{built.name}"
        build_data.update(pure_python=False, infer_tag=True)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was made on the way."""
        if self._folder is not None:
            self._folder.cleanup()


def _build(root: Path, folder: Path) -> Path:
    """Translate to C and compile, all in ``folder``; return the module's file."""
    flags = ["-g0"] if os.name == "posix" else []  # its debug symbols are ten times as large
    extension = Extension(_MODULE, [str(root / f"{_PLACE}.pyx")], extra_compile_args=flags)
    translated = cythonize(extension, build_dir=str(folder), quiet=True)  # type: ignore[no-untyped-call]
    command: Any = Distribution({"ext_modules": translated}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(_MODULE))
