"""The child program: runs one job folder's SQL, and outlives the service that started it.

``python -m connector_service.connectors.duckdb.job FOLDER``, with the folder's lock inherited.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from flyteidl.core.execution_pb2 import TaskExecution

from connector_service.connectors.duckdb.files import Files
from connector_service.connectors.duckdb.folder import JobFolder, Result, Spec, State, sentence
from connector_service.connectors.duckdb.log import say
from connector_service.connectors.duckdb.query import Outcome, Query
from connector_service.connectors.duckdb.sandbox import Reach, confine_thread, connect
from connector_service.connectors.duckdb.usage import Recorder
from connector_service.errors import BackendError, PermanentError, TransientError

if TYPE_CHECKING:
    from connector_service.connectors.duckdb.files import Source, Target

__all__ = ["Job", "main"]

_RESERVE = 64 << 10  # bytes kept aside, so that a full disk still takes the result
_LARGEST_OUTPUTS = 2 << 20  # bytes; a reply above 4 MiB is refused by the client
_PATIENCE = 10.0  # seconds from the interrupt of a query to the end of the process
_GONE = 143  # the exit code of a job that was deleted


class Job:
    """One run of one job, from the spec to the result."""

    def __init__(self, folder: JobFolder) -> None:
        """Take the folder whose lock this process holds."""
        self._folder = folder
        self._state = State(pid=os.getpid(), recorded_at=time.time())
        self._connection: Any = None
        self._target: Target | None = None
        self._files: Files | None = None
        self._stopped: tuple[float, str] | None = None
        self._reserve = folder.path / "reserve"
        self._recorder = Recorder(folder, progress=self._progress, stop=self._stop)

    def run(self) -> int:
        """Run the job and leave its result; return the exit code."""
        folder = self._folder
        signal.signal(signal.SIGTERM, self._leave)
        folder.write(folder.state_path, self._state)
        if folder.is_deleted():
            return _GONE
        spec = folder.spec()
        folder.spec_path.unlink()
        _limit(spec)
        shutil.rmtree(folder.work, ignore_errors=True)
        folder.work.mkdir(mode=0o700)
        self._files = Files(spec.options, work=folder.work, job_id=spec.job_id)
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(bytes(_RESERVE))
        self._recorder.start()
        started = time.monotonic()
        try:
            result = self._try(spec)
        finally:
            self._recorder.finish()
        say(f"ended after {time.monotonic() - started:.3f} s: {result.phase}")
        self._finish(result)
        return 0

    def _finish(self, result: Result) -> None:
        self._clear()
        self._reserve.unlink(missing_ok=True)
        self._folder.write(self._folder.result_path, result)

    def _try(self, spec: Spec) -> Result:
        """Turn whatever happens into a result that says whose fault it was."""
        phase, outputs = TaskExecution.FAILED, None
        try:
            message, outputs = self._work(spec)
            phase = TaskExecution.SUCCEEDED
        except TransientError as error:
            phase, message = TaskExecution.RETRYABLE_FAILED, str(error)
        except BackendError as error:
            message = str(error)
        except MemoryError:
            phase, message = TaskExecution.RETRYABLE_FAILED, "The job ran out of memory."
        except Exception as error:  # noqa: BLE001 - the job's last word, told to its user
            phase, message = self._explain(error, spec)
        if phase != TaskExecution.SUCCEEDED:
            outputs = None
            say(message, "U")
        return Result(
            phase=TaskExecution.Phase.Name(phase),
            message=sentence(message),
            outputs=outputs,
            ended_at=time.time(),
        )

    def _work(self, spec: Spec) -> tuple[str, bytes]:
        """Do all there is to do; return what to say of it, and the outputs."""
        slot = _take_slot(self._folder, spec.options.max_running)
        self._recorder.limit(spec.options.time_limit_seconds)
        self._record(started_at=time.time())
        say("started")
        import duckdb  # noqa: PLC0415 - not before there is a slot: it takes 65 MB

        say(
            f"DuckDB {duckdb.__version__}, {spec.options.memory_limit_mib} MiB,"
            f" {spec.options.threads} threads"
        )
        assert self._files is not None  # noqa: S101 - run made it
        sources = [self._files.source(table) for table in spec.tables]
        if any(output.is_table for output in spec.outputs):
            name = next(output.name for output in spec.outputs if output.is_table)
            prefix = spec.output_prefix or str(self._folder.output)
            self._target = self._files.target(name, prefix)
            # Said before it exists: whoever finds this process killed knows what to remove.
            self._record(partial=str(self._target.partial))
            self._files.prepare(self._target)
        began = time.monotonic()
        outcome = self._confined(spec, sources)
        outputs = _serialize(outcome)
        if self._target is not None:
            self._files.publish(self._target)
            self._target = None
        os.close(slot)
        rows = ""
        if outcome.rows is not None:
            rows = f"{outcome.rows:,} row{'' if outcome.rows == 1 else 's'}, "
        return f"{rows}{time.monotonic() - began:.1f} s", outputs

    def _confined(self, spec: Spec, sources: list[Source]) -> Outcome:
        """Run the SQL on a thread of its own, the only one that the kernel confines."""
        box: list[Outcome | BaseException] = []

        def body() -> None:
            try:
                box.append(self._query(spec, sources))
            except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
                box.append(error)

        thread = threading.Thread(target=body, name="query")
        thread.start()
        while thread.is_alive():
            thread.join(1.0)  # in steps, so that a signal is heard
        (found,) = box
        if isinstance(found, BaseException):
            raise found
        return found

    def _query(self, spec: Spec, sources: list[Source]) -> Outcome:
        reach = Reach(
            files=tuple(path for source in sources for path in source.files),
            folders=tuple(Path(folder).resolve() for folder in spec.options.allowed_folders),
            work=self._folder.work.resolve(),
            written=(self._target.partial.resolve(),) if self._target else (),
        )
        why_not = confine_thread(spec.options, reach)
        say("Landlock confines the query" if not why_not else f"Landlock is off: {why_not}")
        connection = connect(spec.options, reach, confined=not why_not)
        self._connection = connection
        try:
            query = Query(connection, spec, confined=not why_not, log=lambda text: say(text, "U"))
            query.add_tables(sources)
            return query.run(self._target)
        finally:
            self._connection = None
            connection.close()

    def _explain(self, error: Exception, spec: Spec) -> tuple[Any, str]:
        import duckdb  # noqa: PLC0415 - loaded long ago

        text = str(error)
        if not isinstance(error, duckdb.Error):
            traceback.print_exception(error)
            return (
                TaskExecution.RETRYABLE_FAILED,
                f"The job itself failed with {type(error).__name__}; its log has more.",
            )
        if self._stopped is not None:
            return TaskExecution.FAILED, self._stopped[1]
        if "No space left on device" in text:
            return TaskExecution.RETRYABLE_FAILED, f"No space left on the disk: {text}"
        if spec.options.max_file_mib and "File too large" in text:
            limit = f"{spec.options.max_file_mib} MiB, the operator's limit"
            return TaskExecution.FAILED, f"The job wrote a file larger than {limit}: {text}"
        return TaskExecution.FAILED, text

    def _record(self, **changes: Any) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
        self._folder.write(self._folder.state_path, self._state)

    def _progress(self) -> float | None:
        connection = self._connection
        with contextlib.suppress(Exception):  # it may close at any moment
            done = float(connection.query_progress())
            return done if done > 0 else None
        return None

    def _stop(self, reason: str) -> None:
        """Stop the query for a reason; without one the job was deleted."""
        if not reason:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self._stopped is None:
            self._stopped = (time.monotonic(), reason)
        if (connection := self._connection) is not None:
            connection.interrupt()
        if time.monotonic() > self._stopped[0] + _PATIENCE:  # it hangs where nothing interrupts
            say(reason, "U")
            self._finish(Result(phase="FAILED", message=reason, ended_at=time.time()))
            os._exit(0)

    def _leave(self, _signal: int, _frame: object) -> None:
        """Leave at once, without a result and without half a file."""
        self._clear()
        os._exit(_GONE)

    def _clear(self) -> None:
        if self._files is not None and self._target is not None:
            self._files.discard(self._target)
        shutil.rmtree(self._folder.work, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Run the job of the folder named by the only argument."""
    return Job(JobFolder(Path(arguments[0]))).run()


def _serialize(outcome: Outcome) -> bytes:
    data: bytes = outcome.outputs.SerializeToString()
    if len(data) > _LARGEST_OUTPUTS:
        raise PermanentError(f"The outputs take {len(data)} bytes; {_LARGEST_OUTPUTS} is the most.")
    return data


def _limit(spec: Spec) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if spec.options.max_file_mib:
        largest = spec.options.max_file_mib << 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    # When memory runs out, the kernel should choose a job before the service.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _take_slot(folder: JobFolder, slots: int) -> int:
    """Wait until fewer than ``slots`` jobs of this state folder run; return the slot's lock."""
    shelf = folder.path.parent / ".slots"
    shelf.mkdir(mode=0o700, exist_ok=True)
    said = False
    while True:
        for number in range(slots):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(shelf / str(number), flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            return descriptor
        if not said:
            say(f"waiting: {slots} jobs run already")
            said = True
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
