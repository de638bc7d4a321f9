"""Looks at rollouts that are under way: reads what the nodes' kernels saw, asks outside, and writes what
the analysis says of it into the rollout's document.

What is measured outside may take a minute, so it is asked in threads; the rollouts go on meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from lb.analysis.measure import Context, measure
from lb.core import looks
from lb.core.looks import FIRST_SECONDS
from lb.core.rollout import moved
from lb.model import keys
from lb.model.analysis import Analysis, Metric
from lb.model.evidence import Measurement
from lb.model.flows import FIGURES, FlowReport
from lb.model.rollout import Phase, Rollout, RolloutEvidence
from lb.store import rollouts as stored
from lb.store.base import Compare, Put, Store
from lb.store.rollouts import Found, Sight

log = logging.getLogger("lbd")

THREADS = 8
PENDING_SECONDS = 0.2  # between two looks whether an answer has come
OBSERVED_SECONDS = 2.0  # that a look waits for metrics which have no say

Which = tuple[str, int, int]  # look: rollout, step, number


@dataclass(frozen=True)
class _Asked:
    """What is measured outside for one look."""

    which: Which
    since: float  # Unix seconds
    answers: Mapping[str, Future[Measurement]]  # by metric


@dataclass
class Analyst:
    """Of the node that runs the rollouts."""

    store: Store
    exec_dir: Path  # of the programs that may be asked
    _kept: dict[str, tuple[RolloutEvidence | None, int]] = field(default_factory=dict)
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _owed: dict[tuple[str, str], Future[Measurement]] = field(default_factory=dict)
    _threads: ThreadPoolExecutor | None = None

    def forget(self) -> None:
        """Somebody else may run them from now on."""
        self._kept.clear()

    def on_time(self, service: str, now: float, jump: float) -> None:
        """As lb/core/rollout.py's, for what this rollout is judged by; the next look writes it."""
        kept, version = self._evidence(service)
        if kept is not None and (since := moved(kept.since, now, jump)) != kept.since:
            self._kept[service] = kept.model_copy(update={"since": since}), version

    def due(self, rollout: Rollout, now: float) -> float:
        """When look() has something to do, in Unix seconds."""
        if rollout.service in self._asked:
            return now + PENDING_SECONDS
        return max(looks.next_look(rollout, self._evidence(rollout.service)[0]), now + PENDING_SECONDS)

    def look(self, found: Found, seen: Sight, now: float, lock: Compare) -> Found:
        """Look if it is time to; returns the rollout after it. Raises ConflictError if somebody else
        wrote one of the documents, StoreUnavailable."""
        rollout = found.rollout
        service, analysis = rollout.service, rollout.analysis
        kept, version = self._evidence(service)
        if now < looks.next_look(rollout, kept):
            self._asked.pop(service, None)
            return found
        if kept is None or looks.is_new(rollout, kept):
            reading = self._reading(service)
            waits = rollout.status.phase is Phase.BAKING or now < rollout.status.begun + FIRST_SECONDS
            if not reading and waits:
                return found  # nodes have only begun to observe it
            after = looks.begun(rollout, kept, reading, now)
            put = Put(keys.evidence(service), after.model_dump_json())
            revision = self.store.commit([put], [Compare(put.key, version), lock])
            self._kept[service] = after, revision
            return found
        if analysis is None:
            if seen.view.service is None:
                return found
            reading = self._reading(service)
            told = looks.chosen(rollout, seen.view.service, kept, reading, seen.view.backends)
            return stored.replace(self.store, found, told, lock)
        measured = self._measured(rollout, analysis, kept, seen, now)
        if measured is None:
            return found  # answers are awaited
        told, after = looks.looked(
            rollout, analysis, kept, self._reading(service), seen.view.backends, measured, now
        )
        puts = [
            Put(keys.evidence(service), after.model_dump_json()),
            Put(keys.rollout(service), told.model_dump_json()),
        ]
        compares = [Compare(puts[0].key, version), Compare(puts[1].key, found.version), lock]
        revision = self.store.commit(puts, compares)
        self._kept[service] = after, revision
        log.info("rollout %s: step %d: %s", service, told.status.step, told.status.judged)
        return Found(told, revision)

    def _evidence(self, service: str) -> tuple[RolloutEvidence | None, int]:
        if service not in self._kept:
            item = self.store.get(keys.evidence(service))
            kept = None
            if item is not None:
                try:
                    kept = RolloutEvidence.model_validate_json(item.value)
                except ValidationError as error:  # of another version: begin anew
                    log.warning("rollout %s: what it was judged by can't be read: %s", service, error)
                if kept is not None and kept.figures != FIGURES:
                    log.warning("rollout %s: it was judged by other figures: begun anew", service)
                    kept = None
            self._kept[service] = kept, item.mod_revision if item else 0
        return self._kept[service]

    def _reading(self, service: str) -> dict[str, FlowReport]:
        found = {}
        for item in self.store.read(keys.observed(service, "")).items:
            try:
                found[item.key.rpartition("/")[2]] = FlowReport.model_validate_json(item.value)
            except ValidationError:
                continue  # as if it had not reported
        return found

    def _measured(
        self, rollout: Rollout, analysis: Analysis, kept: RolloutEvidence, seen: Sight, now: float
    ) -> Mapping[str, Measurement] | None:
        """The figures from outside; None while they are awaited."""
        if not analysis.outside:
            return {}
        which = rollout.id, rollout.status.step, kept.looks
        asked = self._asked.get(rollout.service)
        if asked is None or asked.which != which:
            seconds = now - max(kept.since, rollout.status.looked)
            context = _context(rollout, seen, seconds, self.exec_dir)
            answers = {each.name: self._ask(each, context) for each in analysis.outside}
            asked = self._asked[rollout.service] = _Asked(which, now, answers)
        awaited = [each for each in analysis.outside if not asked.answers[each.name].done()]
        patient = asked.since <= now < asked.since + OBSERVED_SECONDS  # unless the clock was set back
        if any(not each.observe or patient for each in awaited):
            return None
        del self._asked[rollout.service]
        late = Measurement(error="no answer yet")
        return {name: each.result() if each.done() else late for name, each in asked.answers.items()}

    def _ask(self, metric: Metric, context: Context) -> Future[Measurement]:
        """A metric without a say is not asked again while it owes an answer: threads are few."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="measure")
        at = context.service, metric.name
        held = self._owed.pop(at, None)
        if held is not None and not held.done():
            answer = held
        else:
            answer = self._threads.submit(measure, metric, context)
        if metric.observe:
            self._owed[at] = answer
        return answer


def _context(rollout: Rollout, seen: Sight, seconds: float, exec_dir: Path) -> Context:
    before = rollout.status.before or {}
    stable, canary = looks.sides(rollout, seen.view.backends)
    return Context(
        service=rollout.service,
        stable=max(before, key=lambda pool: before[pool], default=""),
        canary=rollout.spec.pool,
        stable_backends=tuple(stable),
        canary_backends=tuple(canary),
        step=rollout.status.step - 1,
        share=rollout.spec.steps[rollout.status.step - 1],
        seconds=seconds,
        exec_dir=exec_dir,
    )
