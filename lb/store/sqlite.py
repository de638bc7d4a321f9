"""The embedded store: one SQLite file that any number of processes on one machine share.

Every change is a row of a log, keyed by (revision, key), so reading the past and resuming a watch
are queries, and a watch buffers nothing: it remembers how far it has come and asks for more. Only
the newest `history` revisions are kept, and the latest value of each key.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lb.errors import NotFoundError, StoreUnavailable
from lb.store import sqlite_log as log
from lb.store.base import (
    Batch,
    Compare,
    Delete,
    KeyValue,
    Put,
    Snapshot,
    Store,
    Unwritten,
    Watch,
    conflict,
)
from lb.store.sqlite_bell import Bell, ring
from lb.store.sqlite_file import Clock, boot_clock, explained, identity, open_file

# How often watches look for what other processes committed: rarely where the bell tells them, for
# the sake of those who died between commit and bell; often where there is no bell. Waking up 50
# times a second costs about 1 % of a core, in Python, whatever is done then.
POLL_SECONDS, POLL_SECONDS_WITHOUT_BELL = 0.25, 0.02
BATCH_REVISIONS = 1000  # bounds the memory of a watch that has much to catch up with
EXPIRY_RETRY_SECONDS = 1.0  # how often to try again while a full disk keeps leases from ending


class SqliteStore(Store):
    """A store in one file. Open it after forking: SQLite's locks don't survive fork()."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        history: int = 1_000,
        patience: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        """Open the file, or make it. `patience` is how long to wait for other processes' locks.

        Raises StoreUnavailable.
        """
        if history < 1:
            raise ValueError("history: at least one revision is kept")
        self.path = Path(path).absolute()
        self._history = history
        self._clock = clock or boot_clock()
        # Two connections, so that nobody who reads waits for a commit to reach the disk.
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._writer, self._reader = open_file(self.path, patience)
        with explained(self.path):
            self._identity = identity(self.path)
        self._changed = threading.Condition()
        self._generation = 0  # goes up with every change that this process knows of
        self._bell: Bell | None = None
        self._data_version: int | None = None
        self._next_expiry = 0.0
        self._closed = False

    def read(self, prefix: str, *, revision: int | None = None) -> Snapshot:
        """See Store.read. A revision that is still to come raises RevisionCompacted too: then the
        store was replaced, and the caller should read anew just the same."""
        self._poll()
        with self._reading() as db:
            if revision is None:
                return Snapshot(log.kept(db)[0], log.present(db, prefix))
            log.require_kept(db, revision)
            return Snapshot(revision, log.past(db, prefix, revision))

    def get(self, key: str) -> KeyValue | None:
        """See Store.get."""
        self._poll()
        with self._reading() as db:
            return log.one(db, key)

    def commit(
        self, operations: Sequence[Put | Delete], compares: Sequence[Compare | Unwritten] = ()
    ) -> int:
        """See Store.commit. Raises NotFoundError for a lease that has ended, ValueError for a key
        that is empty or comes twice."""
        keys = [operation.key for operation in operations]
        if "" in keys or len(set(keys)) < len(keys):
            raise ValueError(f"a commit takes each key once, and none empty: {keys}")
        with self._writing() as db:
            _require_unchanged(db, compares)
            _require_leases(db, operations)
            return log.record(db, operations, self._history)

    def watch(self, prefix: str, *, after: int) -> SqliteWatch:
        """See Store.watch."""
        with self._changed:
            if self._bell is None and not self._closed:
                with suppress(OSError):
                    self._bell = Bell(self.path, self._announce)
        return SqliteWatch(self, prefix, after)

    def grant(self, ttl: float) -> int:
        """See Store.grant."""
        if not ttl > 0:
            raise ValueError(f"a lease needs a time to live above 0, not {ttl}")
        with self._writing() as db:
            lease = db.execute(
                "INSERT INTO leases (ttl, boot, deadline) VALUES (?, ?, ?)",
                (ttl, self._clock.boot, self._clock.now() + ttl),
            ).lastrowid
        assert lease is not None
        return lease

    def renew(self, lease: int) -> bool:
        """See Store.renew."""
        with self._writing() as db:
            renewed = db.execute(
                "UPDATE leases SET deadline = ? + ttl WHERE id = ?", (self._clock.now(), lease)
            )
            return renewed.rowcount > 0

    def revoke(self, lease: int) -> None:
        """See Store.revoke; no error for a lease that has ended already."""
        with self._writing() as db:
            self._end(db, [lease])

    def close(self) -> None:
        """See Store.close."""
        with self._changed:
            bell, self._bell = self._bell, None
            self._closed = True
            self._changed.notify_all()
        if bell is not None:
            bell.close()
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: all statements in it see one revision."""
        with self._read_lock, explained(self.path):
            self._check_usable()
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                if self._reader.in_transaction:
                    self._reader.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, in which no lease is left whose time has come."""
        with self._write_lock, explained(self.path):
            self._check_usable()
            # IMMEDIATE: a transaction that read first and wrote later could find itself outrun.
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                before, _ = log.kept(self._writer)
                self._end(self._writer, self._expired(self._writer))
                yield self._writer
                after, _ = log.kept(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
        if after > before:
            self._announce()
            with suppress(OSError):  # it is stored; without a bell others see it a little later
                ring(self.path)

    def _check_usable(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the store {self.path} is closed", hint="open it again")
        try:
            replaced = identity(self.path) != self._identity
        except FileNotFoundError:
            replaced = True
        if replaced:  # what we wrote would be seen by nobody who opens the path from now on
            raise StoreUnavailable(
                f"the store {self.path} was deleted or replaced while in use",
                hint="put the file back, or restart this program to use the new one",
            )

    def _expired(self, db: sqlite3.Connection) -> list[int]:
        rows = db.execute(
            "SELECT id FROM leases WHERE boot != ? OR deadline <= ?",
            (self._clock.boot, self._clock.now()),
        )
        return [lease for (lease,) in rows]

    def _end(self, db: sqlite3.Connection, leases: Sequence[int]) -> None:
        """End leases and delete their keys, all in one revision."""
        keys: list[str] = []
        for lease in leases:
            db.execute("DELETE FROM leases WHERE id = ?", (lease,))
            keys += (key for (key,) in db.execute("SELECT key FROM live WHERE lease = ?", (lease,)))
        if keys:
            log.record(db, [Delete(key) for key in keys], self._history)

    def _announce(self) -> None:
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def _poll(self) -> int:
        """Notice what other processes committed, end leases that are due; returns the generation.

        PRAGMA data_version is how SQLite tells of commits of others, and the one way that misses
        none, whoever made them; it costs microseconds, for it reads shared memory and no page.
        """
        with self._read_lock, explained(self.path):
            self._check_usable()
            (version,) = self._reader.execute("PRAGMA data_version").fetchone()
            if changed := version != self._data_version:
                self._data_version = version
                (self._next_expiry,) = self._reader.execute(
                    "SELECT coalesce(min(iif(boot = ?, deadline, 0.0)), 9e99) FROM leases",
                    (self._clock.boot,),
                ).fetchone()
            now = self._clock.now()
            if due := self._next_expiry <= now:
                self._next_expiry = now + EXPIRY_RETRY_SECONDS
        if changed:
            self._announce()
        if due:
            # Whoever reads or watches is served even when the disk is full or a writer hangs.
            with suppress(StoreUnavailable), self._writing():
                pass
        return self._generation

    def _pause(self) -> float:
        """How long a watch may sleep when no bell rings."""
        interval = POLL_SECONDS if self._bell else POLL_SECONDS_WITHOUT_BELL
        return min(interval, max(0.0, self._next_expiry - self._clock.now()))


class SqliteWatch(Watch):
    """A place in the log. `next` may be called from several threads: each change goes to one."""

    def __init__(self, store: SqliteStore, prefix: str, after: int) -> None:
        self._store = store
        self._prefix = prefix
        self._lock = threading.Lock()
        self._position = after  # everything up to here has been looked at,
        self._told = after  # and this much the caller knows
        self._seen = -1  # the store's generation when we last found nothing more
        self._closed = False

    def next(self, timeout: float | None = None) -> Batch | None:
        """See Watch.next. A batch without events comes only in place of None, when changes outside
        the prefix are all there was: a caller who writes after each batch wakes nobody in a loop.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended():
            try:
                generation = self._store._poll()
                batch = self._take(generation) if generation != self._seen else None
            except StoreUnavailable:
                if self._ended():
                    return None
                raise
            if batch:
                return batch
            pause = self._store._pause()
            if deadline is not None:
                if (left := deadline - time.monotonic()) <= 0:
                    return self._progress()
                pause = min(pause, left)
            with self._store._changed:
                if self._store._generation == generation and not self._ended():
                    self._store._changed.wait(pause)
        return None

    def close(self) -> None:
        """See Watch.close."""
        with self._store._changed:
            self._closed = True
            self._store._changed.notify_all()

    def _ended(self) -> bool:
        return self._closed or self._store._closed

    def _take(self, generation: int) -> Batch | None:
        with self._lock, self._store._reading() as db:
            newest = log.require_kept(db, self._position)
            while self._position < newest:
                upto = min(newest, self._position + BATCH_REVISIONS)
                events = log.changes(db, self._prefix, self._position, upto)
                self._position = upto
                if events:
                    self._told = upto
                    return Batch(upto, events)
            self._seen = generation
            return None

    def _progress(self) -> Batch | None:
        with self._lock:
            if self._position == self._told:
                return None
            self._told = self._position
            return Batch(self._position, ())


def _require_unchanged(db: sqlite3.Connection, compares: Sequence[Compare | Unwritten]) -> None:
    for compare in compares:
        if isinstance(compare, Unwritten):
            if (newest := log.newest_put(db, compare.prefix)) > compare.after:
                raise conflict(compare, newest)
            continue
        row = db.execute("SELECT revision FROM live WHERE key = ?", (compare.key,)).fetchone()
        found = row[0] if row else 0
        if found != compare.mod_revision:
            raise conflict(compare, found)


def _require_leases(db: sqlite3.Connection, operations: Sequence[Put | Delete]) -> None:
    for lease in {operation.lease for operation in operations if isinstance(operation, Put)}:
        if lease is None or db.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone():
            continue
        raise NotFoundError(f"lease {lease} has ended", hint="grant a new one and write again")
