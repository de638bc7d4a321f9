"""The file under the embedded store: making it, opening it, its schema, what its errors mean."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from lb.errors import StoreUnavailable

APPLICATION_ID = 0x6C627374  # "lbst": tells our files from other programs' SQLite databases
SCHEMA_VERSION = 1

# `log` holds every change (value NULL: the key was deleted), `live` points at the newest change of
# each key that exists, so that reading the present does not walk through the past.
SCHEMA = (
    """CREATE TABLE log (
        revision INTEGER NOT NULL, key TEXT NOT NULL, value TEXT,
        PRIMARY KEY (revision, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX log_by_key ON log (key, revision)",
    """CREATE TABLE live (
        key TEXT PRIMARY KEY NOT NULL, revision INTEGER NOT NULL, lease INTEGER
    ) WITHOUT ROWID""",
    "CREATE INDEX live_by_lease ON live (lease) WHERE lease IS NOT NULL",
    # Reads and watches reach back to `compacted`, and no further.
    """CREATE TABLE history (
        only INTEGER PRIMARY KEY CHECK (only = 1), compacted INTEGER NOT NULL
    )""",
    "INSERT INTO history VALUES (1, 0)",
    # AUTOINCREMENT: the id of a lease that ended is never given out again.
    """CREATE TABLE leases (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        ttl REAL NOT NULL, boot TEXT NOT NULL, deadline REAL NOT NULL
    )""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


@dataclass(frozen=True)
class Clock:
    """What leases are measured with: a reading in seconds, and the boot that it counts from."""

    boot: str
    now: Callable[[], float]


def boot_clock() -> Clock:
    """The machine's own clock.

    CLOCK_BOOTTIME is the same for all processes, counts while the machine sleeps, and doesn't care
    when somebody sets the date. It starts anew at boot, hence the boot id beside each reading.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Clock(boot, lambda: time.clock_gettime(time.CLOCK_BOOTTIME))


# By SQLite's primary result code: what is wrong, and what to do next.
_PERMISSION = (
    "no permission to use the store {path} ({error})",
    "run as root, or check owner and mode of {path} and of {directory}: both must be writable, "
    "because SQLite keeps two more files beside it",
)
_SPACE = (
    "no space left for the store {path}; nothing was changed",
    "free some space (df -h {directory}) and try again",
)
_MEANINGS = {
    sqlite3.SQLITE_BUSY: (
        "the store {path} is locked by another process",
        "try again; if it stays so, `fuser -v {path}` shows who has it open",
    ),
    sqlite3.SQLITE_NOTADB: (
        "{path} is not an lb store ({error})",
        "give another path (LB_STORE), or move that file away and lb makes a new store",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "the store {path} is damaged ({error})",
        "stop lbd, move {path} away and restore it from a backup, or `lbctl apply` an export",
    ),
    sqlite3.SQLITE_READONLY: _PERMISSION,
    sqlite3.SQLITE_CANTOPEN: _PERMISSION,
    sqlite3.SQLITE_PERM: _PERMISSION,
    sqlite3.SQLITE_FULL: _SPACE,
}
_OTHERWISE = (
    "the store {path} can't be used ({error})",
    "check the disk that {directory} is on (df -h {directory}; dmesg)",
)
_ERRNO_MEANINGS = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
}


def _code(error: BaseException) -> int:
    # Extended codes (SQLITE_READONLY_DIRECTORY, ...) have the primary one in the low byte.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into StoreUnavailable with a hint."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        meaning, reason = _MEANINGS.get(_code(error), _OTHERWISE), f"{error}, {name}"
        raise _unavailable(path, meaning, reason) from error
    except OSError as error:
        meaning = _ERRNO_MEANINGS.get(error.errno or 0, _OTHERWISE)
        raise _unavailable(path, meaning, error.strerror or str(error)) from error


def _unavailable(path: Path, meaning: tuple[str, str], reason: str) -> StoreUnavailable:
    message, hint = (text.format(path=path, directory=path.parent, error=reason) for text in meaning)
    return StoreUnavailable(message, hint=hint)


def identity(path: Path) -> tuple[int, int]:
    """Which file the path names now."""
    status = path.stat()
    return status.st_dev, status.st_ino


def is_made(path: Path) -> bool:
    """Is anything there that could be a store? An empty file is one that is still to be made. Raises
    StoreUnavailable where that can't be seen."""
    with explained(path):
        try:
            return path.is_dir() or path.stat().st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            return False


def open_file(path: Path, patience: float) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Make the file if there is none, and open it twice: for writing and for reading."""
    with explained(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir():
            raise StoreUnavailable(
                f"{path} is a directory", hint="give the path of a file in it (LB_STORE)"
            )
        _make(path)
        # Switching an empty file to WAL fails at once, whatever the busy timeout, while another
        # process does the same; so does opening while the last user closes.
        retrying = Retrying(
            retry=retry_if_exception(lambda error: _code(error) == sqlite3.SQLITE_BUSY),
            wait=wait_random(0.001, 0.02),
            stop=stop_after_delay(patience),
            reraise=True,
        )
        writer = retrying(_open_writer, path, patience)
        try:
            return writer, _connect(path, patience)
        except BaseException:
            writer.close()
            raise


def _make(path: Path) -> None:
    # mknod and not open: closing a descriptor of a database drops the locks that other
    # connections of this process hold on it (https://www.sqlite.org/howtocorrupt.html, 2.2).
    try:
        os.mknod(path, 0o600)
    except FileExistsError:
        return
    for directory in (path.parent, path.parent.parent):  # the names, too, must survive power loss
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _connect(path: Path, patience: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.as_uri()}?mode=rw",
        uri=True,
        timeout=patience,
        isolation_level=None,  # we say BEGIN ourselves
        check_same_thread=False,  # each connection has a lock in SqliteStore
    )


def _open_writer(path: Path, patience: float) -> sqlite3.Connection:
    db = _connect(path, patience)
    try:
        _is_empty(db, path)  # refuse a foreign file before changing anything in it
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreUnavailable(
                f"the file system of {path} can't share a store between processes",
                hint="put the store on a local disk (LB_STORE)",
            )
        db.execute("PRAGMA synchronous = FULL")  # NORMAL may lose the last commits at power loss
        db.execute("BEGIN IMMEDIATE")  # also finds out whether the file may be written
        if _is_empty(db, path):
            for statement in SCHEMA:
                db.execute(statement)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _is_empty(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file has no schema yet. Raises StoreUnavailable if it has one that isn't ours."""
    application, version, tables = db.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if (application, version, tables) == (0, 0, 0):
        return True
    if application != APPLICATION_ID:
        message, hint = _MEANINGS[sqlite3.SQLITE_NOTADB]
        raise _unavailable(path, (message, hint), "a database of another program")
    if version > SCHEMA_VERSION:
        raise StoreUnavailable(
            f"the store {path} was made by a newer lb (schema {version}, known: {SCHEMA_VERSION})",
            hint="upgrade lb on this machine, or give another path (LB_STORE)",
        )
    return False
