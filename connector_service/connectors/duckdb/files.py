"""Where a job's tables come from and go to: local files, and other stores through fsspec."""

from __future__ import annotations

import contextlib
import os
import pwd
import urllib.parse
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from connector_service.connectors.duckdb.folder import fsync_folder
from connector_service.errors import InvalidInputError, PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connector_service.connectors.duckdb.folder import TableInput
    from connector_service.connectors.duckdb.options import Options

__all__ = ["FORMATS", "Files", "Source", "Target", "local_path", "scheme_of"]

FORMATS = ("parquet", "csv", "json")
_MOST_FILES = 10_000

# What no table input has a reason to lie in: the kernel's own, the system's, mounted secrets.
_NEVER = ("/proc", "/sys", "/dev", "/etc", "/run", "/var/run", "/boot")


@dataclass(frozen=True)
class Source:
    """A table input as files on this machine, links resolved."""

    name: str
    format: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Target:
    """Where the result is written, and where it goes once it is whole."""

    uri: str
    partial: Path
    final: Path | None


def scheme_of(uri: str) -> str:
    """Return a URI's scheme in lower case, or nothing for a file of this machine."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator and scheme.lower() != "file" else ""


def local_path(uri: str) -> Path:
    """Return the path that a plain path or a ``file://`` URI names.

    Raises:
        InvalidInputError: It is not absolute, or names another machine.
    """
    if uri.lower().startswith("file://"):
        parts = urllib.parse.urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise InvalidInputError(f"{uri} names a file of another machine.")
        uri = urllib.parse.unquote(parts.path)
    if not uri.startswith("/") or "\0" in uri:
        raise InvalidInputError(f"{uri!r} is neither an absolute path nor a URI.")
    return Path(uri)


class Files:
    """Finds, fetches and publishes one job's files, within what the operator allows."""

    def __init__(self, options: Options, *, work: Path, job_id: str) -> None:
        """Take the operator's limits and the job's folder for files of its own."""
        self._options = options
        self._work = work
        self._job_id = job_id
        self._allowed = tuple(Path(folder).resolve() for folder in options.allowed_folders)
        self._state = Path(options.state_dir).resolve()
        self._fetched = 0

    def source(self, table: TableInput) -> Source:
        """Resolve a table input to its files, fetching them first when they lie elsewhere.

        Raises:
            InvalidInputError: It does not exist, is empty, too large, or lies where none may.
            TransientError: The other store failed.
        """
        if table.format not in FORMATS:
            raise InvalidInputError(
                f"Input {table.name} has the format {table.format!r}; known: {', '.join(FORMATS)}."
            )
        scheme = scheme_of(table.uri)
        root = self._fetch(table, scheme) if scheme else self._check(table)
        if root.is_file():
            return Source(table.name, table.format, (root,))
        found = tuple(self._walk(root, table))
        if not found:
            raise InvalidInputError(f"Input {table.name}: the folder {table.uri} holds no file.")
        return Source(table.name, table.format, found)

    def target(self, name: str, prefix: str) -> Target:
        """Choose the place of the result called ``name``; nothing is created.

        Raises:
            InvalidInputError: The prefix lies where no result may.
        """
        file_name = f"{name}.parquet"
        uri = f"{prefix.rstrip('/')}/{file_name}"
        if scheme_of(prefix):
            return Target(uri, self._work / "upload" / file_name, None)
        folder = local_path(prefix)
        self._refuse(folder.resolve(), f"output_prefix {prefix}")
        return Target(uri, folder / f".{file_name}.{self._job_id}.part", local_path(uri))

    def prepare(self, target: Target) -> None:
        """Make an empty file there, so that nobody else's can be in the way.

        Raises:
            PermanentError: This user may not write there.
            TransientError: The disk is full or failing.
        """
        with _writing(target.uri):
            target.partial.parent.mkdir(parents=True, exist_ok=True)
            target.partial.unlink(missing_ok=True)
            os.close(os.open(target.partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))

    def publish(self, target: Target) -> None:
        """Put the finished result in place so that a crash after this cannot lose it.

        Raises:
            PermanentError: This user may not write there.
            TransientError: The disk is full or failing, or the other store is.
        """
        with _writing(target.uri):
            if target.final is None:
                with _talking(target.uri):
                    _filesystem(target.uri).put_file(str(target.partial), target.uri)
                target.partial.unlink()
                return
            descriptor = os.open(target.partial, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            target.partial.replace(target.final)
            fsync_folder(target.final.parent)

    def discard(self, target: Target) -> None:
        """Remove a result that will not be whole; fine when it is gone."""
        with contextlib.suppress(OSError):
            target.partial.unlink()

    def _check(self, table: TableInput) -> Path:
        path = local_path(table.uri)
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "links that lead in a circle"
            raise InvalidInputError(
                f"Input {table.name}: cannot read {table.uri}: {reason}."
            ) from None
        self._refuse(real, f"input {table.name} ({table.uri})")
        if self._options.local_inputs == "allowed_folders" and not any(
            real.is_relative_to(folder) for folder in self._allowed
        ):
            raise InvalidInputError(
                f"Input {table.name}: {table.uri} is outside the folders that the operator allows."
            )
        return real

    def _refuse(self, real: Path, what: str) -> None:
        """Refuse what holds secrets; results that jobs left in their folders may be read."""
        if real.is_relative_to(self._state):
            below = real.relative_to(self._state).parts
            if len(below) >= 2 and below[1] == "output":
                return
            raise InvalidInputError(f"The {what} lies among the job folders; choose another.")
        for root in _never():
            if real.is_relative_to(root):
                raise InvalidInputError(f"The {what} lies in {root}, which no job may use.")
        for home in _homes():
            if real.is_relative_to(home) and any(
                part.startswith(".") for part in real.relative_to(home).parts[:1]
            ):
                raise InvalidInputError(f"The {what} lies in a hidden folder of {home}.")

    def _walk(self, root: Path, table: TableInput) -> Iterator[Path]:
        count = 0
        for folder, subfolders, files in os.walk(root):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(("_", ".")))
            for name in sorted(files):
                # flytekit's pandas encoder calls the file `.csv` and nothing else.
                if name.startswith(("_", ".")) and name != f".{table.format}":
                    continue
                real = (Path(folder) / name).resolve()
                if not real.is_relative_to(root) or not real.is_file():
                    raise InvalidInputError(
                        f"Input {table.name}: {name} in {table.uri} is no file of that folder."
                    )
                count += 1
                if count > _MOST_FILES:
                    raise InvalidInputError(
                        f"Input {table.name}: {table.uri} holds more than {_MOST_FILES} files."
                    )
                yield real

    def _fetch(self, table: TableInput, scheme: str) -> Path:
        self.check_scheme(table.uri, scheme, self._options)
        local = self._work / "inputs" / f"{len(list(self._work.glob('inputs/*')))}"
        with _talking(table.uri):
            system = _filesystem(table.uri)
            root = str(system._strip_protocol(table.uri)).rstrip("/")  # noqa: SLF001 - fsspec's way
            names = sorted(system.find(root)) if system.isdir(root) else [root]
        if len(names) > _MOST_FILES:
            raise InvalidInputError(
                f"Input {table.name}: {table.uri} holds more than {_MOST_FILES} files."
            )
        for name in names:
            inner = PurePosixPath(name.removeprefix(root).strip("/") or PurePosixPath(root).name)
            if ".." in inner.parts or any(part.startswith("_") for part in inner.parts):
                continue
            destination = local.joinpath(*inner.parts)
            with _writing(table.uri), _talking(table.uri):
                size = system.info(name).get("size") or 0
                self._fetched += size
                if self._fetched > self._options.max_spill_mib << 20:
                    raise InvalidInputError(
                        f"Input {table.name}: {table.uri} takes the job's downloads above"
                        f" {self._options.max_spill_mib} MiB, the operator's limit."
                    )
                destination.parent.mkdir(parents=True, exist_ok=True)
                system.get_file(name, str(destination))
        return (local / PurePosixPath(root).name if names == [root] else local).resolve()

    @staticmethod
    def check_scheme(uri: str, scheme: str, options: Options) -> None:
        """Refuse a scheme that the operator did not allow, or that fsspec would chain.

        Raises:
            InvalidInputError: Naming the schemes that may be used.
        """
        if scheme not in options.remote_schemes or "::" in uri:
            raise InvalidInputError(
                f"{scheme}:// is no place that the operator lets tables come from or go to;"
                f" allowed: local paths, {', '.join(options.remote_schemes) or 'nothing else'}."
            )


