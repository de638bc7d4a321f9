"""The planner's memory: tables are planned anew only for services that changed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lb.core import slots
from lb.core.plan import Observed, ServicePlan, Wanted, base_table, join, plan_service, seed_in_force
from lb.core.slots import Table
from lb.core.state import DesiredState
from lb.model.objects import Backend, Service, TableDocument

_BaseInputs = tuple[Service, tuple[Backend, ...], TableDocument | None]
_Inputs = tuple[Service, tuple[Backend, ...], Table]


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
                known[name] = inputs, before[1]
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
    _joined: Wanted = field(default_factory=lambda: Wanted({}, {}))

    def update(self, state: DesiredState, observed: Observed, bases: Mapping[str, Table]) -> Wanted:
        """As lb.core.plan.plan() says, but only for services that changed."""
        seed = seed_in_force(state)
        if observed != self._observed or seed != self._seed:
            # Rare, and then most services may be concerned.
            self._known, self._observed, self._seed = {}, observed, seed
        known: dict[str, tuple[_Inputs, ServicePlan]] = {}
        changed: list[ServicePlan] = []
        for name, service in state.services.items():
            inputs = service, state.backends_of(name), bases[name]
            before = self._known.get(name)
            if before is not None and before[0] == inputs:
                known[name] = inputs, before[1]  # equal: identical ones are compared faster
            else:
                known[name] = inputs, plan_service(*inputs[:2], observed, seed, inputs[2])
                changed.append(known[name][1])
        self._joined = self._join({name: each for name, (_, each) in known.items()}, changed)
        self._known = known
        return self._joined

    def _join(self, plans: Mapping[str, ServicePlan], changed: Sequence[ServicePlan]) -> Wanted:
        """All of them; where only values differ, what was joined before with what changed."""
        before = self._joined
        fresh = {key: backend for each in changed for key, backend in each.backends.items()}
        if (
            before.problems
            or any(each.problems for each in changed)
            or plans.keys() != before.services.keys()
            or len(before.backends) != sum(len(each.backends) for each in plans.values())
            or not fresh.keys() <= before.backends.keys()
        ):
            return join(plans)
        services = {each.wanted.service.name: each.wanted for each in changed}
        return Wanted({**before.services, **services}, {**before.backends, **fresh})
