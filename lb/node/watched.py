"""A service whose backends are checked: what is asked of whom, and who is only seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lb.model.health import Health, effective
from lb.model.objects import Address, Admin, Backend, Service
from lb.probe.base import Target
from lb.probe.scheduler import Key


class Prober(Protocol):
    """What is needed of lb.probe.prober.Prober."""

    def update(self, targets: Mapping[Key, tuple[Target, float]]) -> None:
        """Ask these."""

    def pace(self, key: Key, period: float) -> None:
        """So often."""

    def lateness(self, percent: float) -> float:
        """How late checks begin."""


@dataclass(frozen=True)
class Transition:
    """What the log and the hook are told."""

    service: str
    backend: str
    address: str
    before: str
    after: str
    at: float
    words: str
    admin: Admin


@dataclass(frozen=True)
class Watched:
    """A service with checks."""

    service: Service
    backends: tuple[Backend, ...]
    targets: Mapping[Key, Target]
    # Who is not asked, but judged by what the data path sees.
    seen: Mapping[Key, Address]

    def health(self, backend: str) -> Health | None:
        """How a backend is checked."""
        key = self.service.name, backend
        target = self.targets.get(key)
        return target.health if target else self.service.health if key in self.seen else None

    @property
    def subjects(self) -> Mapping[Key, tuple[Address, Health]]:
        """All whose health is told, one way or the other."""
        asked = {key: (each.address, each.health) for key, each in self.targets.items()}
        health = self.service.health
        return asked | ({key: (address, health) for key, address in self.seen.items()} if health else {})


def watch(
    service: Service, backends: tuple[Backend, ...], exec_dir: Path, before: Watched | None
) -> Watched:
    """What of a service is watched. Who is asked the same as `before` keeps the same target."""
    targets, seen = {}, {}
    for each in backends:
        key = service.name, each.name
        health = effective(service.health, each.health, each.port or service.one_port)
        if health is not None:
            target = Target(*key, each.address, health, exec_dir)
            held = before.targets.get(key) if before else None
            # The same object while it is the same question: see Checks.take().
            targets[key] = held if held == target else target
        elif service.health and service.health.passive and (not each.health or each.health.enabled):
            seen[key] = each.address
    return Watched(service, backends, targets, seen)
