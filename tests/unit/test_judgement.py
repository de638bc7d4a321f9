"""Verdicts: what passes, fails, is not enough, or could not be measured; and what they say."""

from __future__ import annotations

import pytest

from lb.core.evidence import Lost, collect
from lb.core.histogram import bucket_of
from lb.core.judgement import conclusion, judge
from lb.core.measures import MEASURES, default_analysis, visible
from lb.core.spending import Look, Plan
from lb.model.analysis import Analysis, KernelMetric, Metric, Prometheus
from lb.model.evidence import Evidence, Measurement, Outcome, Verdict, Window
from lb.model.flows import FlowTotals, Vantage
from lb.model.objects import Mode, Protocol

PLAN = Plan((10, 50, 100), 2)
LAST = Look(1, 1)


def http(good: int, bad: int) -> FlowTotals:
    return FlowTotals(opened=good + bad, established=good + bad, http={"2xx": good, "5xx": bad})


def times(*milliseconds_and_counts: tuple[float, int]) -> FlowTotals:
    found: dict[int, int] = {}
    for time, count in milliseconds_and_counts:
        bucket = bucket_of(round(time * 1000))
        found[bucket] = found.get(bucket, 0) + count
    return FlowTotals(first_byte=found)


def evidence(*windows: tuple[int, FlowTotals, FlowTotals]) -> Evidence:
    found = Evidence()
    for step, canary, stable in windows:
        one = Window(step=step, seconds=10, canary={"c": canary}, stable={"s": stable})
        found = collect(found, Analysis(metrics=(Metric(name="errors"),)), one, {})
    return found


def verdict(seen: Evidence, look: Look = LAST, **metric) -> Verdict:
    analysis = Analysis(metrics=(Metric(**{"name": "http_5xx", **metric}),))
    (found,) = judge(analysis, PLAN, look, seen)
    assert found.words.startswith(found.metric + ": ")
    return found


# --- shares ---------------------------------------------------------------------------------------


def test_a_worse_canary_fails_with_all_figures() -> None:
    found = verdict(evidence((1, http(950, 50), http(990, 10))))
    assert found.outcome is Outcome.FAIL
    assert (found.canary, found.stable) == pytest.approx((0.05, 0.01))
    assert found.limit == pytest.approx(0.015)
    assert (found.canary_samples, found.stable_samples) == (1000, 1000)
    assert found.p_value is not None
    assert found.level is not None
    assert found.p_value < found.level < 0.01
    assert "canary 5 % of 1,000 responses, stable 1 % of 1,000, at most 1.5 % would do" in found.words


def test_an_equal_one_passes_and_says_how_sure_that_is() -> None:
    found = verdict(evidence((1, http(990, 10), http(990, 10))))
    assert found.outcome is Outcome.PASS
    assert found.bound == pytest.approx(0.008, abs=0.003)
    assert "worse by at most" in found.words


def test_a_better_one_passes_whatever_the_difference() -> None:
    assert verdict(evidence((1, http(1000, 0), http(500, 500)))).outcome is Outcome.PASS


def test_within_the_margin_no_number_of_samples_fails() -> None:
    seen = evidence((1, http(9_860_000, 140_000), http(9_900_000, 100_000)))
    assert verdict(seen).outcome is Outcome.PASS
    assert verdict(seen, margin=0.001).outcome is Outcome.FAIL


def test_few_samples_are_not_enough_and_never_fail_or_pass() -> None:
    for bad in (0, 9):
        found = verdict(evidence((1, http(9 - bad, bad), http(1000, 0))))
        assert found.outcome is Outcome.NOT_ENOUGH_DATA
        assert "9 responses of the canary" in found.words
    none = verdict(evidence((1, http(0, 0), http(1000, 0))))
    assert (none.canary, none.canary_samples, none.stable) == (None, 0, 0.0)  # 0 % would look good
    assert verdict(evidence((1, http(0, 20), http(1000, 0)))).outcome is Outcome.FAIL
    assert verdict(evidence((1, http(20, 0), http(5, 0)))).outcome is Outcome.NOT_ENOUGH_DATA
    assert verdict(Evidence()).outcome is Outcome.NOT_ENOUGH_DATA


