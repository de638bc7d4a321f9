"""The planner's memory: tables are planned anew only for services that changed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lb.core import slots
from lb.core.health import Verdict
from lb.core.plan import (
    HEALTHY,
    Observed,
    ServicePlan,
    Wanted,
    base_tables,
    flat,
    join,
    paths,
    plan_service,
    seed_in_force,
)
from lb.core.room import NOTHING, WHOLE, LeftOut, Narrowed
from lb.core.slots import Table
from lb.core.state import DesiredState
from lb.model import keys
from lb.model.objects import Backend, Service, TableDocument

_BaseInputs = tuple[Service, tuple[Backend, ...], dict[str, TableDocument]]
_Inputs = tuple[Service, tuple[Backend, ...], dict[str, Table], Verdict, bool, frozenset[str], Narrowed]


@dataclass
class Bases:
    """The base tables of each service."""

    _known: dict[str, tuple[_BaseInputs, dict[str, Table]]] = field(default_factory=dict)
    _documents: dict[str, tuple[Table, TableDocument]] = field(default_factory=dict)

    def update(self, state: DesiredState) -> dict[str, Table]:
        """Base tables for this state, by path. A table stays the same object while its content is the
        same."""
        documents: dict[str, dict[str, TableDocument]] = {}
        for path, document in state.tables.items():
            documents.setdefault(document.service, {})[path] = document
        known: dict[str, tuple[_BaseInputs, dict[str, Table]]] = {}
        for name, service in state.services.items():
            inputs = service, state.backends_of(name), documents.get(name, {})
            before = self._known.get(name)
            if before is not None and (before[0] == inputs or self._are_ours(before, inputs)):
                known[name] = inputs, before[1]
                continue
            made = base_tables(*inputs, int(time.time()))
            held = before[1] if before else {}
            for path in made.keys() & held.keys():
                if slots.equal(held[path], made[path]):
                    made[path] = held[path]  # the same object: whoever has it knows that it is no news
            known[name] = inputs, made
        self._known = known
        return self._tables()

    def _are_ours(self, before: tuple[_BaseInputs, dict[str, Table]], inputs: _BaseInputs) -> bool:
        """Does the store now have the very tables that were planned here, and did nothing else change?
        In a fleet that follows on each change."""
        return before[0][:2] == inputs[:2] and inputs[2] == {
            path: held[1]
            for path, table in before[1].items()
            if (held := self._documents.get(path)) and held[0] is table
        }

    def _tables(self) -> dict[str, Table]:
        return {path: table for _, made in self._known.values() for path, table in made.items()}

    def unstored(self, state: DesiredState) -> dict[str, TableDocument]:
        """The tables of the last update that differ from what the store holds, by path."""
        documents = {}
        for path, table in self._tables().items():
            before = self._documents.get(path)
            same = before is not None and before[0] is table
            documents[path] = before if same and before else (table, slots.to_document(path, table))
        self._documents = documents
        return {
            path: document
            for path, (_, document) in documents.items()
            if state.tables.get(path) != document
        }

    def unneeded(self, state: DesiredState) -> list[str]:
        """Paths of tables that the store holds of services that are gone, and of pools that no rule
        sends anybody to any more, and that are no backup."""
        needed = {path for _, made in self._known.values() for path in made}
        return [
            path
            for path, document in state.tables.items()
            if path not in needed
            # A service that can't be read may come back as it was.
            and (document.service in self._known or keys.service(document.service) not in state.versions)
        ]


@dataclass
class Plans:
    """The plan of each service. It stays the same object while nothing that it depends on changes."""

    _known: dict[str, tuple[_Inputs, ServicePlan]] = field(default_factory=dict)
    _observed: Observed = field(default_factory=Observed)
    _seed: str = ""
    _joined: Wanted = field(default_factory=lambda: Wanted({}, {}))

    def update(
        self,
        state: DesiredState,
        observed: Observed,
        bases: Mapping[str, Table],
        verdicts: Mapping[str, Verdict] = {},
        judged: Collection[str] = (),
        full: Mapping[str, Collection[str]] = {},
        left_out: LeftOut = NOTHING,
    ) -> Wanted:
        """As lb.core.plan.plan() says, but only for services that changed. `judged`: names of those that
        have a rollout under way; `full`: by service, backends that are (lb/core/capacity.py);
        `left_out`: what has no room (lb/core/room.py)."""
        seed = seed_in_force(state)
        if observed != self._observed or seed != self._seed:
            # Rare, and then most services may be concerned.
            self._known, self._observed, self._seed = {}, observed, seed
        known: dict[str, tuple[_Inputs, ServicePlan]] = {}
        changed: list[ServicePlan] = []
        for name, service in state.services.items():
            if name in left_out.services:
                continue
            own = {path: bases[path] for path in paths(service, bases[name])}
            verdict, crowded = verdicts.get(name, HEALTHY), frozenset(full.get(name, ()))
            room = left_out.parts.get(name, WHOLE)
            inputs = service, state.backends_of(name), own, verdict, name in judged, crowded, room
            before = self._known.get(name)
            if before is not None and before[0] == inputs:
                known[name] = inputs, before[1]  # equal: identical ones are compared faster
            else:
                plan = plan_service(service, inputs[1], observed, seed, own, *inputs[3:])
                known[name] = inputs, plan
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
            or flat(plans.values()).keys() != before.services.keys()
            or len(before.backends) != sum(len(each.backends) for each in plans.values())
            or not fresh.keys() <= before.backends.keys()
        ):
            return join(plans)
        return Wanted({**before.services, **flat(changed)}, {**before.backends, **fresh})
