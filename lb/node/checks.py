"""lbd's memory of health: from the desired state to what is probed, from results to verdicts.

The prober's thread asks; its results come through lbd's inbox, so one thread decides here as everywhere.
All rules are in lb/core/health.py.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lb.core import health as core
from lb.core.health import Member, Record, State, Verdict
from lb.core.quorum import Votes
from lb.core.state import DesiredState
from lb.model import keys
from lb.model.health import Via
from lb.model.reports import (
    BackendHealth,
    EjectionReport,
    HealthChange,
    Problem,
)
from lb.node import ailments, memory
from lb.node.ballots import Ballots
from lb.node.ejections import Ejections, Reading
from lb.node.watched import Prober, Subject, Transition, Watched, watch
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

PoolKey = tuple[str, str]  # service, pool
EJECTED = "ejected"  # what the log and the hook call that, besides the states


@dataclass
class Checks:
    """The health of all backends that are checked: what this node found, and what the fleet makes of
    it."""

    settings: Settings
    prober: Prober
    tell: Callable[[Transition], None]
    clock: Callable[[], float] = time.time
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    panicked: Tally[PoolKey] = field(default_factory=Tally)  # how often each pool began to
    _watched: dict[str, Watched] = field(default_factory=dict)
    _unchecked: set[Key] = field(default_factory=set)  # that take flows without being checked
    _records: dict[Key, Record] = field(default_factory=dict)
    _remembered: dict[str, Record] = field(default_factory=dict)
    _reports: dict[str, BackendHealth] = field(default_factory=dict)
    _touched: set[Key] = field(default_factory=set)
    _save_at: float = math.inf
    _fallen: set[Key] = field(default_factory=set)
    _ballots: Ballots = field(default_factory=Ballots)
    _out: dict[str, frozenset[str]] = field(default_factory=dict)  # unhealthy as agreed, by service
    _ejections: Ejections = field(default_factory=Ejections)
    _ejected: dict[Key, float] = field(default_factory=dict)  # until when

    # -- what is asked -------------------------------------------------------------------------

    def follow(self, state: DesiredState) -> None:
        """Check what this state asks for."""
        watched = {}
        for name, service in state.services.items():
            if service.health is not None:
                before, backends = self._watched.get(name), state.backends_of(name)
                same = before and before.service is service and before.backends == backends
                if before is None or not same:
                    before = watch(service, backends, self.settings.exec_dir, before)
                watched[name] = before
        changed = {name for name, each in watched.items() if each is not self._watched.get(name)}
        gone = self._watched.keys() - watched.keys()
        self._watched = watched
        if changed or gone:
            targets = {key: each for one in watched.values() for key, each in one.targets.items()}
            self._sort_records([each for one in watched.values() for each in one.subjects])
            self.prober.update({key: (each, self._pace(key, each)) for key, each in targets.items()})
        for name in gone:
            del self.verdicts[name], self._out[name]
        for name in self._ejections.spared.keys() - self._judged_by_flows():
            del self._ejections.spared[name]
        self._judge(watched if self._suspect() else changed)
        self._unchecked = {key for key in state.backends if key not in self._records}
        if state.services:  # else the store is new, or not the right one
            self._forget_who_is_gone(state.not_understood)

    def _judged_by_flows(self) -> set[str]:
        judged = ((name, each.service.health) for name, each in self._watched.items())
        return {name for name, health in judged if health and health.passive}

    def _forget_who_is_gone(self, unread: Collection[str]) -> None:
        """Who isn't there now, and comes later, is another server, whatever its name. Of what can't be
        read nobody knows."""
        self._remembered = {
            path: each
            for path, each in self._remembered.items()
            if keys.BACKENDS + path in unread or keys.SERVICES + path.partition("/")[0] in unread
        }

    def _sort_records(self, subjects: Sequence[Subject]) -> None:
        now = self.clock()
        for key in self._records.keys() - {each.key for each in subjects}:
            del self._records[key]
            self._ejected.pop(key, None)
            self._ejections.forget([key])
            self._touched.add(key)
        for key, address, port, health in subjects:
            before = self._records.get(key)
            held = before or self._remembered.pop("/".join(key), None)
            is_seen = key in self._watched[key[0]].seen
            in_use = is_seen or key in self._unchecked
            if held is None or not core.is_of(held, address, port):
                held = core.new(address, health, now, in_use=in_use, port=port)
                self._ejections.forget([key])
            elif is_seen and held.checked is not None:  # of checks that nobody makes any more
                fresh = core.new(address, health, now, in_use=True, port=port)
                held = replace(fresh, ejection=held.ejection)
            elif held.port != port:
                held = replace(held, port=port)
            if health.passive is None:
                held = replace(held, ejection=None) if held.ejection else held
            if held is not before:
                self._records[key] = held
                self._touched.add(key)
            if held.ejection and held.ejection.is_on(now):
                self._ejected[key] = held.ejection.until
            else:
                self._ejected.pop(key, None)
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
                words = after.history[-1].words
                self._announce(watched, each.key, before.state, after.state, after.since, words)
        is_news = bool(changed) and self._suspect()
        return self._judge(self._watched if is_news else changed) or is_news

    def hear(self, others: Mapping[str, Votes]) -> bool:
        """Take in what the other nodes found, all of them; True if that changes a verdict."""
        changed = self._ballots.hear(others) & self._watched.keys()
        is_news = bool(changed) and self._suspect()
        return self._judge(self._watched if is_news else changed) or is_news

    def hear_some(self, news: Mapping[str, Votes | None]) -> bool:
        """The same of some nodes; none: it is gone."""
        others = {**self._ballots.others, **news}
        return self.hear({name: each for name, each in others.items() if each is not None})

    def see(self, reading: Reading) -> bool:
        """Take in what the data path saw of a service; True if that changes a verdict."""
        watched = self._watched.get(reading.service)
        settings = watched and watched.service.health and watched.service.health.passive
        if watched is None or not settings:
            return False
        now = self.clock()
        subjects = [each for each in watched.backends if (each.service, each.name) in self._records]
        records = {each.name: self._records[each.service, each.name] for each in subjects}
        held = {name: each.ejection for name, each in records.items() if each.ejection}
        usable = {
            each.name
            for each in watched.backends
            if each.takes_flows and not self._is_out((each.service, each.name))
        }
        ejected = self._ejections.read(reading, subjects, held, usable, settings, now)
        is_news = bool(ejected)
        for name, record in records.items():
            key = reading.service, name
            is_seen = key in watched.seen
            if (ejection := ejected.get(name)) is not None:
                self._records[key] = core.eject(record, ejection, is_checked=not is_seen)
                self._ejected[key] = ejection.until
                self._announce(watched, key, record.state, EJECTED, now, ejection.words)
            elif is_seen and record.state is State.UNKNOWN and self._ejections.is_good(key):
                self._records[key] = core.seen_good(record, now)
                is_news = True
            else:
                continue
            self._touched.add(key)
            self._save_at = min(self._save_at, now + SAVE_SECONDS)
        if not is_news:
            return False
        self._judge(self._watched if self._suspect() else {reading.service})
        return True

    def _is_out(self, key: Key) -> bool:
        agreed = self._agreed(key)
        return agreed is not None and agreed.state is State.UNHEALTHY

    def _suspect(self) -> bool:
        now = self.clock()
        return self._ballots.suspect({key: core.found(each, now) for key, each in self._records.items()})

    def _announce(
        self, watched: Watched, key: Key, before: str, after: str, at: float, words: str
    ) -> None:
        [admin] = [each.admin for each in watched.backends if each.name == key[1]]
        told = Transition(*key, self._records[key].address, before, after, at, words, admin)
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
        over = [key for key, until in self._ejected.items() if until <= now]
        for key in over:
            del self._ejected[key]
            self._touched.add(key)
            watched, state = self._watched[key[0]], self._records[key].state
            self._announce(watched, key, EJECTED, state, now, "its time is over: it is tried again")
        if over and self._suspect():
            return self._judge(self._watched)
        due = {name for name, each in self.verdicts.items() if each.until <= now}
        return self._judge(due | {name for name, _ in over})

    def clock_was_set(self, seconds: float) -> bool:
        """The clock jumped ahead so far, or back: what waits for a time waits no longer for that, and no
        shorter. True if that changes a verdict."""
        self._records = {key: core.shifted(each, seconds) for key, each in self._records.items()}
        self._ejected = {key: until + seconds for key, until in self._ejected.items()}
        self._touched |= self._records.keys()
        self._save_at = min(self._save_at + seconds, self.clock() + SAVE_SECONDS)
        return self._judge(self._watched)

    def fallen(self) -> set[Key]:
        """Who got unhealthy, as agreed, since this was asked last."""
        found, self._fallen = self._fallen, set()
        return found

    @property
    def due(self) -> float:
        """When tick() has something to do, in Unix seconds."""
        ends = (each.until for each in self.verdicts.values())
        return min((self._save_at, *ends, *self._ejected.values()))

    def _agreed(self, key: Key) -> Record | None:
        own = self._records.get(key)
        return self._ballots.agreed(key, core.found(own, self.clock()) if own else None)

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
                self.panicked[name, pool] += 1
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
            ejection=EjectionReport(**record.ejection._asdict())
            if record.ejection and key in self._ejected
            else None,
        )

    def problems(self, node: str) -> list[Problem]:
        """What people should know without looking for it."""
        found = [ailments.suspect(node)] if self._ballots.is_suspect else []
        for name, verdict in sorted(self.verdicts.items()):
            health = self._watched[name].service.health
            threshold = health.panic if health else 0
            found += [ailments.panic(name, pool, threshold) for pool in verdict.panics]
        for name, spared in sorted(self._ejections.spared.items()):
            found += [ailments.spared(name, *each) for each in sorted(spared.items())]
        return found

    def lateness(self, node: str) -> list[Problem]:
        """A problem if checks begin late. Sorts all samples: not with every report."""
        late = self.prober.lateness(99)
        return [ailments.late(node, late)] if late > LATE_SECONDS else []

    # -- over a restart ------------------------------------------------------------------------

    def load(self) -> None:
        """Read what an earlier process knew."""
        self._remembered = memory.load(self.settings.memory, self.clock())

    def save(self) -> None:
        """Write what is known."""
        self._save_at = math.inf
        old = self.clock() - FORGET_SECONDS
        known = {
            name: each
            for name, each in self._remembered.items()
            if max(each.checked or 0, each.added) > old
        }
        known |= {"/".join(key): each for key, each in self._records.items()}
        memory.save(self.settings.memory, known)


def _is_same(before: BackendHealth, after: BackendHealth) -> bool:
    """Apart from a latency that is about the same."""
    if before == after:
        return True
    if before.model_copy(update={"latency": after.latency}) != after:
        return False
    low, high = sorted((before.latency or 0.0, after.latency or 0.0))
    return high <= max(low * SAME_FACTOR, low + SAME_SECONDS)