def test_samples_of_earlier_steps_do_not_make_up_for_a_step_without() -> None:
    seen = evidence((0, http(1000, 0), http(1000, 0)), (1, http(3, 0), http(1000, 0)))
    assert verdict(seen).outcome is Outcome.NOT_ENOUGH_DATA


def test_a_handful_of_errors_is_not_enough_to_fail() -> None:
    assert verdict(evidence((1, http(16, 4), http(100_000, 0)))).outcome is Outcome.PASS
    assert verdict(evidence((1, http(15, 5), http(100_000, 0)))).outcome is Outcome.FAIL


def test_a_busy_hour_is_no_difference_between_pools() -> None:
    # Both fail 1 % in the first step and 10 % in the second, where the canary has more of the traffic.
    seen = evidence((0, http(198, 2), http(1782, 18)), (1, http(900, 100), http(900, 100)))
    found = verdict(seen)
    assert found.outcome is Outcome.PASS
    assert found.stable == pytest.approx((200 * 0.01 + 1000 * 0.1) / 1200)


def test_a_slow_decay_is_found_behind_good_hours() -> None:
    seen = evidence(
        (0, http(100_000, 100), http(900_000, 900)),
        (1, http(100_000, 100), http(100_000, 100)),
        (1, http(960, 40), http(999, 1)),
    )
    found = verdict(seen)
    assert found.outcome is Outcome.FAIL
    assert found.view == "look"


# --- the last step --------------------------------------------------------------------------------


def test_at_100_percent_the_canary_is_compared_with_earlier_steps() -> None:
    earlier = (1, http(990, 10), http(990, 10))
    look = Look(2, 1)
    found = verdict(evidence(earlier, (2, http(950, 50), FlowTotals())), look)
    assert (found.outcome, found.view) == (Outcome.FAIL, "earlier")
    assert found.limit == pytest.approx(0.02)  # twice the margin
    found = verdict(evidence(earlier, (2, http(1980, 20), FlowTotals())), look)
    assert found.outcome is Outcome.PASS


def test_blue_green_needs_a_window_from_before() -> None:
    plan, look = Plan((100,), 1), Look(0, 0)
    analysis = Analysis(metrics=(Metric(name="http_5xx"),))
    canary = (0, http(900, 100), FlowTotals())
    (found,) = judge(analysis, plan, look, evidence(canary))
    assert found.outcome is Outcome.NOT_ENOUGH_DATA
    (found,) = judge(analysis, plan, look, evidence((-1, FlowTotals(), http(990, 10)), canary))
    assert found.outcome is Outcome.FAIL


# --- latencies, rates, limits ---------------------------------------------------------------------


def test_a_slower_canary_fails_by_its_quantile() -> None:
    stable = times((10, 900), (20, 80), (40, 20))
    slower = times((10, 850), (20, 50), (40, 100))
    found = verdict(evidence((1, slower, stable)), name="first_byte_p95")
    assert found.outcome is Outcome.FAIL
    assert found.unit == "s"
    assert found.canary == pytest.approx(0.041, abs=0.003)
    assert found.stable == pytest.approx(0.0205, abs=0.002)
    assert "ms of 1,000 answers" in found.words
    assert verdict(evidence((1, stable, stable)), name="first_byte_p95").outcome is Outcome.PASS
    assert verdict(evidence((1, stable, slower)), name="first_byte_p95").outcome is Outcome.PASS


def test_times_that_are_all_in_one_bucket_are_equal_or_not() -> None:
    same = times((10, 500))
    assert verdict(evidence((1, same, same)), name="first_byte_p95").outcome is Outcome.PASS
    slower = verdict(evidence((1, times((13, 500)), same)), name="first_byte_p95")
    assert slower.outcome is Outcome.FAIL


