"""The tests of lb/core/statistics.py are what SciPy says, or what enumeration says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lb.core.statistics import (
    TOO_WIDE,
    Spread,
    Table,
    above_limit,
    more_in_canary,
    spread,
    thinned,
    wilson,
    worse_at_most,
)


def middle(law, count: int) -> float:
    """The mid-p-value: that of more, and half of that of just so many."""
    return law.sf(count) + law.pmf(count) / 2 if count else 1.0


@st.composite
def tables(draw: st.DrawFn, most: int = 5000) -> Table:
    canary, stable = draw(st.integers(1, most)), draw(st.integers(1, most))
    return Table(draw(st.integers(0, canary)), canary, draw(st.integers(0, stable)), stable)


@given(tables())
def test_one_stratum_is_fishers_exact_test_with_mid_p(table: Table) -> None:
    everything = table.canary + table.stable
    bad = table.canary_bad + table.stable_bad
    expected = middle(stats.hypergeom(everything, bad, table.canary), table.canary_bad)
    assert more_in_canary([table]) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(tables())
def test_events_are_dealt_by_a_binomial(table: Table) -> None:
    seen = table.canary_bad + table.stable_bad
    share = table.canary / (table.canary + table.stable)
    expected = middle(stats.binom(seen, share), table.canary_bad)
    found = more_in_canary([table], several=True)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(st.lists(tables(most=12), min_size=1, max_size=3))
def test_strata_are_added_up_as_enumeration_does(strata: list[Table]) -> None:
    wanted = sum(each.canary_bad for each in strata)
    chances = [
        stats.hypergeom.pmf(np.arange(13), t.canary + t.stable, t.canary_bad + t.stable_bad, t.canary)
        for t in strata
    ]
    expected = sum(
        math.prod(chances[i][k] for i, k in enumerate(counts))
        for counts in itertools.product(range(13), repeat=len(strata))
        for _ in range((sum(counts) >= wanted) + (sum(counts) > wanted))
    )
    expected = expected / 2 if wanted else 1.0
    assert more_in_canary(strata) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("size", [2_000_000, 200_000_000, 20_000_000_000])
def test_millions_of_samples_have_the_same_tails(size: int) -> None:
    bad = size // 100
    deviation = math.sqrt(2 * bad * 0.25 * (1 - 2 * bad / (2 * size)))
    table = Table(round(bad + 4 * deviation), size, round(bad - 4 * deviation), size)
    expected = middle(stats.hypergeom(2 * size, 2 * bad, size), table.canary_bad)
    assert more_in_canary([table]) == pytest.approx(expected, rel=0.02)


def test_the_normal_law_is_near_where_it_takes_over() -> None:
    # The canary has 1 %: as skewed as it gets.
    canary, stable, bad = 10_000_000, 990_000_000, 2_900_000
    law = stats.hypergeom(canary + stable, bad, canary)
    assert 24 * law.std() > TOO_WIDE
    seen = round(law.mean() + 4 * law.std())
    found = more_in_canary([Table(seen, canary, bad - seen, stable)])
    assert found == pytest.approx(middle(law, seen), rel=0.1)


@given(st.integers(1, 100_000), st.floats(1e-4, 0.999), st.floats(0, 3), st.booleans())
def test_a_limit_is_binomial_or_poisson(samples: int, limit: float, times: float, several: bool) -> None:
    bad = min(samples, round(samples * limit * times))
    law = stats.poisson(samples * limit) if several else stats.binom(samples, limit)
    expected = middle(law, bad)
    found = above_limit(bad, samples, limit, several=several)
    near = 1e-4 if 24 * law.std() <= TOO_WIDE else 0.1
    assert found == pytest.approx(expected, rel=near, abs=1e-7 if near == 0.1 else 1e-12)


def test_nothing_seen_is_no_evidence() -> None:
    assert more_in_canary([]) == 1
    assert more_in_canary([Table(0, 100, 5, 100)]) == 1
    assert more_in_canary([Table(5, 100, 0, 0)]) == 1  # nobody to compare with
    assert above_limit(0, 0, 0.1) == above_limit(0, 10, 0.1) == above_limit(9, 10, 1.0) == 1
    assert above_limit(1, 10, 0.0) == 0


def test_a_dead_canary_of_few_samples_is_certain() -> None:
    assert more_in_canary([Table(20, 20, 20, 1980)]) < 1e-25
    assert more_in_canary([Table(100_000, 100_000, 0, 900_000)]) < 1e-100


def test_backends_that_differ_by_chance_alone_have_no_spread() -> None:
    rng = np.random.default_rng(5)
    found = [
        spread([[(int(b), 400) for b in rng.binomial(400, 0.02, 6)] for _ in range(3)]).factor
        for _ in range(2000)
    ]
    assert np.mean(np.array(found) > 1) < 0.035  # once in fifty times
    # Also where hardly any is expected, and one looks like a great difference.
    found = [spread([[(int(b), 30) for b in rng.binomial(30, 0.01, 8)]]).factor for _ in range(2000)]
    assert np.mean(np.array(found) > 1) < 0.05


def test_bursts_and_lasting_differences_are_found_and_measured() -> None:
    rng = np.random.default_rng(6)
    bursts = [
        spread([[(4 * int(b), 2000) for b in rng.binomial(500, 0.02, 6)] for _ in range(4)]).factor
        for _ in range(300)
    ]
    assert np.mean(bursts) == pytest.approx(4, rel=0.1)
    assert Spread(3.0, per=100).at(400) == 9.0  # a lasting difference weighs more with more samples
    assert Spread().at(1e6) == 1.0


def test_thinning_keeps_shares_and_never_helps_the_canarys_accuser() -> None:
    table = Table(31, 620, 64, 6380)
    assert thinned(table, 1.0, 1.0) == table
    assert thinned(table, 2.0, 2.0) == Table(15, 310, 32, 3190)
    assert thinned(Table(1, 1, 0, 0), 5.0, 5.0) == Table(0, 1, 0, 0)
    assert more_in_canary([thinned(table, 3.0, 2.0)]) > more_in_canary([table])


def test_bounds_of_a_share() -> None:
    low, high = wilson(30, 1000, 1.959964)
    expected = stats.binomtest(30, 1000).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert wilson(0, 0, 1.645) == (0.0, 1.0)


def test_the_bound_of_a_difference_holds_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(7)
    held = [
        worse_at_most((rng.binomial(620, 0.012) / 620, 620), (rng.binomial(6380, 0.01) / 6380, 6380))
        >= 0.002
        for _ in range(3000)
    ]
    assert 0.93 < np.mean(held) < 0.985
