"""What becomes of the connections of observed services: looked at once a second, and reported."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from lb.core.plan import Wanted
from lb.datapath.maps import Maps
from lb.datapath.watch import Watch
from lb.model.flows import FlowReport, Vantage
from lb.model.reports import Problem
from lb.node.happenings import Timer
from lb.node.reporter import Background
from lb.settings import Settings

LOOK_SECONDS = 1.0
BACKEND_SECONDS = 0.02  # longer, for each backend: all of a report is written each time


@dataclass
class Observing:
    """The observation of one node. `reports` are the last ones, by service."""

    settings: Settings
    maps: Maps
    reporter: Background
    reports: Mapping[str, FlowReport] = field(default_factory=dict)
    _timer: Timer = field(default_factory=lambda: Timer(LOOK_SECONDS))
    _is_crowded: bool = False
    _services: Mapping[str, list[str]] = field(default_factory=dict)  # with their backends

    def __post_init__(self) -> None:
        maps = self.maps
        self._watch = Watch(maps.watched, maps.totals, maps.overdue, self.settings.observation)

    @property
    def due(self) -> float:
        """When look_if_due() has something to do next (monotonic clock)."""
        return self._timer.due if self._watch.is_on else float("inf")

    def follow(self, wanted: Wanted, keep: Collection[str]) -> bool:
        """Observe what is to be observed. `keep`: store keys of what stays as it is. True if others are
        from now on: `reports` then say where counting begins, before clients come."""
        services: dict[str, list[str]] = {
            each.service.name: [] for each in wanted.services.values() if each.observed
        }
        for service, backend in wanted.backends if services else ():
            if service in services:
                services[service].append(backend)
        was_on = self._watch.is_on
        self._watch.follow(services, keep)
        count = sum(map(len, services.values()))
        self._timer.period = max(LOOK_SECONDS, BACKEND_SECONDS * count)
        if was_on and not services:
            self.reports = {}
            self.reporter.report_flows({})
        is_new = services != self._services
        self._services = services
        if services and is_new:
            self.reports = self._watch.reports(self.settings.node, Vantage.NODE)
        return is_new

    def look_if_due(self, now: float) -> bool:
        """Look, and report; True if `reports` are new."""
        if now < self.due or not self._timer.is_due(now):
            return False
        self._is_crowded = not self._watch.look(time.monotonic_ns())
        self.reports = self._watch.reports(self.settings.node, Vantage.NODE)
        self.reporter.report_flows(self.reports)
        return True

    def problems(self) -> list[Problem]:
        """What keeps it from seeing everything."""
        if not self._is_crowded:
            return []
        room = self.maps.watched.max_entries
        return [
            Problem(
                where=self.settings.node,
                message=f"more than {room} connections of observed services: some that fail are not"
                " counted",
                hint="raise limits.watched in lb.toml, then lbd --detach and start lbd again",
                warning=True,
            )
        ]