def test_a_tail_alone_is_found_by_the_quantile_that_it_is_in() -> None:
    stable = times((10, 4950), (20, 50))
    tail = times((10, 4800), (80, 200))
    assert verdict(evidence((1, tail, stable)), name="first_byte_p99").outcome is Outcome.FAIL
    assert verdict(evidence((1, tail, stable)), name="first_byte_p50").outcome is Outcome.PASS


def test_handshakes_that_differ_by_what_a_rack_does_are_no_reason() -> None:
    near = FlowTotals(handshake={bucket_of(100): 5000})
    far = FlowTotals(handshake={bucket_of(250): 5000})
    farther = FlowTotals(handshake={bucket_of(400): 5000})
    assert verdict(evidence((1, far, near)), name="handshake_p95").outcome is Outcome.PASS
    assert verdict(evidence((1, farther, near)), name="handshake_p95").outcome is Outcome.FAIL


def test_a_limit_is_for_the_canary_alone_and_knows_of_chance() -> None:
    seen = evidence((1, http(97, 3), FlowTotals()))
    assert verdict(seen, limit=0.02).outcome is Outcome.PASS  # 3 of 100 can be chance
    seen = evidence((1, http(9700, 300), FlowTotals()))
    found = verdict(seen, limit=0.02)
    assert found.outcome is Outcome.FAIL
    assert found.stable is None
    assert "limit 2 %" in found.words
    slow = evidence((1, times((10, 500), (300, 500)), FlowTotals()))
    assert verdict(slow, name="first_byte_p95", limit=0.25).outcome is Outcome.FAIL
    assert verdict(slow, name="first_byte_p50", limit=0.25).outcome is Outcome.PASS


def test_events_may_outnumber_connections() -> None:
    calm = FlowTotals(opened=1000, syn_retransmissions=100)
    wild = FlowTotals(opened=1000, syn_retransmissions=3000)
    assert verdict(evidence((1, wild, calm)), name="syn_retransmissions").outcome is Outcome.FAIL
    assert verdict(evidence((1, calm, wild)), name="syn_retransmissions").outcome is Outcome.PASS


def test_more_may_fail_in_a_window_than_began_in_it() -> None:
    odd = FlowTotals(opened=5, refused=1, unanswered=50)
    calm = FlowTotals(opened=1000)
    found = verdict(evidence((1, odd, calm)), name="failed_handshakes", min_samples=1)
    assert found.canary == 1.0


# --- what could not be measured -------------------------------------------------------------------


def test_lost_windows_wait_and_then_could_not_measure() -> None:
    analysis = Analysis(metrics=(Metric(name="http_5xx", tolerate=1),))
    seen = evidence((1, http(990, 10), http(990, 10)))
    outcomes = []
    for _ in range(2):
        seen = collect(seen, analysis, Lost("the counters of n1 began anew"), {})
        (found,) = judge(analysis, PLAN, LAST, seen)
        outcomes.append(found.outcome)
        assert "the counters of n1 began anew" in found.words
    assert outcomes == [Outcome.NOT_ENOUGH_DATA, Outcome.COULD_NOT_MEASURE]
    # What failed before is not forgiven for it.
    seen = collect(evidence((1, http(900, 100), http(990, 10))), analysis, Lost("-"), {})
    (found,) = judge(analysis, PLAN, LAST, seen)
    assert found.outcome is Outcome.FAIL


def outside(*measured: Measurement, **metric) -> list[Outcome]:
    one = Metric(
        name="q", prometheus=Prometheus(url="http://127.0.0.1:1", query="up"),
        **{"tolerate": 1, **metric},
    )  # fmt: skip
    analysis = Analysis(metrics=(one,))
    seen, found = Evidence(), []
    for each in measured:
        seen = collect(seen, analysis, Lost("-"), {"q": each})
        (verdict,) = judge(analysis, PLAN, LAST, seen)
        assert verdict.words.startswith("q: ")
        found.append(verdict.outcome)
    return found


