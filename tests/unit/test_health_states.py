"""The health state machine: every transition, and what a person sees of it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest

from lb.core import health as core
from lb.core.health import TABLE, Event, Member, Record, Result, State, Verdict, judge, ramp, step
from lb.core.passive import Ejection
from lb.model.health import Health
from lb.model.objects import Protocol

PASS = Result(True, "answered", 0.001)
FAIL = Result(False, "connection refused", 0.002)


def fresh(health: Health, *, in_use: bool = False) -> Record:
    return core.new("203.0.113.11", health, 0.0, in_use=in_use)


def run(health: Health, results: str, record: Record | None = None, start: float = 1.0) -> Record:
    """`results`: + and -, one a second."""
    record = record or fresh(health)
    for second, sign in enumerate(results):
        record = step(record, PASS if sign == "+" else FAIL, health, start + second)
    return record


def states(health: Health, results: str) -> str:
    """The first letter (after "un") of the state after each result."""
    letters = {State.UNKNOWN: "?", State.HEALTHY: "h", State.UNHEALTHY: "u"}
    return "".join(letters[run(health, results[: n + 1]).state] for n in range(len(results)))


def test_the_table_is_complete() -> None:
    """What it leaves out changes nothing; each state but the first can be left and reached."""
    left_out = set(product(State, Event)) - TABLE.keys()
    assert left_out == {
        (State.UNKNOWN, Event.ROSE),
        (State.HEALTHY, Event.PASSED),
        (State.HEALTHY, Event.ROSE),
        (State.UNHEALTHY, Event.PASSED),
        (State.UNHEALTHY, Event.FELL),
    }
    assert set(TABLE.values()) == {State.HEALTHY, State.UNHEALTHY}


@pytest.mark.parametrize(
    ("rise", "fall", "results", "expected"),
    [
        (2, 3, "+", "h"),
        (2, 3, "--+", "??h"),
        (2, 3, "---", "??u"),
        (2, 3, "+---", "hhhu"),
        (2, 3, "+--+--+---", "hhhhhhhhhu"),  # in a row, not in sum
        (2, 3, "---+-+-++", "??uuuuuuh"),
        (1, 1, "+-+-", "huhu"),
        (3, 1, "-+++", "uuuh"),
    ],
)
def test_rise_and_fall_count_consecutive_results(
    rise: int, fall: int, results: str, expected: str
) -> None:
    assert states(Health(rise=rise, fall=fall), results) == expected


def test_every_short_series_of_results_ends_as_a_naive_reading_says() -> None:
    for rise, fall in product((1, 2, 3), repeat=2):
        health = Health(rise=rise, fall=fall)
        for length in range(1, 9):
            for series in product("+-", repeat=length):
                assert run(health, "".join(series)).state == naive("".join(series), rise, fall)


def naive(results: str, rise: int, fall: int) -> State:
    state = State.UNKNOWN
    for end in range(1, len(results) + 1):
        seen = results[:end]
        if seen.endswith("-" * fall):
            state = State.UNHEALTHY
        elif seen.endswith("+" * rise) or (state is State.UNKNOWN and seen.endswith("+")):
            state = State.HEALTHY
    return state


def test_failures_within_the_grace_do_not_count() -> None:
    health = Health(fall=2, grace=10)
    assert run(health, "-" * 9).state is State.UNKNOWN
    assert run(health, "-" * 9).error == "connection refused"
    assert run(health, "-" * 10).state is State.UNKNOWN  # one failure after it
    assert run(health, "-" * 11).state is State.UNHEALTHY
    # It ends with the first passed check.
    assert run(health, "+--").state is State.UNHEALTHY


def test_what_a_record_says() -> None:
    health = Health(fall=2, rise=2)
    record = run(health, "+--")
    assert (record.since, record.error, record.failed_at) == (3.0, "connection refused", 3.0)
    assert [(each.at, each.state) for each in record.history] == [
        (1.0, State.HEALTHY),
        (3.0, State.UNHEALTHY),
    ]
    back = run(health, "++", record, start=4.0)
    assert (back.state, back.since, back.latency) == (State.HEALTHY, 5.0, PASS.latency)
    assert back.error == "connection refused"  # the last one, with its time
    assert len(run(Health(fall=1, rise=1), "+-" * 40).history) == core.HISTORY


def test_flap_damping_holds_who_falls_too_often() -> None:
    health = Health(fall=1, rise=1, flaps=3, flap_window=100, flap_hold=10)
    twice = run(health, "+-+-+")
    assert twice.state is State.HEALTHY
    held = run(health, "-" + "+" * 10, twice, start=6.0)
    assert held.state is State.UNHEALTHY
    assert core.is_damped(held, health, 16.0)
    assert run(health, "+", held, start=17.0).state is State.HEALTHY  # ten seconds after the first pass
    # A failed check begins the hold anew.
    assert run(health, "-+++++++++", held, start=17.0).state is State.UNHEALTHY
    # What fell long ago does not count.
    late = run(health, "-+", twice, start=200.0)
    assert late.state is State.HEALTHY


def test_the_pace_is_fast_while_results_speak_against_the_state() -> None:
    health = Health(interval=4, fast_interval=1, rise=2, fall=2)
    paces = [core.pace(run(health, "++---+++"[:n]), health) for n in range(9)]
    #                  none +  +  -  -  -  +  +  +
    assert paces == [1, 4, 4, 1, 4, 4, 1, 4, 4]
    assert (
        core.pace(fresh(Health(interval=1, fast_interval=3)), Health(interval=1, fast_interval=3)) == 1
    )


@pytest.mark.parametrize("seconds", [-7200.0, 7200.0])  # a multiple of the steps of slow start
def test_a_clock_that_is_set_changes_no_span(seconds: float) -> None:
    health = Health(rise=1, fall=1, flaps=2, flap_window=60, flap_hold=30, slow_start=20)
    settled = core.resumed(run(health, "+"), 1000.0)
    held = run(health, "+-+-+", start=1e6)
    ejected = replace(settled, ejection=Ejection(1e6, 1e6 + 30, 1, "why"))
    pools = [[settled, held], [settled, run(health, "+", start=1e6)], [settled, ejected]]
    for records, after in product(pools, (1, 10, 31, 45)):
        now = 1e6 + after

        def look(by: float, records: list[Record] = records, now: float = now) -> Verdict:
            moved = [core.found(core.shifted(each, by), now + by) for each in records]
            moved = [step(each, PASS, health, now + by) for each in moved]
            members = [member(name, each, health) for name, each in zip("ab", moved, strict=True)]
            return judged(members, health, now + by)

        before, then = look(0.0), look(seconds)
        assert (then.fitness, then.until - seconds) == (before.fitness, before.until)
    assert core.shifted(held, seconds).history[0].at == held.history[0].at + seconds


def test_what_was_written_before_the_clock_was_set_back_is_not_of_the_future() -> None:
    seen = replace(run(Health(rise=1), "-+", start=5000.0), ejection=Ejection(5000.0, 5030.0, 1, "why"))
    held = core.resumed(seen, 1000.0)
    assert (held.checked, held.since, held.state) == (1000.0, 1000.0, State.HEALTHY)
    assert held.ejection == Ejection(999.0, 1029.0, 1, "why")
    assert core.resumed(seen, 6000.0).since == seen.since


def test_a_restart_keeps_what_was_known_but_no_series_spans_it() -> None:
    health = Health(fall=3)
    record = core.resumed(run(health, "+--"), 9.0)
    assert (record.state, record.since) == (State.HEALTHY, 1.0)
    assert run(health, "--", record, start=9.0).state is State.HEALTHY
    assert run(health, "---", record, start=9.0).state is State.UNHEALTHY


# --- who takes how much ---------------------------------------------------------------------------


def member(name: str, record: Record | None, health: Health | None, **more: Any) -> Member:
    return Member(name=name, pool=more.get("pool", "stable"), takes=more.get("takes", True),
                  health=health, record=record)  # fmt: skip


def judged(members: list[Member], health: Health, now: float = 1000.0, tcp: bool = True) -> core.Verdict:
    return judge(members, health, Protocol.TCP if tcp else Protocol.UDP, now)


def pool(health: Health, signs: str, **more: Any) -> list[Member]:
    """Backends a, b, …: + healthy, - unhealthy, ? never asked."""
    series = {"+": "+", "-": "-" * health.fall, "?": ""}
    return [
        member(name, run(health, series[sign]), health, **more)
        for name, sign in zip("abcdefghij", signs, strict=False)
    ]


def test_without_a_check_all_is_as_it_was() -> None:
    assert judge(pool(Health(), "+-?"), None, Protocol.TCP, 0.0) == core.Verdict()
    assert judged([member("a", None, None)], Health()).fitness == {}


def test_no_flow_before_the_first_passed_check() -> None:
    health = Health()
    assert judged(pool(health, "?-+"), health).fitness == {"a": 0.0, "b": 0.0}
    assert judged([member("a", None, health)], health).fitness == {"a": 0.0}


def test_unless_asked_for_or_in_use_already() -> None:
    asked = Health(initial="up")
    assert judged(pool(asked, "?"), asked).fitness == {}
    health = Health()
    used = fresh(health, in_use=True)
    assert judged([member("a", used, health)], health).fitness == {}
    assert judged([member("a", run(health, "---", used), health)], health).fitness == {"a": 0.0}


def test_panic_uses_the_unhealthy_but_never_the_unknown() -> None:
    health = Health(panic=50)
    half = judged(pool(health, "++--"), health)
    assert (half.panics, half.fitness) == ((), {"c": 0.0, "d": 0.0})
    less = judged(pool(health, "+---?"), health)
    assert (less.panics, less.fitness) == (("stable",), {"e": 0.0})
    assert judged(pool(health, "--"), health).panics == ("stable",)
    # At the start nobody is known to be bad.
    assert judged(pool(health, "??"), health).panics == ()
    never = Health()
    assert judged(pool(never, "--"), never).panics == ()


def test_panic_is_about_those_that_people_want_and_of_one_pool() -> None:
    health = Health(panic=50)
    drained = pool(health, "---", takes=False)
    assert judged([*drained, member("x", run(health, "+"), health)], health).panics == ()
    canary = pool(health, "--", pool="canary")
    stable = [member("s", run(health, "+"), health)]
    verdict = judged([*canary, *stable], health)
    assert verdict.panics == ("canary",)
    assert verdict.fitness == {}


def test_established_flows() -> None:
    health = Health()
    assert judged(pool(health, "+-"), health).resets == frozenset()
    assert judged(pool(health, "+-"), health, tcp=False).resets == {"b"}
    reset, keep = Health(established="reset"), Health(established="keep")
    assert judged(pool(reset, "+-"), reset).resets == {"b"}
    assert judged(pool(keep, "+-"), keep, tcp=False).resets == frozenset()
    panicking = Health(established="reset", panic=60)
    assert judged(pool(panicking, "+-"), panicking).resets == frozenset()  # it is used


def test_slow_start_is_linear_and_ends() -> None:
    shares = [ramp(1000.0, 20, 1000.0 + second).share for second in range(25)]
    assert shares[:20] == [pytest.approx((n + 1) / 20) for n in range(20)]
    assert shares[19:] == [1.0] * 6
    assert ramp(1000.0, 0, 1000.0) == (1.0, math.inf)
    assert ramp(1000.0, 20, 900.0).share == 1.0  # the clock was set back
    # Never more often than once a second.
    assert ramp(1000.0, 4, 1000.2) == (0.25, 1001.0)


def test_a_ramp_says_when_it_goes_on() -> None:
    now, seen = 1000.3, []
    while now < math.inf:
        seen.append(ramp(1000.3, 60, now))
        now = seen[-1].until
    assert [each.share for each in seen] == [pytest.approx((n + 1) / 20) for n in range(20)]
    assert all(two.until - one.until == pytest.approx(3) for one, two in pairwise(seen[:-1]))


def test_who_recovers_ramps_up_and_so_does_who_is_new() -> None:
    health = Health(slow_start=20, fall=1, rise=1)
    settled = core.resumed(run(health, "+"), 1000.0)
    back = run(health, "-+", settled, start=999.0)  # healthy again at 1000
    new = run(health, "+", start=1000.0)
    for record in (back, new):
        verdict = judged([member("a", settled, health), member("b", record, health)], health, 1004.0)
        assert verdict.fitness == {"b": pytest.approx(0.25)}
        assert verdict.until == 1005.0


def test_where_all_begin_together_none_is_held_back() -> None:
    health = Health(slow_start=20)
    records = [run(health, "+", start=1000.0 + at) for at in (0.1, 0.5, 0.9)]
    together = [member(name, each, health) for name, each in zip("abc", records, strict=True)]
    for now in (1000.9, 1007.3, 1030.0):
        assert judged(together, health, now).fitness == {}
    # Nor does the one that is drained count as somebody to be compared with.
    old = member("z", core.resumed(run(health, "+"), 1000.0), health, takes=False)
    assert set(judged([*together, old], health, 1001.0).fitness) <= {"z"}


def test_admitted_backends_do_not_ramp() -> None:
    health = Health(slow_start=100)
    used = run(health, "+", fresh(health, in_use=True), start=1000.0)
    old = core.resumed(run(health, "+"), 1000.0)
    assert judged([member("a", used, health), member("b", old, health)], health, 1001.0).fitness == {}
