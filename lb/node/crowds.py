"""Which backends are full by what this node counted. Rules: lb/core/capacity.py."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from lb.core import capacity
from lb.core.capacity import Full
from lb.core.state import BackendKey, DesiredState
from lb.model.reports import FullReport

log = logging.getLogger("lbd")


@dataclass
class Crowds:
    """The backends that are full, by service."""

    full: Mapping[str, Mapping[str, Full]] = field(default_factory=dict)

    def count(self, state: DesiredState, connections: Mapping[BackendKey, int]) -> bool:
        """Take in how many connections backends have; True if that is worth a look at the plan, or at
        what is said."""
        limited = {each.service for each in state.backends.values() if each.max_connections}
        found: dict[str, Mapping[str, Full]] = {}
        for name in limited & state.services.keys():
            backends, before = state.backends_of(name), self.full.get(name, {})
            own = {b.name: connections.get((name, b.name), 0) for b in backends}
            if now := capacity.full(backends, own, before):
                found[name] = now
            for backend in sorted(now.keys() - before.keys()):
                log.info(
                    "full service=%s backend=%s connections=%d limit=%d", name, backend, *now[backend]
                )
            for backend in sorted(before.keys() - now.keys()):
                log.info("full service=%s backend=%s is over: %d", name, backend, own.get(backend, 0))
        changed = found != self.full
        self.full = found
        return changed

    def follow(self, state: DesiredState) -> None:
        """By limits as people have them now; it is not counted anew for that."""
        self.full = {
            name: now
            for name, before in self.full.items()
            if name in state.services
            and (now := capacity.full(state.backends_of(name), _connections(before), before))
        }

    def reports(self) -> dict[str, FullReport]:
        """For the node's status."""
        return {
            f"{service}/{name}": FullReport(connections=each.connections, limit=each.limit)
            for service, backends in self.full.items()
            for name, each in backends.items()
        }


def _connections(found: Mapping[str, Full]) -> dict[str, int]:
    return {name: each.connections for name, each in found.items()}
