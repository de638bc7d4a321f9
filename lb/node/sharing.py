"""New slot tables become part of the shared state: by the node whose turn it is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from lb.core.state import DesiredState
from lb.errors import CapacityError, ConflictError
from lb.model import keys
from lb.node.planning import Bases
from lb.store.base import Compare, Delete, Put, Store
from lb.store.portions import Operation, portions

log = logging.getLogger("lbd")

TABLES_A_COMMIT = 50  # with two compares each: etcd takes 128
SHARE_SECONDS = 0.05  # from one node's turn to share new tables to the next one's; at most
SHARE_AT_MOST = 2.0  # in all


@dataclass
class Sharing:
    """Stores the tables in `bases` that nobody has stored yet, and takes those out that nobody needs. If
    another node was faster, or somebody changed the service, the watch brings that."""

    store: Store
    node: str
    bases: Bases
    due: float = field(default=float("inf"), init=False)  # monotonic clock: when it is our turn
    _too_large: set[str] = field(default_factory=set, init=False)

    def plan(self, state: DesiredState, now: float) -> None:
        """Call this when tables were planned. Each node plans the same ones, and if a hundred tried to
        store them at once, 99 would do it for nothing: so they take turns in the order of their
        names."""
        if self.bases.unstored(state) or self.bases.unneeded(state):
            before_us = sorted({*state.nodes, self.node}).index(self.node)
            self.due = min(self.due, now + min(SHARE_AT_MOST, SHARE_SECONDS * before_us))

    def share_if_due(self, state: DesiredState, now: float, *, held: bool) -> None:
        """`held`: the store is not followed for now, so nothing is written there."""
        if now < self.due:
            return
        self.due = float("inf")
        if held:
            return
        changes: list[Operation] = [
            *(
                Put(keys.table(path), document.model_dump_json())
                for path, document in self.bases.unstored(state).items()
            ),
            *(Delete(keys.table(path)) for path in self.bases.unneeded(state)),
        ]
        for portion in portions(changes, TABLES_A_COMMIT):
            self._share(state, portion)

    def _share(self, state: DesiredState, changes: Sequence[Operation]) -> None:
        compares = [
            Compare(key, state.versions.get(key, 0))
            for change in changes
            for key in (change.key, keys.service(_path(change).partition("/")[0]))
        ]
        try:
            self.store.commit(changes, compares)
        except ConflictError:
            if len(changes) > 1:  # one conflict must not keep the others back
                for change in changes:
                    self._share(state, [change])
        except CapacityError as error:
            if len(changes) == 1:
                self._say_too_large(_path(changes[0]), error)
            else:
                half = len(changes) // 2
                self._share(state, changes[:half])
                self._share(state, changes[half:])

    def _say_too_large(self, name: str, error: CapacityError) -> None:
        """Once for each table: it is tried again whenever tables are planned."""
        if name not in self._too_large:
            self._too_large.add(name)
            log.error("slot table of %s: not stored: %s (%s)", name, error, error.hint)


def _path(change: Operation) -> str:
    return change.key.removeprefix(keys.TABLES)
