"""What the operator sets for DuckDB jobs, and the state folder checked before it is trusted."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from connector_service.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Options", "read_options", "secure_state_dir"]

_Count = Annotated[int, Meta(ge=1, le=1024)]
_Mebibytes = Annotated[int, Meta(ge=1, le=1 << 30)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[connectors.duckdb.options]``: a key it does not know is an error."""

    state_dir: Annotated[
        str,
        Meta(description="Folder of the job folders; empty is one per user under the temp folder."),
    ] = ""
    allowed_folders: Annotated[
        tuple[str, ...],
        Meta(description="Folders that any SQL may read, as absolute paths."),
    ] = ()
    local_inputs: Annotated[
        Literal["anywhere", "allowed_folders"],
        Meta(description="Where a table input on this machine may lie; see docs/duckdb.md."),
    ] = "anywhere"
    remote_schemes: Annotated[
        tuple[str, ...],
        Meta(description="Schemes that tables are fetched from and put to through fsspec."),
    ] = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
    memory_limit_mib: Annotated[
        int, Meta(ge=32, le=1 << 30, description="DuckDB's memory limit for one job, in MiB.")
    ] = 1024
    threads: Annotated[_Count, Meta(description="Threads that one job computes on.")] = 2
    max_running: Annotated[
        _Count, Meta(description="Jobs of this state folder that run at once; others are QUEUED.")
    ] = 4
    max_spill_mib: Annotated[
        _Mebibytes, Meta(description="Disk that one job may use for what memory cannot hold, MiB.")
    ] = 10240
    max_file_mib: Annotated[
        int,
        Meta(ge=0, le=1 << 30, description="Largest file a job may write, in MiB; 0 is no limit."),
    ] = 0
    time_limit_seconds: Annotated[
        float, Meta(gt=0, le=30 * 86400, description="Seconds after which a job is FAILED.")
    ] = 86400.0
    keep_days: Annotated[
        float, Meta(ge=0, le=3650, description="Days that the folder of an ended job is kept.")
    ] = 7.0
    landlock: Annotated[
        Literal["auto", "require", "off"],
        Meta(description="Whether the Linux kernel, too, confines the SQL; auto is when it can."),
    ] = "auto"


def read_options(options: Mapping[str, Any], *, section: str) -> Options:
    """Validate what the operator wrote under ``section``.

    Raises:
        ConfigError: Naming the section, the key, and what was expected.
    """
    try:
        read = msgspec.convert(dict(options), Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"[{section}]: {str(error).replace('`', '')}.") from None
    for folder in (*read.allowed_folders, *filter(None, [read.state_dir])):
        if not Path(folder).is_absolute():
            raise ConfigError(f"[{section}]: {folder!r} is no absolute path.")
    state = Path(read.state_dir).resolve() if read.state_dir else _default_state_dir()
    for folder in read.allowed_folders:
        allowed = Path(folder).resolve()
        if not allowed.is_dir():
            raise ConfigError(f"[{section}]: allowed_folders names {folder}, which is no folder.")
        if state.is_relative_to(allowed) or allowed.is_relative_to(state):
            raise ConfigError(
                f"[{section}]: allowed_folders names {folder}, which would lay the jobs of"
                f" {state} open to any SQL; choose another folder or state_dir."
            )
    return msgspec.structs.replace(read, state_dir=str(state))


def secure_state_dir(options: Options) -> Path:
    """Create the state folder for this user only, or check that an existing one is safe.

    Raises:
        ConfigError: It is a link, somebody else's, or open to others' writing; or cannot be made.
    """
    state = Path(options.state_dir or _default_state_dir())
    if state == _default_state_dir():
        _secure(state.parent)
    _secure(state)
    return state


def _secure(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"Cannot use the state folder {path}: {error.strerror}.") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"The state folder {path} is no folder of its own (a link?).")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"The state folder {path} belongs to user {found.st_uid}, not to this service's user"
            f" {os.geteuid()}; set state_dir to a folder of its own."
        )
    if found.st_mode & 0o022:
        raise ConfigError(
            f"The state folder {path} can be written by others; run: chmod go-w {path}"
        )


def _default_state_dir() -> Path:
    return Path(tempfile.gettempdir()).resolve() / f"connector-service-{os.geteuid()}" / "duckdb"
