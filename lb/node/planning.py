"""The planner's memory: tables are planned anew only for services that changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from lb.core import slots
from lb.core.plan import Observed, ServicePlan, Wanted, base_table, join, plan_service, seed_in_force
from lb.core.slots import Table
from lb.core.state import DesiredState
from lb.model.objects import Backend, Service, TableDocument

_BaseInputs = tuple[Service, list[Backend], TableDocument | None]
_Inputs = tuple[Service, list[Backend], Table]


@dataclass
class Bases:
    """The base table of each service."""

    _known: dict[str, tuple[_BaseInputs, Table]] = field(default_factory=dict)
    _documents: dict[str, tuple[Table, TableDocument]] = field(default_factory=dict)

    def update(self, state: DesiredState) -> dict[str, Table]:
        """Base tables for this state. A table stays the same object while its content is the same."""
        known: dict[str, tuple[_BaseInputs, Table]] = {}
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
class Plans:
    """The plan of each service. It stays the same object while nothing that it depends on changes."""

    _known: dict[str, tuple[_Inputs, ServicePlan]] = field(default_factory=dict)
    _observed: Observed = field(default_factory=Observed)
    _seed: str = ""

    def update(self, state: DesiredState, observed: Observed, bases: Mapping[str, Table]) -> Wanted:
        """As lb.core.plan.plan() says, but only for services that changed."""
        seed = seed_in_force(state)
        if observed != self._observed or seed != self._seed:
            # Rare, and then most services may be concerned.
            self._known, self._observed, self._seed = {}, observed, seed
        known: dict[str, tuple[_Inputs, ServicePlan]] = {}
        for name, service in state.services.items():
            members, base = state.backends_of(name), bases[name]
            before = self._known.get(name)
            if (
                before is not None
                and before[0][0] is service
                and before[0][2] is base
                and before[0][1] == members
            ):
                known[name] = before
            else:
                made = plan_service(service, members, observed, seed, base)
                known[name] = (service, members, base), made
        self._known = known
        return join({name: each for name, (_, each) in known.items()})
