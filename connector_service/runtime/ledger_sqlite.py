"""The ledger in a SQLite file: one service's memory of its jobs, which outlives kill -9.

Reserve, then create, then record: a process that dies in between leaves a reservation, which is
free again at the next start, since nobody else may use the file. Its job, if the backend made it,
is found again only by a backend that honours the idempotency key: that is the crash window.

The workers of one service use one file: their supervisor locks it for them, and each has a mark of
its own, by which what it left is known when it is started again.

Every commit is on the disk before its answer counts (synchronous=FULL), since a record lost with
the power is a job made twice; operations that arrive together share one commit, on one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from connector_service.errors import LedgerDownError, StartupError
from connector_service.runtime import ledger
from connector_service.runtime.ledger import Entry, Found, Job, Orphan, Recorded, State
from connector_service.sdk.resource import TaskCategory

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FILE", "SqliteLedger"]

_log = logging.getLogger(__name__)

FILE = "ledger.sqlite3"
_LOCK = "ledger.lock"
_VERSION = 1  # of the table below
_BATCH = 64  # operations that share one commit
_PURGE = 1000  # rows that one sweep drops

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    key TEXT PRIMARY KEY, state INTEGER NOT NULL, owner TEXT NOT NULL, until REAL NOT NULL,
    generation INTEGER NOT NULL, name TEXT, version INTEGER, meta BLOB NOT NULL,
    delivery INTEGER NOT NULL, attempts INTEGER NOT NULL, retention REAL NOT NULL
) WITHOUT ROWID
"""
_INDEX = "CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (state, until)"
_COLUMNS = "state, owner, until, generation, name, version, meta, delivery, attempts, retention"

_T = TypeVar("_T")
_Operation = Callable[[sqlite3.Connection], Any]
_Asked = tuple[_Operation, asyncio.AbstractEventLoop, asyncio.Future[Any]]


