"""The health state machine against a model that remembers every result and counts anew each time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lb.core import health as core
from lb.core.health import Member, Record, Result, State
from lb.model.health import Health
from lb.model.objects import Protocol

healths = st.builds(
    Health,
    rise=st.integers(1, 4),
    fall=st.integers(1, 4),
    grace=st.sampled_from([0, 0, 5, 30]),
    flaps=st.integers(0, 3),
    flap_window=st.sampled_from([1, 20, 200]),
    flap_hold=st.sampled_from([1, 5, 50]),
    slow_start=st.sampled_from([0, 1, 7, 60]),
    initial=st.sampled_from(["down", "up"]),
)
# Quarter seconds are exact, so that both sides compare the same times.
series = st.lists(st.tuples(st.booleans(), st.integers(1, 40).map(lambda n: n / 4)), max_size=40)


@dataclass
class Naive:
    """All results, in order; nothing is counted on the way."""

    health: Health
    added: float
    state: State = State.UNKNOWN
    results: list[tuple[float, bool]] = field(default_factory=list)
    falls: list[float] = field(default_factory=list)

    def take(self, at: float, passed: bool) -> None:
        health = self.health
        excused = not passed and self.state is State.UNKNOWN and at < self.added + health.grace
        if excused:
            return
        self.results.append((at, passed))
        last = [each for _, each in self.results]
        if last[-health.fall :] == [False] * health.fall:
            if self.state is not State.UNHEALTHY:
                self.falls.append(at)
            self.state = State.UNHEALTHY
        elif (self.state is State.UNKNOWN and passed) or (
            self.state is State.UNHEALTHY
            and last[-health.rise :] == [True] * health.rise
            and not self._held(at)
        ):
            self.state = State.HEALTHY

    def _held(self, at: float) -> bool:
        recent = [each for each in self.falls if at - each < self.health.flap_window]
        if not self.health.flaps or len(recent) < self.health.flaps:
            return False
        failed = max(index for index, (_, passed) in enumerate(self.results) if not passed)
        return at - self.results[failed + 1][0] < self.health.flap_hold


@given(healths, series)
def test_states_are_those_of_the_naive_model(health: Health, results: list[tuple[bool, float]]) -> None:
    record, naive, now = core.new("a", health, 100.0, in_use=False), Naive(health, 100.0), 100.0
    for passed, gap in results:
        now += gap
        before = record.state
        record = core.step(record, Result(passed, "words", 0.1), health, now)
        naive.take(now, passed)
        assert record.state is naive.state
        assert (record.since == now) == (record.state is not before)


@given(healths, series)
def test_records_survive_a_file(health: Health, results: list[tuple[bool, float]]) -> None:
    adapter = TypeAdapter(Record)
    record, now = core.new("a", health, 100.0, in_use=True), 100.0
    for passed, gap in results:
        now += gap
        record = core.step(record, Result(passed, "words", 0.1), health, now)
    assert adapter.validate_python(json.loads(adapter.dump_json(record))) == record


@given(
    st.lists(
        st.tuples(healths, series, st.booleans(), st.booleans(), st.sampled_from(["a", "b"])), max_size=8
    ),
    st.sampled_from([0, 30, 50, 100]),
    st.sampled_from(list(Protocol)),
)
def test_what_every_verdict_keeps_to(
    drawn: list[tuple[Health, list[tuple[bool, float]], bool, bool, str]],
    panic: float,
    protocol: Protocol,
) -> None:
    now, members = 1000.0, []
    for number, (health, results, in_use, takes, pool) in enumerate(drawn):
        record, at = core.new("a", health, 100.0, in_use=in_use), 100.0
        for passed, gap in results:
            at += gap
            record = core.step(record, Result(passed, "words", 0.1), health, at)
        members.append(Member(str(number), pool, takes, health, record))
    verdict = core.judge(members, Health(panic=panic), protocol, now)
    assert verdict == core.judge(list(reversed(members)), Health(panic=panic), protocol, now)
    assert all(0 <= share < 1 for share in verdict.fitness.values())
    assert verdict.until > now
    for member in members:
        share = verdict.fitness.get(member.name, 1.0)
        assert member.record
        match member.record.state:
            case State.UNKNOWN:
                assert (share > 0) == member.record.admitted
            case State.UNHEALTHY:
                assert (share > 0) == (member.pool in verdict.panics)
                assert not (share > 0 and member.name in verdict.resets)
            case State.HEALTHY:
                assert share > 0
                assert member.name not in verdict.resets
    for pool in ("a", "b"):
        taking = [m for m in members if m.pool == pool and m.takes]
        useful = [m for m in taking if verdict.fitness.get(m.name, 1.0) > 0]
        # Slow start is relative: the fittest of a pool is whole.
        assert not useful or any(m.name not in verdict.fitness for m in useful)
