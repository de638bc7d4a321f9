"""Passive detection: what counts as failed, who is ejected, for how long, and who is spared."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lb.core.passive import (
    Ejection,
    Outcome,
    Seen,
    Track,
    allowed,
    complaint,
    difference,
    forget,
    judge,
    observe,
    still_counted,
)
from lb.model.flows import FlowTotals
from lb.model.health import Passive
from lb.model.objects import Service

USUAL = Passive()
BAD = Track("e", FlowTotals(), (Seen(100.0, 0, 30),), row=30)
FINE = Track("e", FlowTotals(), (Seen(100.0, 30, 0),))


def totals(**figures: Any) -> FlowTotals:
    return FlowTotals(**figures)


@pytest.mark.parametrize(
    ("figures", "good", "failed"),
    [
        ({"opened": 5, "established": 5, "requests": 5, "first_byte": {3: 5}}, 5, 0),
        ({"opened": 5, "refused": 5}, 0, 5),
        ({"opened": 5, "unanswered": 5}, 0, 5),
        # Accepts, and resets before it has answered anything.
        ({"established": 5, "resets_by_server": 5}, 0, 5),
        # Its kernel accepts, but the program is frozen.
        ({"established": 5, "requests": 5, "unserved": 5}, 0, 5),
        # Long-lived connections: nothing is opened, but requests are answered.
        ({"requests": 50, "first_byte": {3: 20, 4: 29}, "unserved": 1}, 49, 1),
        # A client that goes away, or sends data again, tells nothing of the server.
        ({"established": 3, "resets_by_client": 3, "retransmits_by_client": 9}, 3, 0),
    ],
)
def test_what_is_good_and_what_failed(figures: dict[str, Any], good: int, failed: int) -> None:
    assert difference(totals(), totals(**figures), USUAL) == Outcome(good, failed)


def test_resets_need_not_count() -> None:
    after = totals(established=5, resets_by_server=5, first_byte={3: 5})
    assert difference(totals(), after, Passive(resets=False)) == Outcome(5, 0)


def test_totals_that_went_back_or_began_anew_are_where_counting_begins() -> None:
    before = observe(Track(), totals(refused=9), "a", USUAL, 1.0)
    assert before == Track("a", totals(refused=9))
    for epoch, after in (("a", totals(refused=3)), ("b", totals(refused=99))):
        assert observe(before, after, epoch, USUAL, 2.0) == Track(epoch, after)
    assert observe(before, totals(refused=12), "a", USUAL, 2.0).row == 3


def test_in_a_row_means_none_was_good_between() -> None:
    track = observe(Track(), totals(), "a", USUAL, 0.0)
    track = observe(track, totals(refused=3), "a", USUAL, 1.0)
    track = observe(track, totals(refused=3), "a", USUAL, 2.0)  # nobody came
    assert track.row == 3
    assert complaint(track, USUAL) is None
    assert "5 connections or requests in a row" in str(
        complaint(observe(track, totals(refused=5), "a", USUAL, 3.0), USUAL)
    )
    mixed = observe(track, totals(refused=9, established=1), "a", USUAL, 3.0)
    assert mixed.row == 0
    assert complaint(mixed, USUAL) is None


def test_the_ratio_needs_enough_to_go_by_and_looks_at_the_window_only() -> None:
    settings = Passive(failures=0, ratio=25, minimum=20, window=10)
    track = observe(Track(), totals(), "a", settings, 0.0)
    track = observe(track, totals(established=14, refused=5), "a", settings, 1.0)
    assert complaint(track, settings) is None  # 19 of them
    at_limit = observe(track, totals(established=15, refused=5), "a", settings, 2.0)
    assert complaint(at_limit, settings) == "5 of 20 connections and requests failed in 10 s"
    below = observe(track, totals(established=16, refused=5), "a", settings, 2.0)
    assert complaint(below, settings) is None
    assert observe(at_limit, totals(established=15, refused=5), "a", settings, 20.0).sums == (0, 0)


def test_how_many_of_a_pool_may_be_ejected() -> None:
    """Exactly: the table of lb/core/passive.py and of docs/howto/health-checks.md."""
    sizes = (1, 2, 3, 4, 10)
    assert [allowed(n, 10) for n in sizes] == [0, 1, 1, 1, 1]
    assert [allowed(n, 50) for n in sizes] == [0, 1, 1, 2, 5]
    assert [allowed(n, 100) for n in sizes] == [0, 1, 2, 3, 9]
    assert [allowed(n, 0) for n in sizes] == [0] * 5
    assert allowed(100, 29) == 29


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_small_pools_of_which_all_fail(size: int) -> None:
    pool = {f"b{n}": BAD for n in range(size)}
    judged = judge(pool, {}, set(pool), Passive(share=100), 100.0)
    assert len(judged.ejected) == size - 1
    assert judged.spared.keys() == {f"b{size - 1}"}  # the last by name: all are as bad


def test_the_last_one_that_takes_flows_stays() -> None:
    """Whatever the share allows: the others are unhealthy, or ejected already."""
    pool = {"b1": FINE, "b2": BAD, "b3": FINE}
    assert judge(pool, {}, {"b2"}, USUAL, 100.0).ejected == {}
    held = {name: Ejection(90.0, 120.0, 1, "") for name in ("b1", "b3")}
    everything = Passive(share=100)
    assert judge(pool, held, set(pool), everything, 100.0).ejected == {}
    assert judge(pool, held, set(pool), everything, 100.0).spared.keys() == {"b2"}
    # One that is unhealthy anyway can be ejected, too: it takes nothing from anybody.
    assert judge(pool, {}, {"b1", "b3"}, USUAL, 100.0).ejected.keys() == {"b2"}


def test_the_worst_go_first() -> None:
    def bad(good: int, failed: int) -> Track:
        return Track("e", None, (Seen(100.0, good, failed),))

    pool = {"b1": bad(10, 15), "b2": bad(0, 30), "b3": bad(0, 40), "b4": bad(30, 0)}
    judged = judge(pool, {}, set(pool), USUAL, 100.0)
    assert list(judged.ejected) == ["b3", "b2"]
    assert judged.spared.keys() == {"b1"}


def test_an_ejection_is_longer_each_time_and_shorter_again() -> None:
    settings = Passive(base=30, maximum=100)
    pool, usable = {"b1": BAD, "b2": FINE}, {"b1", "b2"}
    last: dict[str, Ejection] = {}
    lengths, now = [], 1000.0
    for _ in range(5):
        last = dict(judge(pool, last, usable, settings, now).ejected)
        lengths.append(last["b1"].until - now)
        assert judge(pool, last, usable, settings, now + 1).ejected == {}  # it is out already
        now = last["b1"].until
    assert lengths == [30, 60, 90, 100, 100]
    # Each base time that it is in use without another one is forgotten.
    until = last["b1"].until
    assert [still_counted(last["b1"], settings, until + 30 * n + 1) for n in range(7)] == [
        5, 4, 3, 2, 1, 0, 0,
    ]  # fmt: skip
    again = judge(pool, last, usable, settings, until + 3 * 30).ejected["b1"]
    assert (again.times, again.until - again.since) == (3, 90)


def test_after_an_ejection_it_begins_anew() -> None:
    track = forget(BAD)
    assert complaint(track, USUAL) is None
    assert (track.epoch, track.totals) == (BAD.epoch, BAD.totals)


names = st.sampled_from(["b1", "b2", "b3", "b4", "b5"])
tracks = st.builds(
    lambda good, failed: Track("e", None, (Seen(0.0, good, failed),), 0 if good else failed),
    st.integers(0, 50),
    st.integers(0, 50),
)


@given(
    st.dictionaries(names, tracks, min_size=1),
    st.sets(names),
    st.sets(names),
    st.floats(0, 100),
)
def test_the_cap_is_never_exceeded(
    pool: dict[str, Track], out: set[str], usable: set[str], share: float
) -> None:
    settings = Passive(share=share)
    held = {name: Ejection(-1.0, 9.0, 1, "") for name in out}
    before = out & pool.keys()
    judged = judge(pool, held, usable, settings, 0.0)
    ejected = judged.ejected.keys()
    assert not ejected & out
    assert not ejected & judged.spared.keys()
    if ejected:
        assert len(before | ejected) <= allowed(len(pool), share)
        assert (usable & pool.keys()) - before - ejected


@pytest.mark.parametrize(
    ("health", "words"),
    [
        ({"check": {"kind": "none"}}, "leaves nothing to go by"),
        ({"passive": {"failures": 0, "ratio": 0}}, "no rule that ejects"),
        ({"passive": {"base": 60, "maximum": 30}}, "maximum 30 is below base 60"),
    ],
)
def test_what_is_refused(health: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Service(name="web", vip="198.51.100.1", port=80, mode="nat", health=health)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ({"mode": "dsr"}, "in mode dsr answers don't come by the node"),
        ({"mode": "ipip"}, "in mode ipip answers"),
        ({"mode": "gue"}, "in mode gue answers"),
        ({"mode": "nat", "protocol": "udp"}, "nobody can tell what fails"),
    ],
)
def test_where_nothing_can_be_seen(service: dict[str, Any], words: str) -> None:
    health = {"check": {"kind": "none"}, "passive": {}}
    with pytest.raises(ValidationError, match=words):
        Service(name="web", vip="198.51.100.1", port=80, health=health, **service)  # type: ignore[arg-type]
    allowed_one = {**service, "mode": "fullnat", "protocol": "tcp"}
    Service(name="web", vip="198.51.100.1", port=80, health=health, **allowed_one)  # type: ignore[arg-type]
