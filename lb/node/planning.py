"""The planner's memory: tables are planned anew only for services that changed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lb.core import slots
from lb.core.overlay import overlay
from lb.core.plan import base_table
from lb.core.slots import Member, Table
from lb.core.state import DesiredState
from lb.model.objects import Backend, Service, TableDocument

_Inputs = tuple[Service, list[Backend], TableDocument | None]


@dataclass
class Bases:
    """The base table of each service."""

    _known: dict[str, tuple[_Inputs, Table]] = field(default_factory=dict)
    _documents: dict[str, tuple[Table, TableDocument]] = field(default_factory=dict)

    def update(self, state: DesiredState) -> dict[str, Table]:
        """Base tables for this state. A table stays the same object while its content is the same."""
        known: dict[str, tuple[_Inputs, Table]] = {}
        for name, service in state.services.items():
            members = state.backends_of(name)
            inputs = (service, members, state.tables.get(name))
            before = self._known.get(name)
            if before is not None and before[0] == inputs:
                known[name] = before
                continue
            table = base_table(service, members, inputs[2], int(time.time()))
            if before is not None and slots.equal(before[1], table):
                table = before[1]  # the same object: whoever has it knows that it is no news
            known[name] = (inputs, table)
        self._known = known
        return {name: table for name, (_, table) in known.items()}

    def unstored(self, state: DesiredState) -> dict[str, TableDocument]:
        """The tables of the last update that differ from what the store holds."""
        documents = {}
        for name, (_, table) in self._known.items():
            before = self._documents.get(name)
            same = before is not None and before[0] is table
            documents[name] = before if same and before else (table, slots.to_document(name, table))
        self._documents = documents
        return {
            name: document
            for name, (_, document) in documents.items()
            if state.tables.get(name) != document
        }


@dataclass
class Overlays:
    """`overlay`, remembered for as long as it is asked for again."""

    _known: dict[object, tuple[Table, Table]] = field(default_factory=dict)
    _used: dict[object, tuple[Table, Table]] = field(default_factory=dict)

    def __call__(self, base: Table, members: Sequence[Member], fitness: Mapping[str, float]) -> Table:
        """The overlay of this base table."""
        key = (id(base), tuple(members), tuple(sorted(fitness.items())))
        # The base is remembered, too, so that its id isn't given to another table.
        known = self._known.get(key) or (base, overlay(base, members, fitness))
        self._used[key] = known
        return known[1]

    def forget_unused(self) -> None:
        """Keep only what was asked for since the last call."""
        self._known, self._used = self._used, {}
