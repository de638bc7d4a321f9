"""The log of changes in the embedded store: what is read from it and written to it, in SQL.

Each function works inside a transaction of its caller.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from lb.errors import RevisionCompacted
from lb.store.base import Delete, Event, KeyValue, Put

Database = sqlite3.Connection


def kept(db: Database) -> tuple[int, int]:
    """The newest revision, and the oldest that can be read."""
    newest, oldest = db.execute(
        "SELECT coalesce((SELECT max(revision) FROM log), 0), compacted FROM history"
    ).fetchone()
    return newest, oldest


def require_kept(db: Database, revision: int) -> int:
    """The newest revision. Raises RevisionCompacted unless `revision` can be read."""
    newest, oldest = kept(db)
    if oldest <= revision <= newest:
        return newest
    if revision < oldest:
        reason = f"is no longer kept: the oldest is {oldest}"
    else:
        reason = f"is not in this store: the newest is {newest}"
    raise RevisionCompacted(f"revision {revision} {reason}", hint="read the present state anew")


def present(db: Database, prefix: str) -> tuple[KeyValue, ...]:
    """The keys under a prefix now, sorted."""
    rows = db.execute(
        "SELECT key, value, revision FROM live JOIN log USING (key, revision)"
        " WHERE key >= ? AND key < CAST(? AS TEXT) ORDER BY key",
        _range(prefix),
    )
    return tuple(KeyValue(*row) for row in rows)


def past(db: Database, prefix: str, revision: int) -> tuple[KeyValue, ...]:
    """The keys under a prefix as of a revision that is kept, sorted."""
    rows = db.execute(  # SQLite: beside max(), the other columns are those of the same row
        "SELECT key, value, max(revision) FROM log"
        " WHERE key >= ? AND key < CAST(? AS TEXT) AND revision <= ?"
        " GROUP BY key HAVING value IS NOT NULL ORDER BY key",
        (*_range(prefix), revision),
    )
    return tuple(KeyValue(*row) for row in rows)


def one(db: Database, key: str) -> KeyValue | None:
    """One key now."""
    row = db.execute(
        "SELECT key, value, revision FROM live JOIN log USING (key, revision) WHERE key = ?", (key,)
    ).fetchone()
    return KeyValue(*row) if row else None


def newest_put(db: Database, prefix: str) -> int:
    """The revision of the newest value under a prefix; 0 if there is none."""
    (newest,) = db.execute(
        "SELECT coalesce(max(revision), 0) FROM live WHERE key >= ? AND key < CAST(? AS TEXT)",
        _range(prefix),
    ).fetchone()
    return int(newest)


def changes(db: Database, prefix: str, after: int, upto: int) -> tuple[Event, ...]:
    """The changes under a prefix, in the order of their revisions."""
    rows = db.execute(  # +key: go by revision; the index on keys would walk through all the past
        "SELECT key, value, revision FROM log WHERE revision > ? AND revision <= ?"
        " AND +key >= ? AND +key < CAST(? AS TEXT) ORDER BY revision",
        (after, upto, *_range(prefix)),
    )
    return tuple(Event(*row) for row in rows)


def record(db: Database, operations: Sequence[Put | Delete], history: int) -> int:
    """Write a new revision, if the operations change anything; returns the newest one."""
    newest, oldest = kept(db)
    revision, changed = newest + 1, False
    for operation in operations:
        if isinstance(operation, Put):
            value: str | None = operation.value
            db.execute(
                "INSERT OR REPLACE INTO live (key, revision, lease) VALUES (?, ?, ?)",
                (operation.key, revision, operation.lease),
            )
        elif db.execute("DELETE FROM live WHERE key = ?", (operation.key,)).rowcount:
            value = None
        else:
            continue
        db.execute("INSERT INTO log VALUES (?, ?, ?)", (revision, operation.key, value))
        changed = True
    if not changed:
        return newest
    # In steps of a hundredth, so that no single commit pays for much.
    if revision - history - oldest >= max(1, history // 100):
        _compact(db, oldest, revision - history)
    return revision


def _compact(db: Database, old: int, new: int) -> None:
    """Forget what can't be seen from revision `new` on: values that were replaced by then, and
    deletions. Only keys that changed since `old` can have become such."""
    db.execute(
        "DELETE FROM log WHERE revision <= :new"
        " AND key IN (SELECT key FROM log WHERE revision > :old AND revision <= :new)"
        " AND (value IS NULL OR EXISTS (SELECT 1 FROM log AS later WHERE later.key = log.key"
        "   AND later.revision > log.revision AND later.revision <= :new))",
        {"old": old, "new": new},
    )
    db.execute("UPDATE history SET compacted = ?", (new,))


def _range(prefix: str) -> tuple[str, bytes]:
    # SQLite compares text bytewise, and no UTF-8 byte reaches 0xFF: all keys with the prefix, and
    # no others, are between these two. (LIKE would take % and _ for wildcards, and A for a.)
    return prefix, prefix.encode() + b"\xff"
