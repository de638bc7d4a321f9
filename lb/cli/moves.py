"""How many slots a change moves, for --dry-run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lb.cli.rows import by_service
from lb.core.state import DesiredState
from lb.model.objects import Backend, Service

if TYPE_CHECKING:
    from lb.core.slots import Table

SLOTS = 65536


@dataclass(frozen=True)
class Move:
    """What a change does to the slot table of one service."""

    service: str
    moved: int  # slots that go from one backend to another
    filled: int  # slots that had no backend
    emptied: int  # slots that have none afterwards

    @property
    def text(self) -> str:
        """For people."""
        said = []
        if self.filled:
            said.append(f"fills {self.filled:,} of {SLOTS:,} slots that had no backend")
        if self.emptied:
            said.append(f"empties {self.emptied:,} of {SLOTS:,} slots: no backend takes new flows")
        if self.moved or not said:
            said.append(f"moves {self.moved:,} of {SLOTS:,} slots, the least possible")
        return f"service {self.service}: {'; '.join(said)}"

    def as_dict(self) -> dict[str, Any]:
        """For `-o json`."""
        return {
            "service": self.service,
            "moved": self.moved,
            "filled": self.filled,
            "emptied": self.emptied,
            "of": SLOTS,
            "least_possible": True,  # the planner's promise: tests/property/
        }


def moves(before: DesiredState, after: DesiredState) -> list[Move]:
    """For each service whose table could differ. What is removed altogether has no table left."""
    old_backends, new_backends = by_service(before), by_service(after)
    found = []
    for name, service in sorted(after.services.items()):
        was = before.services.get(name)
        if was == service and old_backends[name] == new_backends[name]:
            continue
        old = _before(before, name, old_backends.get(name, []))
        found.append(_move(name, old, _after(service, new_backends[name], old)))
    return found


def _move(name: str, before: Table, after: Table) -> Move:
    import numpy as np

    from lb.core.slots import EMPTY

    had, has = before.slots != EMPTY, after.slots != EMPTY
    other = before.names() != after.names()
    return Move(
        service=name,
        moved=int(np.count_nonzero(had & has & other)),
        filled=int(np.count_nonzero(~had & has)),
        emptied=int(np.count_nonzero(had & ~has)),
    )


def _before(state: DesiredState, name: str, backends: list[Backend]) -> Table:
    """The table that nodes hold now: the stored one, brought up to date with the state beside it."""
    from lb.core import plan, slots  # NumPy takes 0.2 s to import: only for --dry-run

    if name not in state.services:
        return slots.empty()
    return plan.base_table(state.services[name], backends, state.tables.get(name))


def _after(service: Service, backends: list[Backend], before: Table) -> Table:
    from lb.core import plan, slots

    return slots.plan(plan.members_of(backends), service.split, before)
