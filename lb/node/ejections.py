"""What the data path saw of services with passive detection, and whom that ejects.

All rules are in lb/core/passive.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from lb.core import passive
from lb.core.passive import Ejection, Track
from lb.model.flows import FlowTotals
from lb.model.health import Passive
from lb.model.objects import Backend
from lb.probe.scheduler import Key


@dataclass(frozen=True)
class Reading:
    """The totals of one service's backends, as the kernel has them. See lb.model.flows.FlowReport."""

    service: str
    epoch: str
    backends: Mapping[str, FlowTotals]


@dataclass
class Ejections:
    """What was seen lately of each backend, and who was not ejected only because there was no room."""

    spared: dict[str, Mapping[str, str]] = field(default_factory=dict)  # by service: backend -> why
    _tracks: dict[Key, Track] = field(default_factory=dict)

    def forget(self, keys: Collection[Key]) -> None:
        """These are other backends now, or nobody asks for them any more."""
        for key in keys:
            self._tracks.pop(key, None)

    def is_good(self, key: Key) -> bool:
        """Was anything good seen of it lately?"""
        return key in self._tracks and self._tracks[key].sums.good > 0

    def read(
        self,
        reading: Reading,
        backends: Collection[Backend],
        held: Mapping[str, Ejection],
        usable: Collection[str],
        settings: Passive,
        now: float,
    ) -> Mapping[str, Ejection]:
        """Who is ejected from now on. `held` and `usable`: as passive.judge() says."""
        ejected: dict[str, Ejection] = {}
        spared: dict[str, str] = {}
        pools: dict[str, dict[str, Track]] = {}
        for each in backends:
            key = each.service, each.name
            track = self._tracks.get(key, Track())
            if each.name in reading.backends:
                totals = reading.backends[each.name]
                track = passive.observe(track, totals, reading.epoch, settings, now)
            if each.name in held and held[each.name].is_on(now):
                track = passive.forget(track)
            self._tracks[key] = track
            if each.takes_flows:
                pools.setdefault(each.pool, {})[each.name] = track
        for pool in pools.values():
            judged = passive.judge(pool, held, usable, settings, now)
            ejected |= judged.ejected
            spared |= judged.spared
        for name in ejected:
            key = reading.service, name
            self._tracks[key] = passive.forget(self._tracks[key])
        self.spared[reading.service] = spared
        return ejected