def test_figures_from_outside() -> None:
    good, bad = Measurement(canary=1.0, stable=1.0), Measurement(canary=1.5, stable=1.0)
    gone = Measurement(error="refused")
    wait, failed, passed = Outcome.NOT_ENOUGH_DATA, Outcome.FAIL, Outcome.PASS
    assert outside(good, bad, good, bad, bad) == [passed, wait, passed, wait, failed]
    assert outside(good, gone, gone, good) == [passed, wait, Outcome.COULD_NOT_MEASURE, passed]
    assert outside(good, worse="lower") == [passed]
    assert outside(Measurement(canary=0.5, stable=1.0), worse="lower", breaches=1) == [failed]
    assert outside(good, limit=0.5, breaches=1) == [failed]
    assert outside(good, limit=2, breaches=1) == [passed]


def test_errors_never_add_up_to_success() -> None:
    gone = Measurement(error="refused")
    assert Outcome.PASS not in outside(*[gone] * 20, tolerate=1000)


# --- together -------------------------------------------------------------------------------------


def said(*outcomes: Outcome, observe: bool = False) -> list[Verdict]:
    return [Verdict(metric="m", outcome=each, words="", observe=observe) for each in outcomes]


def test_the_worst_verdict_with_power_is_the_conclusion() -> None:
    good, bad = Outcome.PASS, Outcome.FAIL
    few, gone = Outcome.NOT_ENOUGH_DATA, Outcome.COULD_NOT_MEASURE
    assert conclusion(said(good, good)) is good
    assert conclusion(said(good, few)) is few
    assert conclusion(said(gone, few, good)) is gone
    assert conclusion(said(gone, few, good, bad)) is bad
    assert conclusion([*said(good), *said(bad, gone, observe=True)]) is good
    assert conclusion(said(good, observe=True)) is few  # nobody with power has said anything
    assert conclusion([]) is few


def test_who_only_observes_takes_nothing_of_the_allowance() -> None:
    one = Metric(name="http_5xx")
    look_on = Metric(name="http_4xx", observe=True)
    seen = evidence((1, http(990, 10), http(990, 10)))
    (alone,) = judge(Analysis(metrics=(one,)), PLAN, LAST, seen)
    with_it, other = judge(Analysis(metrics=(one, look_on)), PLAN, LAST, seen)
    assert alone.level == with_it.level
    assert other.observe


# --- what modes see -------------------------------------------------------------------------------


def test_every_metric_has_a_measure_and_can_be_seen_somewhere() -> None:
    assert set(MEASURES) == set(KernelMetric) == set(visible(Mode.NAT, Protocol.TCP, Vantage.NODE))
    for mode in (Mode.DSR, Mode.IPIP, Mode.GUE):
        assert set(visible(mode, Protocol.TCP, Vantage.BACKEND)) == set(KernelMetric)
        one_way = visible(mode, Protocol.TCP, Vantage.NODE)
        assert {"failed_handshakes", "unserved", "handshake_p95", "first_byte_p95"} <= set(one_way)
        assert KernelMetric.HTTP_5XX not in one_way
    assert visible(Mode.NAT, Protocol.UDP, Vantage.NODE) == ()


def test_the_default_analysis_judges_what_has_samples() -> None:
    https = FlowTotals(opened=9, established=9, requests=9, first_byte={9: 9}, handshake={9: 9})

    def names(*where, **kwargs) -> list[str]:
        found = default_analysis(*where, **kwargs)
        return [each.name for each in found.metrics if not each.observe] if found else []

    nat = (Mode.NAT, Protocol.TCP, Vantage.NODE)
    assert names(*nat, seen=https) == [
        "failed_handshakes", "resets", "unserved", "handshake_p95", "first_byte_p95"
    ]  # fmt: skip
    assert "http_5xx" in names(*nat, seen=pooled_http(https))
    assert "http_5xx" not in names(*nat)
    assert "resets" not in names(Mode.DSR, Protocol.TCP, Vantage.NODE, seen=https)
    assert "first_byte_p95" in names(Mode.DSR, Protocol.TCP, Vantage.NODE, seen=https)
    assert default_analysis(Mode.NAT, Protocol.UDP, Vantage.NODE) is None


def pooled_http(totals: FlowTotals) -> FlowTotals:
    return totals.model_copy(update={"http": {"2xx": 9}})
