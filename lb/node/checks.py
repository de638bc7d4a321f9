"""lbd's memory of health: from the desired state to what is probed, from results to verdicts.

The prober's thread asks; its results come through lbd's inbox, so one thread decides here as everywhere.
All rules are in lb/core/health.py.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from lb.core import health as core
from lb.core.health import Member, Record, State, Verdict
from lb.core.quorum import Votes
from lb.core.state import DesiredState
from lb.model import keys
from lb.model.health import Health, Via, effective
from lb.model.objects import Admin, Backend, BackendHealth, HealthChange, Problem, Service
from lb.node.ballots import Ballots
from lb.probe.base import Target
from lb.probe.scheduler import Key, Probed
from lb.settings import Checks as Settings

log = logging.getLogger("lbd")

SAVE_SECONDS = 1.0  # after a transition, so that a burst is written once
FORGET_SECONDS = 7 * 86400.0  # after which memory of a backend that nobody mentions is dropped
HISTORY = 5  # transitions that a node's status shows of each backend
LATE_SECONDS = 0.1  # p99 of lateness that is worth a problem
# Latencies that differ less are not worth another revision of the store.
SAME_FACTOR, SAME_SECONDS = 2.0, 0.002

_MEMORY = TypeAdapter(dict[str, Record])


class Prober(Protocol):
    """What is needed of lb.probe.prober.Prober."""

    def update(self, targets: Mapping[Key, tuple[Target, float]]) -> None:
        """Ask these."""

    def pace(self, key: Key, period: float) -> None:
        """So often."""

    def lateness(self, percent: float) -> float:
        """How late checks begin."""


@dataclass(frozen=True)
class Transition:
    """What the log and the hook are told."""

    service: str
    backend: str
    address: str
    before: State
    after: State
    at: float
    words: str
    admin: Admin


@dataclass(frozen=True)
class _Watched:
    """A service with checks."""

    service: Service
    backends: tuple[Backend, ...]
    targets: Mapping[Key, Target]

    def health(self, backend: str) -> Health | None:
        """How a backend is checked."""
        target = self.targets.get((self.service.name, backend))
        return target.health if target else None


@dataclass
class Checks:
    """The health of all backends that are checked: what this node found, and what the fleet makes of
    it."""

    settings: Settings
    prober: Prober
    tell: Callable[[Transition], None]
    clock: Callable[[], float] = time.time
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _unchecked: set[Key] = field(default_factory=set)  # that take flows without being checked
    _records: dict[Key, Record] = field(default_factory=dict)
    _remembered: dict[str, Record] = field(default_factory=dict)
    _reports: dict[str, BackendHealth] = field(default_factory=dict)
    _touched: set[Key] = field(default_factory=set)
    _save_at: float = math.inf
    _fallen: set[Key] = field(default_factory=set)
    _ballots: Ballots = field(default_factory=Ballots)
    _out: dict[str, frozenset[str]] = field(default_factory=dict)  # unhealthy as agreed, by service

    # -- what is asked -------------------------------------------------------------------------

    def follow(self, state: DesiredState) -> None:
        """Check what this state asks for."""
        watched = {}
        for name, service in state.services.items():
            if service.health is not None:
                before, backends = self._watched.get(name), state.backends_of(name)
                same = before and before.service is service and before.backends == backends
                watched[name] = before if before and same else self._watch(service, backends)
        changed = {name for name, each in watched.items() if each is not self._watched.get(name)}
        gone = self._watched.keys() - watched.keys()
        self._watched = watched
        if changed or gone:
            targets = {key: each for one in watched.values() for key, each in one.targets.items()}
            self._sort_records(targets)
            self.prober.update({key: (each, self._pace(key, each)) for key, each in targets.items()})
        for name in gone:
            del self.verdicts[name], self._out[name]
        self._judge(watched if self._ballots.suspect(self._records) else changed)
        self._unchecked = {key for key in state.backends if key not in self._records}

    def _watch(self, service: Service, backends: tuple[Backend, ...]) -> _Watched:
        before = self._watched.get(service.name)
        targets = {}
        for each in backends:
            key = service.name, each.name
            health = effective(service.health, each.health, each.port or service.one_port)
            if health is not None:
                target = Target(*key, each.address, health, self.settings.exec_dir)
                held = before.targets.get(key) if before else None
                # The same object while it is the same question: see take().
                targets[key] = held if held == target else target
        return _Watched(service, backends, targets)

    def _sort_records(self, targets: Mapping[Key, Target]) -> None:
        now = self.clock()
        for key in self._records.keys() - targets.keys():
            del self._records[key]
            self._touched.add(key)
        for key, target in targets.items():
            before = self._records.get(key)
            held = before or self._remembered.pop("/".join(key), None)
            if held is None or held.address != target.host:
                held = core.new(target.host, target.health, now, in_use=key in self._unchecked)
            if held is not before:
                self._records[key] = held
                self._touched.add(key)
        self._save_at = min(self._save_at, now + SAVE_SECONDS)

    def _pace(self, key: Key, target: Target) -> float:
        return core.pace(self._records[key], target.health)

    # -- what comes back -----------------------------------------------------------------------

    def take(self, results: Iterable[Probed]) -> bool:
        """True if that changes a verdict."""
        changed = set()
        now = self.clock()
        for each in results:
            watched = self._watched.get(each.key[0])
            if watched is None or watched.targets.get(each.key) is not each.target:
                continue  # of a question that nobody asks any more
            before = self._records[each.key]
            after = core.step(before, each.result, each.target.health, now)
            self._records[each.key] = after
            pace = core.pace(after, each.target.health)
            if pace != core.pace(before, each.target.health):
                self.prober.pace(each.key, pace)
            if after.state is not before.state:
                changed.add(each.key[0])
                self._touched.add(each.key)
                self._save_at = min(self._save_at, now + SAVE_SECONDS)
                self._announce(watched, each.key, before, after)
        is_news = bool(changed) and self._ballots.suspect(self._records)
        return self._judge(self._watched if is_news else changed) or is_news

    def hear(self, others: Mapping[str, Votes]) -> bool:
        """Take in what the other nodes found, all of them; True if that changes a verdict."""
        changed = self._ballots.hear(others) & self._watched.keys()
        is_news = bool(changed) and self._ballots.suspect(self._records)
        return self._judge(self._watched if is_news else changed) or is_news

    def hear_one(self, node: str, votes: Votes | None) -> bool:
        """The same of one node; none: it is gone."""
        others = {name: each for name, each in self._ballots.others.items() if name != node}
        return self.hear(others if votes is None else {**others, node: votes})

    def _announce(self, watched: _Watched, key: Key, before: Record, after: Record) -> None:
        [admin] = [each.admin for each in watched.backends if each.name == key[1]]
        words = after.history[-1].words
        told = Transition(*key, after.address, before.state, after.state, after.since, words, admin)
        log.info(
            "health service=%s backend=%s address=%s from=%s to=%s admin=%s words=%r",
            *key,
            told.address,
            told.before,
            told.after,
            admin,
            words,
        )
        self.tell(told)

    def tick(self) -> bool:
        """Let time pass; True if that changes a verdict."""
        now = self.clock()
        if now >= self._save_at:
            self.save()
        return self._judge({name for name, each in self.verdicts.items() if each.until <= now})

    def fallen(self) -> set[Key]:
        """Who got unhealthy, as agreed, since this was asked last."""
        found, self._fallen = self._fallen, set()
        return found

    @property
    def due(self) -> float:
        """When tick() has something to do, in Unix seconds."""
        return min((self._save_at, *(each.until for each in self.verdicts.values())))

    def _agreed(self, key: Key) -> Record | None:
        return self._ballots.agreed(key, self._records.get(key))

    def _judge(self, names: Iterable[str]) -> bool:
        now = self.clock()
        is_news = False
        for name in names:
            watched = self._watched[name]
            members = [
                Member(
                    name=each.name,
                    pool=each.pool,
                    takes=each.takes_flows,
                    health=watched.health(each.name),
                    record=self._agreed((name, each.name)),
                )
                for each in watched.backends
            ]
            before = self.verdicts.get(name, Verdict())
            service = watched.service
            after = core.judge(members, service.health, service.protocol, now, service.backup)
            self.verdicts[name] = after
            out = frozenset(m.name for m in members if m.record and m.record.state is State.UNHEALTHY)
            self._fallen |= {(name, each) for each in out - self._out.get(name, frozenset())}
            self._out[name] = out
            for backend in before.fitness.keys() | after.fitness.keys():
                if before.fitness.get(backend) != after.fitness.get(backend):
                    self._touched.add((name, backend))
            for pool in sorted({*after.panics} - {*before.panics}):
                log.warning(
                    "health service=%s pool=%s panic: too few are healthy, all are used", name, pool
                )
            for pool in sorted({*before.panics} - {*after.panics}):
                log.info("health service=%s pool=%s panic is over", name, pool)
            is_news |= after != before
        return is_news

    # -- what is said of it --------------------------------------------------------------------

    @property
    def via_vip(self) -> list[Key]:
        """Whose checks go through the data path."""
        return [
            key
            for one in self._watched.values()
            if one.service.health and one.service.health.via is Via.VIP
            for key in one.targets
        ]

    @property
    def is_busy(self) -> bool:
        """Is anything checked at all?"""
        return bool(self._records)

    @property
    def has_news(self) -> bool:
        """Is there anything that reports() has not told yet?"""
        return bool(self._touched)

    def reports(self, *, details: bool = False) -> Mapping[str, BackendHealth]:
        """Each backend's health; latencies and words of the last check are as fresh as the last call
        with `details`. The same object while nothing is new."""
        fresh = {}
        for key in list(self._records) if details else self._touched & self._records.keys():
            path = "/".join(key)
            before, after = self._reports.get(path), self._report(key)
            if before is None or not _is_same(before, after):
                fresh[path] = after
        gone = {"/".join(key) for key in self._touched - self._records.keys()} & self._reports.keys()
        self._touched.clear()
        if fresh or gone:
            kept = {path: each for path, each in self._reports.items() if path not in gone}
            self._reports = kept | fresh
        return self._reports

    def _report(self, key: Key) -> BackendHealth:
        record = self._records[key]
        verdict = self.verdicts.get(key[0], Verdict())
        failing = record.failed_at is not None and record.failed_at == record.checked
        return BackendHealth(
            state=record.state,
            since=record.since,
            share=verdict.fitness.get(key[1], 1.0),
            error=record.error if failing else "",
            latency=record.latency,
            history=tuple(
                HealthChange(at=each.at, state=each.state, words=each.words)
                for each in record.history[-HISTORY:]
            ),
        )

    def problems(self, node: str) -> list[Problem]:
        """What people should know without looking for it."""
        found = []
        if self._ballots.is_suspect:
            found.append(
                Problem(
                    where=node,
                    message="only this node's checks find most of its backends unhealthy: it goes by"
                    " what the other nodes find",
                    hint="look at this node's own network: `lbctl check` runs a check from here",
                    warning=True,
                )
            )
        for name, verdict in sorted(self.verdicts.items()):
            for pool in verdict.panics:
                threshold = self._watched[name].service.health
                found.append(
                    Problem(
                        where=keys.service(name),
                        message=f"panic: less than {threshold.panic if threshold else 0:g} % of pool"
                        f" {pool!r} is healthy, so its unhealthy backends are used, too",
                        hint=f"`lbctl backend list {name}` says what their checks found",
                        warning=True,
                    )
                )
        return found

    def lateness(self, node: str) -> list[Problem]:
        """A problem if checks begin late. Sorts all samples: not with every report."""
        late = self.prober.lateness(99)
        if late <= LATE_SECONDS:
            return []
        return [
            Problem(
                where=node,
                message=f"health checks begin late: 1 in 100 by {late:.1f} s or more",
                hint="this node is too busy for its checks: give them a longer interval",
                warning=True,
            )
        ]

    # -- over a restart ------------------------------------------------------------------------

    def load(self) -> None:
        """Read what an earlier process knew. Without it backends begin as unknown."""
        path = self.settings.memory
        try:
            known = _MEMORY.validate_json(path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not what lbd wrote"
            log.warning(
                "%s can't be read: %s; backends are unknown until they are checked", path, reason
            )
            return
        self._remembered = {name: core.resumed(each) for name, each in known.items()}

    def save(self) -> None:
        """Write what is known. The old file stays whole until the new one is."""
        self._save_at = math.inf
        old = self.clock() - FORGET_SECONDS
        known = {name: each for name, each in self._remembered.items() if (each.checked or 0) > old}
        known |= {"/".join(key): each for key, each in self._records.items()}
        path = self.settings.memory
        try:
            _write(path, _MEMORY.dump_json(known))
        except OSError as error:
            log.error("%s can't be written: %s; a restart will not know what is known now", path,
                      error.strerror)  # fmt: skip


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    new.write_bytes(data)
    os.replace(new, path)


def _is_same(before: BackendHealth, after: BackendHealth) -> bool:
    """Apart from a latency that is about the same."""
    if before == after:
        return True
    if before.model_copy(update={"latency": after.latency}) != after:
        return False
    low, high = sorted((before.latency or 0.0, after.latency or 0.0))
    return high <= max(low * SAME_FACTOR, low + SAME_SECONDS)
