"""The store as the rest of lb sees it: values, and an abstract class that each driver implements.

A store is a flat map of keys to UTF-8 text with one revision counter: every commit that changes
something adds one to it. The model is etcd's (https://etcd.io/docs/v3.4/learning/api/), so that both
drivers keep the same promises; tests/unit/test_store_contract.py states them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from lb.errors import ConflictError


@dataclass(frozen=True)
class KeyValue:
    """One key as of some revision. `mod_revision` is the revision of its last change, `create_revision`
    that since which it exists, or 0 where a driver can't tell: the embedded store forgets."""

    key: str
    value: str
    mod_revision: int
    create_revision: int = 0


@dataclass(frozen=True)
class Snapshot:
    """All keys under a prefix, sorted, as of one revision.

    `cluster` names the history that the revision counts in, where a driver can tell ("" if not): with
    another one, revisions can't be compared.
    """

    revision: int
    items: tuple[KeyValue, ...]
    cluster: str = ""

    @property
    def entries(self) -> Iterator[tuple[str, str, int]]:
        """Key, value and mod_revision of each, as lb/core/state.py reads them."""
        return ((item.key, item.value, item.mod_revision) for item in self.items)

    @property
    def created(self) -> dict[str, int]:
        """The revision since which each key exists, where the driver can tell."""
        return {item.key: item.create_revision for item in self.items if item.create_revision}


@dataclass(frozen=True)
class Compare:
    """Holds when the key's mod_revision is this one; 0 = the key does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True)
class Unwritten:
    """Holds when no key that begins with `prefix` was put after a revision. It takes the place of a
    compare for each of them, where those would be too many. Deletions are not noticed: etcd can't
    tell."""

    prefix: str
    after: int


@dataclass(frozen=True)
class Put:
    """Set a key. With a lease, the key is deleted when the lease ends."""

    key: str
    value: str
    lease: int | None = None


@dataclass(frozen=True)
class Delete:
    """Delete a key; no error if it does not exist."""

    key: str


@dataclass(frozen=True)
class Event:
    """One change. `value` is None when the key was deleted."""

    key: str
    value: str | None
    revision: int


@dataclass(frozen=True)
class Batch:
    """Changes in the order of their revisions; all changes of one commit are in one batch.

    Every change up to and including `revision` that the watch asked for has been delivered, so a
    batch may be without events: it then only says how far the watch has come.
    """

    revision: int
    events: tuple[Event, ...]


class Closable(ABC):
    """Something that `with` closes."""

    @abstractmethod
    def close(self) -> None:
        """Release what it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Watch(Closable):
    """A running watch. Close it when done; iteration ends after close()."""

    @abstractmethod
    def next(self, timeout: float | None = None) -> Batch | None:
        """The next batch; None when `timeout` seconds went by without one, or after close().

        Raises RevisionCompacted when changes were lost (read anew), StoreUnavailable when the
        store has gone and retrying has not brought it back.
        """

    @abstractmethod
    def close(self) -> None:
        """End the watch; may be called from another thread and more than once."""


class Store(Closable):
    """What every driver offers. All methods may be called from any thread."""

    @abstractmethod
    def read(self, prefix: str, *, revision: int | None = None) -> Snapshot:
        """All keys that begin with `prefix`, now or at an earlier revision.

        Raises RevisionCompacted for a revision that is no longer kept, StoreUnavailable.
        """

    @abstractmethod
    def get(self, key: str) -> KeyValue | None:
        """One key, or None. Raises StoreUnavailable."""

    @abstractmethod
    def commit(
        self, operations: Sequence[Put | Delete], compares: Sequence[Compare | Unwritten] = ()
    ) -> int:
        """Do all operations at once if all compares hold; returns the revision after it.

        A commit that changes nothing (no operations, or deletes of absent keys only) makes no
        revision. Raises ConflictError, naming the key, when a compare does not hold, and changes
        nothing then; StoreUnavailable when it can't be known whether it was done.
        """

    @abstractmethod
    def watch(self, prefix: str, *, after: int) -> Watch:
        """Every change of keys under `prefix` with a revision greater than `after`, no gap, no
        duplicate."""

    @abstractmethod
    def grant(self, ttl: float) -> int:
        """A new lease that ends `ttl` seconds after its last renewal; returns its id (> 0)."""

    @abstractmethod
    def renew(self, lease: int) -> bool:
        """Renew a lease; False when it has ended already."""

    @abstractmethod
    def revoke(self, lease: int) -> None:
        """End a lease now and delete its keys."""

    @abstractmethod
    def close(self) -> None:
        """Release what the driver holds; its watches end."""


def conflict(compare: Compare | Unwritten, found: int) -> ConflictError:
    """The error for a compare that does not hold, because `found` is the key's mod_revision (0 =
    none)."""
    if isinstance(compare, Unwritten):
        return ConflictError(
            f"something under {compare.prefix} was changed meanwhile",
            hint="read it again, then try again",
        )
    if not found:
        what = "was deleted meanwhile"
    else:
        what = "was changed meanwhile" if compare.mod_revision else "exists already"
    return ConflictError(f"{compare.key} {what}", hint="read it again, then try again")


def iterate(watch: Watch) -> Iterator[Batch]:
    """Batches until the watch is closed."""
    while (batch := watch.next()) is not None:
        yield batch