class SqliteLedger:
    """Remembers jobs in ``folder``, which one process uses at a time, or one service's workers."""

    def __init__(
        self,
        folder: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        mark: str = "",
        durable: bool = True,
    ) -> None:
        """Take the folder, made when it is missing, and the clock; it must go on over restarts.

        A worker has a ``mark``, unlike every other's, and opens what its supervisor has locked.
        ``durable`` False waits for no disk: what is written outlives processes, not the power.
        """
        self._folder = Path(folder)
        self._clock = clock
        self._mark = mark
        self._durable = durable
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock: int | None = None

    async def open(self) -> None:
        """Lock the folder, open the file and free what the last process left reserved.

        Raises:
            StartupError: Another process uses the folder, or the file cannot be used.
        """
        database = await asyncio.to_thread(self._open)
        self._thread = threading.Thread(
            target=self._work, args=(database,), name="ledger", daemon=True
        )
        self._thread.start()

    async def reserve(self, key: str, owner: str, lease: float) -> Found:
        """Take a free key, or hand out the answer that stands."""
        owner = self._mark + owner

        def operation(database: sqlite3.Connection) -> Found:
            changed, found = ledger.reserve(_get(database, key), self._clock(), owner, lease)
            _put(database, key, changed)
            return found

        return await self._ask(operation)

    async def renew(self, held: Sequence[tuple[str, str]], lease: float) -> set[str]:
        """Prolong leases and return the keys that were lost."""

        def operation(database: sqlite3.Connection) -> set[str]:
            lost = set()
            for key, owner in held:
                entry, now = _get(database, key), self._clock()
                renewed = ledger.renew(entry, now, self._mark + owner, lease)
                _put(database, key, renewed)
                if renewed is None:
                    lost.add(key)
            return lost

        return await self._ask(operation)

    async def record(self, key: str, owner: str, job: Job, *, delivered: bool) -> Recorded:
        """Write what was created and return what stands."""
        owner = self._mark + owner

        def operation(database: sqlite3.Connection) -> Recorded:
            changed, stands = ledger.record(
                _get(database, key), self._clock(), owner, job, delivered=delivered
            )
            _put(database, key, changed)
            return stands

        return await self._ask(operation)

    async def withdraw(self, key: str, delivery: int, grace: float) -> None:
        """Take a hand-out back unless there was a later one."""

        def operation(database: sqlite3.Connection) -> None:
            entry = _get(database, key)
            _put(database, key, ledger.withdraw(entry, self._clock(), delivery, grace))

        await self._ask(operation)

    async def release(self, key: str, owner: str) -> None:
        """Free a key whose create failed."""
        owner = self._mark + owner

        def operation(database: sqlite3.Connection) -> None:
            freed, left = ledger.release(_get(database, key), self._clock(), owner)
            if freed:
                database.execute("DELETE FROM jobs WHERE key = ?", (key,))
                _put(database, key, left)

        await self._ask(operation)

    async def orphans(self, owner: str, lease: float, limit: int) -> list[Orphan]:
        """Claim jobs whose grace, or whose earlier claim, is over."""
        owner = self._mark + owner

        def operation(database: sqlite3.Connection) -> list[Orphan]:
            now = self._clock()
            _purge(database, now)
            found = []
            for key, *row in database.execute(
                f"SELECT key, {_COLUMNS} FROM jobs WHERE state IN (?, ?) AND until <= ?"  # noqa: S608 - constants
                " ORDER BY until LIMIT ?",
                (State.OWED, State.CLAIMED, now, limit),
            ).fetchall():
                claimed = ledger.claim(_entry(row), now, owner, lease)
                if claimed is not None and claimed.category is not None:
                    _put(database, key, claimed)
                    found.append(Orphan(key, claimed.category, claimed.meta, claimed.attempts))
            return found

        return await self._ask(operation)

    async def forget(self, key: str, owner: str) -> None:
        """Note that a claimed job is deleted."""
        owner = self._mark + owner

        def operation(database: sqlite3.Connection) -> None:
            _put(database, key, ledger.forget(_get(database, key), self._clock(), owner))

        await self._ask(operation)

    async def ping(self) -> None:
        """Return when the file can be read."""
        await self._ask(lambda database: database.execute("SELECT 1 FROM jobs LIMIT 1").fetchone())

    async def close(self) -> None:
        """Finish what was asked, close the file and unlock the folder; fine twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._asked.put(None)
            await asyncio.to_thread(thread.join)
        self._unlock()

    async def _ask(self, operation: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._thread is None:
            raise LedgerDownError("The ledger is closed.")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()
        self._asked.put((operation, loop, answer))
        return await answer

    def _work(self, database: sqlite3.Connection) -> None:
        """Answer on the ledger's own thread, in batches, until it is told to stop."""
        with contextlib.closing(database):
            while True:
                batch = [self._asked.get()]
                while len(batch) < _BATCH and batch[-1] is not None and not self._asked.empty():
                    batch.append(self._asked.get())
                asked = [one for one in batch if one is not None]
                if asked:
                    _answer(asked, _transact(database, [one[0] for one in asked]))
                if len(asked) < len(batch):
                    return

    def _open(self) -> sqlite3.Connection:
        file = self._folder / FILE
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._mark:
                self._lock = _locked(self._folder / _LOCK)
            # Made here, since SQLite would make it readable for all; its WAL takes these rights.
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            self._unlock()
            raise StartupError(
                f"--state-dir {self._folder} cannot be used: {error.strerror}."
            ) from None
        database = sqlite3.connect(
            file, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            self._prepare(database, file)
        except BaseException as error:
            database.close()
            self._unlock()
            if isinstance(error, sqlite3.Error):
                raise StartupError(
                    f"{file} cannot be used as the ledger: {error}. Move it away to start without"
                    f" its memory; jobs it knows may then be created twice."
                ) from None
            raise
        return database

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare(self, database: sqlite3.Connection, file: Path) -> None:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found not in {0, _VERSION}:
            raise StartupError(
                f"{file} was written by another release of the service (format {found}, not"
                f" {_VERSION}); give this one a --state-dir of its own."
            )
        if not self._mark:  # else the supervisor has looked
            (health,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if health != "ok":
                raise sqlite3.DatabaseError(health)
        with _transaction(database):
            database.execute(_SCHEMA)
            database.execute(_INDEX)
            database.execute(f"PRAGMA user_version = {_VERSION}")
            # Whoever reserved or claimed these is dead: it would hold the lock, or be the process
            # that has our mark. Without a mark all are meant.
            ours = "substr(owner, 1, ?) = ?"
            mark = (len(self._mark), self._mark)
            free = f"UPDATE jobs SET until = ? WHERE state = ? AND until > ? AND {ours}"  # noqa: S608 - constants
            now = self._clock()
            database.execute(free, (now, State.CLAIMED, now, *mark))
            database.execute(free, (now, State.RESERVED, now, *mark))
            (cut_short,) = database.execute(
                f"SELECT count(*) FROM jobs WHERE state = ? AND {ours}",  # noqa: S608 - constants
                (State.RESERVED, *mark),
            ).fetchone()
        if cut_short:
            _log.warning("creates_were_cut_short", extra={"count": cut_short})


def _locked(path: Path) -> int:
    """Lock a file for as long as this process lives, or say who is there."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StartupError(
            f"Another connector-service uses --state-dir {path.parent}; give each one its own, or"
            f" let replicas remember together with --ledger-url."
        ) from None
    return lock


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Any:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _transact(
    database: sqlite3.Connection, operations: Sequence[_Operation]
) -> list[Any] | LedgerDownError:
    """Run operations in one transaction: all of them count, or none."""
    try:
        with _transaction(database):
            return [operation(database) for operation in operations]
    except Exception as error:  # noqa: BLE001 - whatever it is, its askers must hear of it
        down = LedgerDownError(f"The ledger's file cannot be used: {error}.", retry_after=5.0)
        down.__cause__ = error
        return down


def _answer(asked: Sequence[_Asked], results: list[Any] | LedgerDownError) -> None:
    for number, (_, loop, answer) in enumerate(asked):
        result = results if isinstance(results, LedgerDownError) else results[number]
        with contextlib.suppress(RuntimeError):  # its loop has ended, and so has its asker
            loop.call_soon_threadsafe(_settle, answer, result)


def _settle(answer: asyncio.Future[Any], result: Any) -> None:
    if answer.done():  # its asker has gone
        return
    if isinstance(result, LedgerDownError):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _get(database: sqlite3.Connection, key: str) -> Entry | None:
    row = database.execute(f"SELECT {_COLUMNS} FROM jobs WHERE key = ?", (key,)).fetchone()  # noqa: S608 - constants
    return None if row is None else _entry(row)


def _entry(row: Sequence[Any]) -> Entry:
    state, owner, until, generation, name, version, meta, delivery, attempts, retention = row
    category = None if name is None else TaskCategory(name, version)
    return Entry(
        State(state), owner, until, generation, category, meta, delivery, attempts, retention
    )


def _put(database: sqlite3.Connection, key: str, entry: Entry | None) -> None:
    """Write an entry; None changes nothing."""
    if entry is None:
        return
    name, version = entry.category or (None, None)
    database.execute(
        f"INSERT OR REPLACE INTO jobs (key, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608 - constants
        (
            key,
            int(entry.state),
            entry.owner,
            entry.until,
            entry.generation,
            name,
            version,
            entry.meta,
            entry.delivery,
            entry.attempts,
            entry.retention,
        ),
    )


def _purge(database: sqlite3.Connection, now: float) -> None:
    """Drop some of the rows whose time is over; a reservation's generation counts for longer."""
    database.execute(
        "DELETE FROM jobs WHERE key IN (SELECT key FROM jobs WHERE"
        " (state IN (?, ?) AND until <= ?) OR (state = ? AND until + retention <= ?) LIMIT ?)",
        (State.KEPT, State.FORGOTTEN, now, State.RESERVED, now, _PURGE),
    )
