"""How many slots a change moves, for --dry-run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lb.cli.rows import by_service
from lb.core.state import DesiredState
from lb.model.objects import table_path

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
        found.append(_move(name, *tables(before, after, name)))
    return found


def tables(before: DesiredState, after: DesiredState, service: str) -> tuple[Table, Table]:
    """The service's table as nodes plan it from the one state, and then from the other: its backup's,
    if nobody else takes flows."""
    from lb.core import plan, slots  # NumPy takes 0.2 s to import: only where somebody asks

    held: dict[str, Table] = {}
    old = slots.empty()
    if service in before.services:
        was, backends = before.services[service], before.backends_of(service)
        held = plan.base_tables(was, backends, before.tables, int(time.time()))
        old = plan.in_force(was, held)
    wanted = after.services[service]
    members = plan.members_of(after.backends_of(service))
    new = slots.plan(members, wanted.split, held.get(service))
    if wanted.backup and not new.has_backends:
        stored = held.get(table_path(service, wanted.backup))
        new = slots.plan(members, {wanted.backup: 100.0}, stored)
    return old, new


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
