"""False alarms and power of the judgement over whole rollouts, by simulation with fixed seeds.

The figures of docs/decisions/013-judging-a-canary.md are of the same simulation, with more rollouts. The
bounds here leave room for the chance of the smaller number; with fixed seeds they hold or don't.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from simulated import Scenario, aborted, deviations, draw_shares, replace, share_aborted

from lb.core.evidence import collect
from lb.core.judgement import conclusion, judge
from lb.core.spending import Look
from lb.core.statistics import Table, more_in_canary
from lb.model.analysis import Analysis, Metric
from lb.model.evidence import Evidence, Outcome, Window
from lb.model.flows import FlowTotals

STANDARD = Scenario()
PLANS = [(1, 5, 25, 50, 100), (10, 50, 100), (5, 10, 20, 40), (1, 2, 5, 10, 20, 35, 50, 75, 100)]
every_plan = pytest.mark.parametrize("steps", PLANS, ids=str)


# --- an identical canary --------------------------------------------------------------------------


@every_plan
def test_identical_canaries_are_aborted_in_less_than_one_of_a_hundred_rollouts(steps) -> None:
    # One metric has the whole allowance here: six that have a sixth each can do no worse.
    for base in (0.0005, 0.01, 0.1):
        scenario = Scenario(steps=steps, metrics=1, base=base)
        assert share_aborted(scenario, 4000, seed=1) <= 0.01


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.0])
def test_nor_for_their_latency(sigma: float) -> None:
    # With a sigma of 0.02 all times are in one or two buckets.
    assert share_aborted(Scenario(metrics=1, sigma=sigma), 1000, seed=2, latency=True) <= 0.01


@pytest.mark.parametrize(
    "unlike",
    [
        {"differ": 0.2},  # one backend fails a fifth more often than another
        {"burst": 2},  # two bad answers at a time
        {"drift": 0.2},  # of both pools, from look to look
        {"differ": 0.1, "burst": 2, "drift": 0.1},
    ],
    ids=str,
)
def test_nor_where_backends_differ_or_errors_come_in_bursts(unlike) -> None:
    assert share_aborted(replace(STANDARD, **unlike), 4000, seed=3) <= 0.01


def test_nor_where_backends_are_a_little_slower_than_others() -> None:
    assert share_aborted(replace(STANDARD, differ=0.02), 1000, seed=4, latency=True) <= 0.01


# --- a worse one ----------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [0.001, 0.005, 0.01])
@pytest.mark.parametrize("looks", [1, 6])
def test_two_points_more_errors_are_found_in_95_of_a_hundred_rollouts(base: float, looks: int) -> None:
    scenario = replace(STANDARD, base=base, worse=0.02, looks=looks)
    assert share_aborted(scenario, 1000, seed=5) >= 0.95


def test_three_steps_have_fewer_samples_and_hardly_less_power() -> None:
    assert share_aborted(Scenario(steps=(10, 50, 100), worse=0.02), 1000, seed=13) >= 0.93


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0])
def test_so_is_a_p95_that_is_30_percent_higher(sigma: float) -> None:
    scenario = replace(STANDARD, slower=1.3, sigma=sigma)
    assert share_aborted(scenario, 400, seed=6, latency=True) >= 0.95


def test_with_2000_connections_of_the_canary_the_first_step_is_enough() -> None:
    scenario = replace(STANDARD, in_canary=True, worse=0.02)
    assert (aborted(scenario, 300, seed=7) == 0).mean() >= 0.95
    scenario = replace(STANDARD, in_canary=True, slower=1.3)
    assert (aborted(scenario, 60, seed=8, latency=True) == 0).mean() >= 0.95


def test_a_canary_that_fails_altogether_is_found_at_one_percent() -> None:
    assert (aborted(replace(STANDARD, worse=0.9), 300, seed=9) == 0).all()


def test_a_canary_that_decays_is_found_before_it_has_all_of_the_traffic() -> None:
    # From equal to 8 points worse, over the whole rollout.
    fails = aborted(replace(STANDARD, worse=0.08, decays=True, looks=6), 300, seed=14)
    assert (fails >= 0).all()
    assert (fails <= 3).mean() >= 0.95


def test_what_nobody_cares_about_does_not_abort_with_millions_of_samples() -> None:
    # 0.2 points at a million connections a step: 20 standard deviations, and less than the margin.
    scenario = replace(STANDARD, worse=0.002, connections=1_000_000)
    assert share_aborted(scenario, 100, seed=10) <= 0.03  # at 1 %, with 3,333
    # The test alone would.
    assert more_in_canary([Table(6000, 500_000, 5000, 500_000)]) < 1e-15


# --- the simulation is the product ----------------------------------------------------------------


@pytest.mark.parametrize("level", [1e-3, 1e-4, 1e-5, 1e-6])
def test_the_screen_lets_nothing_through_that_would_fail(level: float) -> None:
    shares = (0.01, 0.05, 0.25, 0.5, 0.75)
    for share, samples, rate in itertools.product(shares, (600, 2000, 10_000), (0.001, 0.01, 0.05, 0.2)):
        canary, bad = round(samples * share), round(samples * rate)
        part = canary / samples
        deviation = np.sqrt(bad * part * (1 - part) * (samples - bad) / (samples - 1))
        # The largest count that the screen stops.
        stopped = int(np.ceil(bad * part + deviations(level) * deviation)) - 1
        if 0 < stopped <= min(bad, canary):
            table = Table(stopped, canary, bad - stopped, samples - canary)
            assert more_in_canary([table]) > level, table


def test_the_whole_judgement_says_what_the_simulation_says() -> None:
    scenario = replace(STANDARD, worse=0.02, metrics=2, steps=(10, 50, 100))
    names = ("http_5xx", "failed_handshakes")
    analysis = Analysis(metrics=tuple(Metric(name=each) for each in names))
    rollouts = 40
    expected = aborted(scenario, rollouts, seed=12)
    assert {-1} < set(expected) or len(set(expected)) > 1
    drawn = draw_shares(scenario, rollouts, seed=12)
    for rollout in range(rollouts):
        assert judged(scenario, analysis, drawn, rollout) == expected[rollout]


def judged(scenario: Scenario, analysis: Analysis, drawn, rollout: int) -> int:
    evidence = Evidence()
    for index in range(len(scenario.steps) * scenario.looks):
        look = Look(*divmod(index, scenario.looks))
        window = Window(
            step=look.step,
            canary=answered(drawn.canary[rollout, index]),
            stable=answered(drawn.stable[rollout, index]),
        )
        evidence = collect(evidence, analysis, window, {})
        if conclusion(judge(analysis, scenario.plan, look, evidence)) is Outcome.FAIL:
            return look.step
    return -1


def answered(backends) -> dict[str, FlowTotals]:
    return {
        f"b{index}": FlowTotals(http={"5xx": int(bad), "2xx": int(good)}, opened=int(bad + good))
        for index, (bad, good) in enumerate(backends)
    }
