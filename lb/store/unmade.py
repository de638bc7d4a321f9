"""An embedded store that isn't there yet: it reads as empty, and is made with the first commit."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from lb.errors import RevisionCompacted
from lb.store.base import Compare, Delete, KeyValue, Put, Snapshot, Store, Unwritten, Watch
from lb.store.sqlite import SqliteStore
from lb.store.sqlite_file import is_made


class UnmadeStore(Store):
    """So that a change that is refused, or only tried (--dry-run), makes no file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._made: SqliteStore | None = None
        self._lock = threading.Lock()

    def read(self, prefix: str, *, revision: int | None = None) -> Snapshot:
        """See Store.read."""
        if store := self._there():
            return store.read(prefix, revision=revision)
        if revision:
            raise RevisionCompacted(
                f"revision {revision} is still to come", hint="read the present state anew"
            )
        return Snapshot(0, ())

    def get(self, key: str) -> KeyValue | None:
        """See Store.get."""
        store = self._there()
        return store.get(key) if store else None

    def commit(
        self, operations: Sequence[Put | Delete], compares: Sequence[Compare | Unwritten] = ()
    ) -> int:
        """See Store.commit."""
        return self._make().commit(operations, compares)

    def watch(self, prefix: str, *, after: int) -> Watch:
        """See Store.watch."""
        return self._make().watch(prefix, after=after)

    def grant(self, ttl: float) -> int:
        """See Store.grant."""
        return self._make().grant(ttl)

    def renew(self, lease: int) -> bool:
        """See Store.renew."""
        return self._make().renew(lease)

    def revoke(self, lease: int) -> None:
        """See Store.revoke."""
        self._make().revoke(lease)

    def close(self) -> None:
        """See Store.close."""
        if self._made is not None:
            self._made.close()

    def _there(self) -> SqliteStore | None:
        """The store, if somebody has made it meanwhile."""
        return self._make() if self._made is not None or is_made(Path(self._path)) else None

    def _make(self) -> SqliteStore:
        with self._lock:
            if self._made is None:
                self._made = SqliteStore(self._path)
            return self._made
