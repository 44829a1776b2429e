"""Read and write the few files that Flyte and a job exchange under the output prefix."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from connector_service.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Files", "Storage"]


class Storage(Protocol):
    """Where a job's inputs and outputs are exchanged; its methods may block."""

    def read(self, uri: str) -> bytes | None:
        """Return what is at ``uri``; None when there is nothing."""

    def write(self, uri: str, data: bytes) -> None:
        """Put ``data`` at ``uri``."""


class Files:
    """This machine's files by path or ``file://``, and through fsspec whatever that knows."""

    def read(self, uri: str) -> bytes | None:
        """Return the bytes of a file; None when it is not there.

        Raises:
            InvalidInputError: The place needs fsspec, or a package of its, that is not installed.
        """
        path = _path(uri)
        try:
            if path is not None:
                return path.read_bytes()
            with _open(uri, "rb") as file:
                data: bytes = file.read()
                return data
        except FileNotFoundError:
            return None

    def write(self, uri: str, data: bytes) -> None:
        """Write a file, and the folders above it; raises as ``read``."""
        path = _path(uri)
        if path is None:
            with _open(uri, "wb") as file:
                file.write(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _path(uri: str) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return None if "://" in uri else Path(uri)


def _open(uri: str, mode: str) -> Any:
    try:
        open_: Callable[..., Any] = importlib.import_module("fsspec").open
        return open_(uri, mode)
    except ImportError as error:
        raise InvalidInputError(
            f"The output prefix is at {urlsplit(uri).scheme}://, which needs {error.name}: install"
            f" connector-service[fsspec] and fsspec's package for it, or take a local folder."
        ) from None
    except ValueError as error:
        raise InvalidInputError(
            f"The output prefix has no place to read or write: {error}."
        ) from None
