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
_Known = tuple[_BaseInputs, dict[str, Table]]
_Inputs = tuple[Service, tuple[Backend, ...], dict[str, Table], Verdict, bool, frozenset[str], Narrowed]


@dataclass
class Bases:
    """The base tables of each service."""

    _known: dict[str, _Known] = field(default_factory=dict)
    _documents: dict[str, tuple[Table, TableDocument]] = field(default_factory=dict)
    # Services that are in doubt, or were and have not been stored since: was all known of them?
    _apart: dict[str, bool] = field(default_factory=dict)

    def update(self, state: DesiredState) -> dict[str, Table]:
        """Base tables for this state, by path. A table stays the same object while its content is the
        same.

        Each is planned from the one that is stored. Those of a service in doubt are not stored, so their
        moves go on from our own: else a second change would not know of what the first one moved."""
        documents: dict[str, dict[str, TableDocument]] = {}
        for path, document in state.tables.items():
            documents.setdefault(document.service, {})[path] = document
        known: dict[str, _Known] = {}
        for name, service in state.services.items():
            inputs = service, state.backends_of(name), documents.get(name, {})
            before = self._known.get(name)
            if before is not None and (before[0] == inputs or self._are_ours(before, inputs)):
                known[name] = inputs, before[1]
                self._note_doubt(state, name, before, inputs, before[1])
                continue
            made = base_tables(*inputs, int(time.time()), self._ours(state, name, before, inputs))
            self._note_doubt(state, name, before, inputs, made)
            held = before[1] if before else {}
            for path in made.keys() & held.keys():
                if slots.equal(held[path], made[path]):
                    made[path] = held[path]  # the same object: whoever has it knows that it is no news
            known[name] = inputs, made
        self._known = known
        self._apart = {name: whole for name, whole in self._apart.items() if name in known}
        return self._tables()

    def _ours(
        self, state: DesiredState, name: str, before: _Known | None, inputs: _BaseInputs
    ) -> Mapping[str, Table]:
        """The tables that were served here and not stored, by path."""
        if before is None:
            return {}
        is_first = self._apart.get(name, False) and before[0][2] == inputs[2]  # to share afterwards
        return before[1] if name in state.in_doubt or is_first else {}

    def _note_doubt(
        self,
        state: DesiredState,
        name: str,
        before: _Known | None,
        inputs: _BaseInputs,
        made: Mapping[str, Table],
    ) -> None:
        """Whoever comes while a service is in doubt, and finds a table stored that is not what comes of
        what it knows, knows less than others. Its own table must not become theirs afterwards."""
        if name in state.in_doubt:
            if name not in self._apart:
                stored = inputs[2]
                self._apart[name] = before is not None or all(
                    path not in stored or stored[path] == slots.to_document(path, table)
                    for path, table in made.items()
                )
        elif before is None or before[0][2] != inputs[2] or not self._apart.get(name):
            self._apart.pop(name, None)

    def _are_ours(self, before: _Known, inputs: _BaseInputs) -> bool:
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
        """The tables of the last update that differ from what the store holds, by path. Not those of
        services in doubt: nodes that know different things would overwrite each other for ever."""
        documents = {}
        for path, table in self._tables().items():
            before = self._documents.get(path)
            same = before is not None and before[0] is table
            documents[path] = before if same and before else (table, slots.to_document(path, table))
        self._documents = documents
        return {
            path: document
            for path, (_, document) in documents.items()
            if state.tables.get(path) != document and document.service not in state.in_doubt
        }

    def unneeded(self, state: DesiredState) -> list[str]:
        """Paths of tables that the store holds of services that are gone, and of pools that no rule
        sends anybody to any more, and that are no backup."""
        needed = {path for _, made in self._known.values() for path in made}
        return [
            path
            for path, document in state.tables.items()
            if path not in needed
            # A service that can't be read may come back as it was, or have other pools for others.
            and (
                keys.service(document.service) not in state.versions
                or (document.service in self._known and document.service not in state.in_doubt)
            )
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
