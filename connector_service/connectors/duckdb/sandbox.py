"""What a query can reach: DuckDB's own locks, and the Linux kernel's (Landlock) where it has them.

DuckDB confines what SQL may open; it cannot tell reading from writing, so which statements run is
checked as well. Landlock confines the query's thread, and the threads that DuckDB starts from it,
whatever the SQL does: inputs are read-only, links lead nowhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connector_service.errors import InvalidInputError, PermanentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connector_service.connectors.duckdb.options import Options

__all__ = ["Reach", "confine_thread", "connect", "refuse_statement"]

_REFUSED = {
    "COPY": "the result of the last statement is written for you",
    "COPY_DATABASE": "there is only one database",
    "EXPORT": "the result of the last statement is written for you",
    "ATTACH": "tables come from the task's inputs",
    "DETACH": "tables come from the task's inputs",
    "LOAD": "extensions are the operator's to choose",
    "EXTENSION": "extensions are the operator's to choose",
    "PRAGMA": "settings are the operator's",
    "CALL": "settings are the operator's",
    "EXPLAIN": "a job has nobody to read it",
    "PREPARE": "inputs bind as named parameters",
    "EXECUTE": "inputs bind as named parameters",
    "LOGICAL_PLAN": "it is no SQL",
    "RELATION": "it is no SQL",
    "INVALID": "it is no SQL",
}

# linux/landlock.h; the numbers of the three calls are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH, _NO_NEW_PRIVS = 1, 1, 38
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_KNOWN = {1: (1 << 13) - 1, 2: (1 << 14) - 1}  # by version of the interface
_ALL = (1 << 15) - 1
# DuckDB asks what memory the container grants.
_SYSTEM_FILES = ("/proc/self/cgroup", "/sys/fs/cgroup", "/proc/meminfo")


@dataclass(frozen=True)
class Reach:
    """All that one job may touch: files to read, folders to read, one file to write, its own."""

    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    work: Path
    written: tuple[Path, ...] = field(default=())


def connect(options: Options, reach: Reach, *, confined: bool) -> Any:
    """Open an in-memory DuckDB that reaches nothing else, and that SQL cannot open up again.

    Raises:
        PermanentError: This DuckDB follows links out of the operator's folders, and nothing else
            would stop it.
    """
    import duckdb  # noqa: PLC0415 - 65 MB that only the child loads

    if reach.folders and not confined and int(duckdb.__version__.split(".")[0]) < 2:
        raise PermanentError(
            "allowed_folders needs Linux with Landlock, or DuckDB 2: an older one follows links"
            " out of them."
        )
    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": options.threads,
            "memory_limit": f"{options.memory_limit_mib}MiB",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "allow_persistent_secrets": "false",
            "python_enable_replacements": "false",
        },
    )
    files = [str(path) for path in (*reach.files, *reach.written)]
    folders = [f"{path}{os.sep}" for path in reach.folders]
    for statement, values in (
        # Given to connect() above, the limit is taken and never applied (1.4.5, 2.0.0).
        ("SET temp_directory = $1", [str(reach.work / "spill")]),
        ("SET max_temp_directory_size = $1", [f"{options.max_spill_mib}MiB"]),
        ("SET TimeZone = 'UTC'", None),
        ("SET enable_progress_bar = true", None),  # without it no progress is counted
        ("SET enable_progress_bar_print = false", None),
        ("SET allowed_paths = $1", [files]),
        ("SET allowed_directories = $1", [folders]),
        ("SET enable_external_access = false", None),
        ("SET lock_configuration = true", None),
    ):
        connection.execute(statement, values)
    return connection


def refuse_statement(connection: Any, statement: Any, *, confined: bool) -> None:
    """Refuse a statement that would write a file or reach outside.

    Raises:
        InvalidInputError: Naming the statement and what to do instead.
    """
    kind = statement.type.name
    if kind in _REFUSED:
        raise InvalidInputError(f"{kind} is not allowed here: {_REFUSED[kind]}.")
    if not confined and _says_copy(statement.query):
        # DuckDB 2 takes COPY as a common table expression; its plan tells.
        (row,) = connection.execute(
            f"EXPLAIN (FORMAT JSON) {statement.query}",
            dict.fromkeys(statement.named_parameters),
        ).fetchall()
        if any("COPY" in name for name in _operators(json.loads(row[1]))):
            raise InvalidInputError(f"COPY is not allowed here: {_REFUSED['COPY']}.")


def confine_thread(options: Options, reach: Reach) -> str | None:
    """Let the kernel confine this thread and those it starts; return why not, if it cannot.

    The process's other threads keep their rights: they fetch inputs and publish the result.

    Raises:
        PermanentError: The operator requires it and the kernel cannot.
    """
    if options.landlock == "off":
        return "switched off"
    try:
        _landlock(reach)
    except (OSError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if options.landlock == "require":
            raise PermanentError(
                f"The operator requires Landlock and this kernel refuses it: {reason}."
            ) from None
        return reason
    return None


def _landlock(reach: Reach) -> None:
    version = _call(_CREATE_RULESET, None, 0, _VERSION)
    handled = _KNOWN.get(version, _ALL)
    ruleset = _call(_CREATE_RULESET, struct.pack("=Q", handled), 8, 0)
    try:
        for path, rights in _rules(reach):
            try:
                beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                rule = struct.pack("=Qi", rights & handled, beneath)
                _call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
            finally:
                os.close(beneath)
        if ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
            raise OSError(0, "no_new_privs was refused")
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _rules(reach: Reach) -> Iterator[tuple[str, int]]:
    for path in (*reach.files, *map(Path, _SYSTEM_FILES), *reach.folders):
        yield str(path), _READ_FILE | (_READ_DIR if path.is_dir() else 0)
    for file in reach.written:
        yield str(file), _READ_FILE | _WRITE_FILE | _TRUNCATE
    yield str(reach.work), _ALL


def _call(number: int, *arguments: bytes | int | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(
        ctypes.c_long(number),
        *(ctypes.c_long(item) if isinstance(item, int) else item for item in arguments),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _says_copy(query: str) -> bool:
    import duckdb  # noqa: PLC0415 - as above

    # A token ends where the next begins, with white space and comments in between.
    starts = [offset for offset, kind in duckdb.tokenize(query) if kind.name == "keyword"]
    return any(query.encode()[at : at + 4].lower() == b"copy" for at in starts)


def _operators(plan: Any) -> Iterator[str]:
    if isinstance(plan, list):
        for part in plan:
            yield from _operators(part)
    elif isinstance(plan, dict):
        yield str(plan.get("name", ""))
        yield from _operators(plan.get("children", []))
