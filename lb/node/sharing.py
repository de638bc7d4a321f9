"""New slot tables become part of the shared state: by the node whose turn it is."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lb.core.state import DesiredState
from lb.errors import CapacityError, ConflictError
from lb.model import keys
from lb.node.planning import Bases
from lb.store.base import Compare, Delete, Put, Store

log = logging.getLogger("lbd")

TABLES_A_COMMIT = 50
# etcd takes 1.5 MiB at once, unless it was told otherwise. After 60 changes of weights of 100 backends a
# table is 71 KB, of 4,000 it is 100 KB.
BYTES_A_COMMIT = 512 * 1024
SHARE_SECONDS = 0.05  # from one node's turn to share new tables to the next one's; at most
SHARE_AT_MOST = 2.0  # in all

_Change = tuple[str, Put | Delete]  # path of the table


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
        changes: list[_Change] = [
            *(
                (name, Put(keys.table(name), document.model_dump_json()))
                for name, document in self.bases.unstored(state).items()
            ),
            *((name, Delete(keys.table(name))) for name in self.bases.unneeded(state)),
        ]
        for portion in _portions(changes):
            self._share(state, portion)

    def _share(self, state: DesiredState, changes: list[_Change]) -> None:
        compares = [
            Compare(key, state.versions.get(key, 0))
            for name, _ in changes
            for key in (keys.table(name), keys.service(name.partition("/")[0]))
        ]
        try:
            self.store.commit([change for _, change in changes], compares)
        except ConflictError:
            if len(changes) > 1:  # one conflict must not keep the others back
                for change in changes:
                    self._share(state, [change])
        except CapacityError as error:
            if len(changes) == 1:
                self._say_too_large(changes[0][0], error)
            else:
                half = len(changes) // 2
                self._share(state, changes[:half])
                self._share(state, changes[half:])

    def _say_too_large(self, name: str, error: CapacityError) -> None:
        """Once for each table: it is tried again whenever tables are planned."""
        if name not in self._too_large:
            self._too_large.add(name)
            log.error("slot table of %s: not stored: %s (%s)", name, error, error.hint)


def _portions(changes: Iterable[_Change]) -> Iterator[list[_Change]]:
    """Changes for one commit each."""
    portion: list[_Change] = []
    size = 0
    for change in changes:
        _, operation = change
        more = len(operation.value) if isinstance(operation, Put) else 0  # all of it is ASCII
        if len(portion) == TABLES_A_COMMIT or (portion and size + more > BYTES_A_COMMIT):
            yield portion
            portion, size = [], 0
        portion.append(change)
        size += more
    if portion:
        yield portion