def _never() -> Iterator[Path]:
    for root in (*_NEVER, os.environ.get("FLYTE_SECRETS_DEFAULT_DIR", "/etc/secrets")):
        yield Path(root).resolve()


def _homes() -> Iterator[Path]:
    with contextlib.suppress(KeyError):
        yield Path(pwd.getpwuid(os.geteuid()).pw_dir).resolve()


def _filesystem(uri: str) -> Any:
    import fsspec  # noqa: PLC0415 - an extra, and only the child needs it

    return fsspec.core.url_to_fs(uri)[0]


@contextlib.contextmanager
def _writing(uri: str) -> Iterator[None]:
    """Say in a sentence why a file could not be written, and whether trying again may help."""
    try:
        yield
    except PermissionError as error:
        raise PermanentError(f"Cannot write {uri}: {error.strerror}.") from error
    except OSError as error:
        raise TransientError(f"Cannot write {uri}: {error.strerror or error}.") from error


@contextlib.contextmanager
def _talking(uri: str) -> Iterator[None]:
    """Tell what another store said from what is our own fault."""
    try:
        yield
    except (InvalidInputError, MemoryError):
        raise
    except ImportError as error:
        raise InvalidInputError(f"{uri} needs a library that is not installed: {error}.") from error
    except FileNotFoundError:
        raise InvalidInputError(f"{uri} does not exist.") from None
    except PermissionError as error:
        raise PermanentError(f"{uri}: access was denied: {error}.") from error
    except Exception as error:
        raise TransientError(f"{uri}: {type(error).__name__}: {error}.") from error
