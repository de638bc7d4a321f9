"""The planner with a memory: tables are planned anew only for services that changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from lb.core import slots
from lb.core.plan import base_table
from lb.core.slots import Table
from lb.core.state import DesiredState
from lb.model.objects import Backend, Service, TableDocument

_Inputs = tuple[Service, tuple[Backend, ...], TableDocument | None]


@dataclass
class Bases:
    """The base table of each service."""

    _known: dict[str, tuple[_Inputs, Table]] = field(default_factory=dict)

    def update(self, state: DesiredState) -> dict[str, Table]:
        """Base tables for this state. A table stays the same object while its inputs are the same."""
        members: dict[str, list[Backend]] = {name: [] for name in state.services}
        for backend in sorted(state.backends.values(), key=lambda b: b.name):
            members[backend.service].append(backend)
        known: dict[str, tuple[_Inputs, Table]] = {}
        for name, service in state.services.items():
            document = state.tables.get(name)
            inputs = (service, tuple(members[name]), document)
            before = self._known.get(name)
            if before is not None and before[0] == inputs:
                known[name] = before
                continue
            table = base_table(service, members[name], document)
            if before is not None and slots.equal(before[1], table):
                table = before[1]
            known[name] = (inputs, table)
        self._known = known
        return {name: table for name, (_, table) in known.items()}


def unstored(state: DesiredState, bases: dict[str, Table]) -> dict[str, TableDocument]:
    """The tables that differ from what the store holds."""
    found = {}
    for name, table in bases.items():
        document = slots.to_document(name, table)
        if state.tables.get(name) != document:
            found[name] = document
    return found
