"""The job folder: all that the connector and the child program know of one job, on disk.

The child holds ``lock`` (flock) for as long as it lives, whoever started it and whatever became
of the service: a lock that can be taken means that no child runs. A pid alone would not do, since
the system gives it to somebody else one day.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from connector_service.connectors.duckdb.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "JobFolder",
    "Output",
    "Result",
    "Spec",
    "State",
    "TableInput",
    "pack",
    "sentence",
    "unpack",
]

T = TypeVar("T")

_LONGEST_MESSAGE = 4096  # bytes; Flyte 2 refuses a status above 32 KiB
_LARGEST_RESULT = 4 << 20  # bytes; a gRPC reply above 4 MiB is refused by the client


class TableInput(msgspec.Struct, frozen=True):
    """A table that the SQL may read by the input's name."""

    name: str
    uri: str
    format: str


class Output(msgspec.Struct, frozen=True):
    """An output that the interface declares; the type is a serialized ``LiteralType``."""

    name: str
    literal_type: bytes
    is_table: bool


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to do; it deletes the file once read, for it may hold secrets."""

    job_id: str
    sql: str
    parameters: dict[str, Any]
    unbindable: dict[str, str]
    tables: tuple[TableInput, ...]
    outputs: tuple[Output, ...]
    output_prefix: str
    options: Options


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the child says of itself while it runs."""

    pid: int
    recorded_at: float
    started_at: float | None = None
    partial: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How the job ended; ``outputs`` is a serialized ``LiteralMap``."""

    phase: str
    message: str
    outputs: bytes | None = None
    ended_at: float = 0.0


class JobFolder:
    """One job's folder; every file in it is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is created."""
        self.path = path
        self.lock_path = path / "lock"
        self.spec_path = path / "spec.json"
        self.state_path = path / "state.json"
        self.result_path = path / "result.json"
        self.deleted_path = path / "deleted"
        self.log_path = path / "log"
        self.usage_path = path / "usage"
        self.work = path / "work"
        self.output = path / "output"

    def create(self) -> None:
        """Make the folder, for this user only; an existing one is fine."""
        self.path.mkdir(mode=0o700, exist_ok=True)

    def lock(self) -> int | None:
        """Take the lock and return its descriptor, or None when the child (or a create) has it.

        Raises:
            FileNotFoundError: There is no such folder.
        """
        while True:
            descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            # Somebody may have purged the folder between the two calls, and made a new one.
            with contextlib.suppress(FileNotFoundError):
                if self.lock_path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            os.close(descriptor)

    def is_alive(self) -> bool:
        """Tell whether the child lives; never creates anything."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def holds_lock(self, pid: int) -> bool:
        """Tell whether process ``pid`` has this job's lock open, as far as the system can tell."""
        try:
            wanted = self.lock_path.stat()
            opened = list(os.scandir(f"/proc/{pid}/fd"))
        except FileNotFoundError:
            return not Path("/proc/self/fd").exists()  # no such file system: trust the record
        except OSError:
            return False
        for entry in opened:
            with contextlib.suppress(OSError):
                found = entry.stat()
                if (found.st_ino, found.st_dev) == (wanted.st_ino, wanted.st_dev):
                    return True
        return False

    def write(self, path: Path, content: msgspec.Struct | bytes) -> None:
        """Put a file in place, whole and durable, readable by this user only."""
        data = content if isinstance(content, bytes) else msgspec.json.encode(content)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_folder(path.parent)

    def spec(self) -> Spec:
        """Read the spec."""
        return msgspec.json.decode(self.spec_path.read_bytes(), type=Spec)

    def state(self) -> State | None:
        """Read what the child says of itself, or None before it said anything."""
        return self._read(self.state_path, State)

    def result(self) -> Result | None:
        """Read how the job ended, or None while it has not."""
        return self._read(self.result_path, Result)

    def is_deleted(self) -> bool:
        """Tell whether delete was called before the job ended."""
        return self.deleted_path.exists()

    def remove_partial(self) -> None:
        """Remove what a killed child left: a half written table, spilled data, the spec."""
        state = self.state()
        if state is not None and state.partial:
            with contextlib.suppress(OSError):
                Path(state.partial).unlink()
        with contextlib.suppress(OSError):
            self.spec_path.unlink()
        shutil.rmtree(self.work, ignore_errors=True)

    def purge(self) -> bool:
        """Remove the whole folder unless the child lives; tell whether it is gone."""
        try:
            descriptor = self.lock()
        except FileNotFoundError:
            return True
        if descriptor is None:
            return False
        try:
            shutil.rmtree(self.path, ignore_errors=True)
        finally:
            os.close(descriptor)
        return not self.path.exists()

    def _read(self, path: Path, kind: type[T]) -> T | None:
        try:
            with path.open("rb") as file:
                return msgspec.json.decode(file.read(_LARGEST_RESULT + 1), type=kind)
        except FileNotFoundError:
            return None


def fsync_folder(path: Path) -> None:
    """Make a rename in this folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def poll(seconds: float, every: float = 0.02) -> Iterator[None]:
    """Yield at once and then every now and then, until ``seconds`` have passed."""
    end = time.monotonic() + seconds
    while True:
        yield
        if time.monotonic() >= end:
            return
        time.sleep(every)


def sentence(text: str) -> str:
    """Cut a message to what Flyte keeps in its own state, at a whole character."""
    data = text.encode("utf-8", "replace")
    if len(data) <= _LONGEST_MESSAGE:
        return data.decode("utf-8")
    return data[: _LONGEST_MESSAGE - 4].decode("utf-8", "ignore") + " ..."


def pack(value: Any) -> Any:  # noqa: PLR0911 - a table of types
    """Turn a parameter into JSON that keeps its type.

    Raises:
        TypeError: The value is nothing that SQL could bind.
    """
    match value:
        case None | bool() | str():
            return value
        case int():
            if not -(1 << 63) <= value < 1 << 63:
                raise TypeError("integer beyond 64 bits")
            return value
        case float():
            return {"float": repr(value)}
        case dt.datetime():
            return {"datetime": value.isoformat()}
        case dt.timedelta():
            return {"duration": [value.days, value.seconds, value.microseconds]}
        case bytes():
            return {"bytes": value.hex()}
        case list() | tuple():
            return {"list": [pack(item) for item in value]}
        case dict():
            return {"struct": [[str(key), pack(item)] for key, item in value.items()]}
        case _:
            raise TypeError(type(value).__name__)


def unpack(packed: Any) -> Any:  # noqa: PLR0911 - the same table
    """Turn ``pack``'s JSON back into the value."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    match kind:
        case "float":
            return float(content)
        case "datetime":
            return dt.datetime.fromisoformat(content)
        case "duration":
            return dt.timedelta(*content)
        case "bytes":
            return bytes.fromhex(content)
        case "list":
            return [unpack(item) for item in content]
        case _:
            return {key: unpack(item) for key, item in content}
