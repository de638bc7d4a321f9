"""Which share of a service's slots each pool holds in the kernel: by it people and rollouts see what
became of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from lb.core.plan import Wanted
from lb.core.slots import SLOTS, Table
from lb.core.state import DesiredState
from lb.model.objects import Backend

_Known = tuple[Table, Sequence[Backend], dict[str, float]]


@dataclass
class Shares:
    """Counts a table once."""

    _known: dict[str, _Known] = field(default_factory=dict)

    def update(self, state: DesiredState, wanted: Wanted) -> dict[str, dict[str, float]]:
        """Per service that has several pools, in per cent; pools without a slot are left out."""
        known: dict[str, _Known] = {}
        for name in state.services:
            backends = state.backends_of(name)
            if name not in wanted.services or len({each.pool for each in backends}) < 2:
                continue
            table, before = wanted.services[name].table, self._known.get(name)
            if before is not None and before[0] is table and before[1] is backends:
                known[name] = before
            else:
                known[name] = table, backends, _shares(table, backends)
        self._known = known
        return {name: shares for name, (_, _, shares) in known.items()}


def _shares(table: Table, backends: Sequence[Backend]) -> dict[str, float]:
    pool_of = {each.name: each.pool for each in backends}
    held: Counter[str] = Counter()
    for name, count in table.counts().items():
        if count and name in pool_of:
            held[pool_of[name]] += count
    return {pool: round(100 * count / SLOTS, 4) for pool, count in sorted(held.items())}
