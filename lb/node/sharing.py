"""New slot tables become part of the shared state: by the node whose turn it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from lb.core.state import DesiredState
from lb.errors import ConflictError
from lb.model import keys
from lb.node.planning import Bases
from lb.store.base import Compare, Delete, Put, Store

TABLES_A_COMMIT = 50
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
        changes: list[tuple[str, Put | Delete]] = [
            *(
                (name, Put(keys.table(name), document.model_dump_json()))
                for name, document in self.bases.unstored(state).items()
            ),
            *((name, Delete(keys.table(name))) for name in self.bases.unneeded(state)),
        ]
        for start in range(0, len(changes), TABLES_A_COMMIT):
            self._share(state, changes[start : start + TABLES_A_COMMIT])

    def _share(self, state: DesiredState, changes: list[tuple[str, Put | Delete]]) -> None:
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
