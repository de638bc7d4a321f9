"""A service whose backends are checked: what is asked of whom, and who is only seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from lb.model.health import Health, effective
from lb.model.objects import Admin, Backend, Service
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


class Subject(NamedTuple):
    """A server whose health is told. `port`: where it takes flows; 0 = on several."""

    key: Key
    address: str
    port: int
    health: Health


@dataclass(frozen=True)
class Watched:
    """A service with checks."""

    service: Service
    backends: tuple[Backend, ...]
    targets: Mapping[Key, Target]
    seen: frozenset[Key]  # who is not asked, but judged by what the data path sees

    def health(self, backend: str) -> Health | None:
        """How a backend is checked."""
        key = self.service.name, backend
        target = self.targets.get(key)
        return target.health if target else self.service.health if key in self.seen else None

    @property
    def subjects(self) -> Iterator[Subject]:
        """All whose health is told, one way or the other."""
        for each in self.backends:
            health = self.health(each.name)
            if health is not None:
                key = self.service.name, each.name
                yield Subject(key, str(each.address), each.port or self.service.one_port or 0, health)


def watch(
    service: Service, backends: tuple[Backend, ...], exec_dir: Path, before: Watched | None
) -> Watched:
    """What of a service is watched. Who is asked the same as `before` keeps the same target."""
    targets, seen = {}, set()
    for each in backends:
        key = service.name, each.name
        health = effective(service.health, each.health, each.port or service.one_port)
        if health is not None:
            target = Target(*key, each.address, health, exec_dir)
            held = before.targets.get(key) if before else None
            # The same object while it is the same question: see Checks.take().
            targets[key] = held if held == target else target
        elif service.health and service.health.passive and (not each.health or each.health.enabled):
            seen.add(key)
    return Watched(service, backends, targets, frozenset(seen))
