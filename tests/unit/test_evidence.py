"""From reported totals to windows: differences, resets, and what is remembered over looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core.evidence import MOST_BACKENDS, OTHERS, Lost, collect, difference, merged, window
from lb.core.measures import pooled
from lb.model.analysis import Analysis, Metric, Prometheus
from lb.model.evidence import Evidence, Measurement, Window
from lb.model.flows import FlowReport, FlowTotals, Vantage

PROMETHEUS = Prometheus(url="http://127.0.0.1:1", query="up")


def report(node: str, at: float, epoch: str = "one", vantage: Vantage = Vantage.NODE, **backends):
    return FlowReport(
        service="web", node=node, vantage=vantage, epoch=epoch, at=at,
        backends={name: FlowTotals(opened=opened) for name, opened in backends.items()},
    )  # fmt: skip


def between(before, after, stable=("s",), canary=("c",), **kwargs):
    return window(
        {each.node: each for each in before}, {each.node: each for each in after}, stable, canary, 0,
        **kwargs,
    )  # fmt: skip


counts = st.integers(0, 10**12)
buckets = st.dictionaries(st.integers(0, 199), st.integers(1, 10**9), max_size=5)
some_totals = st.builds(
    FlowTotals,
    opened=counts,
    unserved=counts,
    http=st.dictionaries(st.sampled_from(["2xx", "5xx"]), st.integers(1, 10**9)),
    first_byte=buckets,
)


@given(some_totals, some_totals)
def test_a_difference_is_what_was_added(before: FlowTotals, added: FlowTotals) -> None:
    found = difference(before, pooled([before, added]))
    assert found is not None
    assert pooled([before, found]) == pooled([before, added])
    assert FlowTotals.model_validate(found.model_dump()) == found


@pytest.mark.parametrize(
    "after",
    [
        {"opened": 9, "http": {"5xx": 1}, "first_byte": {3: 2}},
        {"opened": 10, "http": {}, "first_byte": {3: 2}},
        {"opened": 10, "http": {"5xx": 1}, "first_byte": {3: 1}},
        {"opened": 10, "http": {"5xx": 1}, "first_byte": {4: 9}},
    ],
)
def test_a_figure_that_fell_is_a_reset(after) -> None:
    before = FlowTotals(opened=10, http={"5xx": 1}, first_byte={3: 2})
    assert difference(before, before) == FlowTotals()
    assert difference(before, FlowTotals(**after)) is None


def test_a_window_sums_what_all_nodes_saw() -> None:
    before = [report("n1", 10, s=5, c=1), report("n2", 10, s=7, c=0)]
    after = [report("n1", 20, s=15, c=3), report("n2", 21, s=17, c=1), report("n3", 20, s=99, c=99)]
    found = between(before, after)
    assert isinstance(found, Window)
    assert found.seconds == 11
    # n3 came in between: what it counted since when, nobody knows.
    assert found.stable["s"].opened == 20
    assert found.canary["c"].opened == 3


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ([report("n1", 20, epoch="two", s=50, c=50)], "the counters of n1 began anew"),
        ([report("n1", 20, s=4, c=3)], "a counter of s on n1 fell"),
        ([report("n1", 10, s=5, c=1)], "n1 has reported nothing new"),
        ([report("n1", 9, s=5, c=1)], "the clock of n1 was set back"),
        ([report("n2", 20, s=50, c=50)], "n1 reports no more"),
        ([], "nobody reports this service's flows"),
    ],
)
def test_what_can_not_be_compared_is_lost(after, why: str) -> None:
    found = between([report("n1", 10, s=5, c=1)], after)
    assert isinstance(found, Lost)
    assert found.why.startswith(why)


def test_without_an_earlier_reading_there_is_no_window() -> None:
    assert isinstance(between([], [report("n1", 20, s=5, c=1)]), Lost)


def test_nothing_is_counted_twice_where_nodes_and_backends_report() -> None:
    before = [report("n1", 10, s=0, c=0), report("s", 10, vantage=Vantage.BACKEND, s=0)]
    after = [report("n1", 20, s=5, c=1), report("s", 20, vantage=Vantage.BACKEND, s=4)]
    found = between(before, after)
    assert isinstance(found, Window)
    assert found.stable["s"].opened == 5
    found = between(before, after, vantage=Vantage.BACKEND)
    assert isinstance(found, Window)
    assert found.stable["s"].opened == 4


def test_evidence_stays_small() -> None:
    pool = {f"b{i:03}": FlowTotals(opened=i) for i in range(100)}
    one = merged([Window(step=0, stable=pool, canary={}), Window(step=0, stable=pool, canary={})])
    two = merged([one, Window(step=0, stable=pool, canary={})])
    assert len(two.stable) == MOST_BACKENDS + 1
    assert two.stable["b007"].opened == 21
    assert sum(each.opened for each in two.stable.values()) == 3 * sum(range(100))
    assert OTHERS in two.stable


def test_windows_of_a_step_are_one_and_a_takeover_goes_on_with_them() -> None:
    analysis = Analysis(metrics=(Metric(name="errors"),))
    evidence = Evidence()
    for step, opened in ((0, 1), (0, 2), (1, 4)):
        found = Window(step=step, seconds=5, canary={"c": FlowTotals(opened=opened)})
        evidence = collect(evidence, analysis, found, {})
        evidence = Evidence.model_validate_json(evidence.model_dump_json())
    assert [each.canary["c"].opened for each in evidence.steps] == [3, 4]
    assert evidence.latest is not None
    assert evidence.latest.canary["c"].opened == 4
    lost = collect(evidence, analysis, Lost("why"), {})
    assert (lost.missed, lost.why_missed, lost.latest) == (1, "why", None)
    assert lost.steps == evidence.steps
    assert collect(lost, analysis, found, {}).missed == 0


def test_errors_and_breaches_of_the_outside_are_counted_in_a_row() -> None:
    metric = Metric(name="q", prometheus=PROMETHEUS, margin=0.1)
    analysis = Analysis(metrics=(metric,))
    evidence = Evidence()
    seen = []
    for now in (
        Measurement(canary=1.0, stable=1.0),
        Measurement(canary=1.2, stable=1.0),
        Measurement(error="away"),  # neither a breach nor the end of one
        Measurement(canary=1.2),  # all traffic is the canary's: against the stable pool's last figure
        Measurement(canary=1.0),
    ):
        evidence = collect(evidence, analysis, Lost("-"), {"q": now})
        seen.append((evidence.outside["q"].errors, evidence.outside["q"].breaches))
    assert seen == [(0, 0), (0, 1), (1, 1), (0, 2), (0, 0)]


def test_a_comparison_without_the_other_side_is_an_error() -> None:
    analysis = Analysis(metrics=(Metric(name="q", prometheus=PROMETHEUS),))
    for now in (Measurement(canary=1.0), None):
        found = collect(Evidence(), analysis, Lost("-"), {"q": now} if now else {}).outside["q"]
        assert found.errors == 1
        assert found.last.error
