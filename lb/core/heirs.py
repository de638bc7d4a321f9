"""Who gets the id of an owner that goes in the same step, and what is wanted without them. Pure.

A quiet slot names a backend by its id alone, and a VIP a service. So where no id is free but those of
owners that go now, the kernel first has everything else, which takes those owners away, and then all.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from lb.core import ids, rules
from lb.core.plan import Wanted, WantedService
from lb.core.rules import Steer
from lb.core.state import BackendKey
from lb.model import keys
from lb.model.objects import table_path


@dataclass(frozen=True)
class Heirs:
    """`tables` by their paths."""

    tables: frozenset[str] = frozenset()
    backends: frozenset[BackendKey] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.tables or self.backends)

    @property
    def services(self) -> set[str]:
        """The services that are others without them."""
        return {path.partition("/")[0] for path in self.tables} | {name for name, _ in self.backends}


NOBODY = Heirs()


def heirs_of(wanted: Wanted, owners: Collection[int]) -> Heirs:
    """Which of what is wanted these are (uids, as in lb/core/ids.py)."""
    if not owners:
        return NOBODY
    return Heirs(
        frozenset(path for path in wanted.services if ids.uid(keys.service(path)) in owners),
        frozenset(key for key in wanted.backends if ids.uid(keys.backend(*key)) in owners),
    )


def without(wanted: Wanted, heirs: Heirs) -> Wanted:
    """The same for as long as these have to wait. A service whose own table waits is left out; one that
    has a pool whose table waits is there without the rules and copies that lead to it."""
    services = {
        path: _without(each, heirs.tables)
        for path, each in wanted.services.items()
        if not heirs.tables & {path, each.service.name}
    }
    names = {each.service.name for each in services.values()}
    backends = {
        key: each
        for key, each in wanted.backends.items()
        if key not in heirs.backends and key[0] in names
    }
    return Wanted(services, backends, wanted.problems)


def _without(wanted: WantedService, tables: Collection[str]) -> WantedService:
    service, base = wanted.service, wanted.base

    def waits(pool: str | None) -> bool:
        return pool is not None and table_path(service.name, pool) in tables

    if not any(waits(pool) for pool in service.pools_alone | rules.pools(base.steers)):
        return wanted
    mirror = service.mirror
    policies = {
        "rules": {prefix: pool for prefix, pool in service.rules.items() if not waits(pool)},
        "mirror": None if mirror and waits(mirror.pool) else mirror,
    }
    steers = {
        prefix: Steer(each.to, None if waits(each.before) else each.before, each.closes)
        for prefix, each in base.steers.items()
        if not waits(each.to)
    }
    base = base.with_steers(steers)
    return replace(wanted, service=service.model_copy(update=policies), base=base)
