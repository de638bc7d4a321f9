"""What a change of affinity does to flows: it hashes all of them anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lb.cli.rows import by_service, planned_shares
from lb.core.state import DesiredState
from lb.model.objects import Affinity, Tracking


@dataclass(frozen=True)
class Rehash:
    """One service whose flows get another slot, without any slot moving."""

    service: str
    before: Affinity
    after: Affinity
    remembered: bool  # do established flows have an entry that counts?
    other_percent: float  # of all flows, how many find another backend in their new slot

    @property
    def text(self) -> str:
        """For people."""
        said = f"service {self.service}: affinity {self.before} -> {self.after} hashes all flows anew: "
        if self.remembered:
            return said + (
                "established flows stay where their entries say (tracking always), but about"
                f" {self.other_percent:.0f} % of clients get another backend for new ones"
            )
        return said + (
            f"about {self.other_percent:.0f} % of the established flows go to another backend, and break"
        )

    def as_dict(self) -> dict[str, Any]:
        """For `-o json`."""
        return {
            "service": self.service,
            "before": self.before.value,
            "after": self.after.value,
            "breaks_established": not self.remembered,
            "other_backend_percent": round(self.other_percent, 2),
        }


def rehashes(before: DesiredState, after: DesiredState) -> list[Rehash]:
    """The services whose affinity changes, if they had anybody to serve."""
    old_backends, new_backends = by_service(before), by_service(after)
    found = []
    for name, service in sorted(after.services.items()):
        was = before.services.get(name)
        if was is None or was.affinity is service.affinity:
            continue
        old = planned_shares(was, old_backends[name])
        new = planned_shares(service, new_backends[name])
        if not any(old.values()):
            continue
        # Where a flow was and where it comes to have nothing to do with each other.
        same = sum(share * new.get(backend, 0.0) for backend, share in old.items()) / 100
        found.append(
            Rehash(
                service=name,
                before=was.affinity,
                after=service.affinity,
                remembered=was.tracking is service.tracking is Tracking.ALWAYS,
                other_percent=100 - same,
            )
        )
    return found
