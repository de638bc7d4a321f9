"""Histograms of latencies: buckets cover every time once, and quantiles are as exact as the buckets."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lb.core.histogram import BUCKETS, MAX_BITS, bounds, bucket_of, quantile

times = st.integers(min_value=0, max_value=(1 << MAX_BITS) - 1)


@given(times)
def test_a_time_lies_within_its_bucket(microseconds: int) -> None:
    low, high = bounds(bucket_of(microseconds))
    assert low <= microseconds < high


def test_buckets_follow_each_other_without_a_gap() -> None:
    edges = [bounds(bucket) for bucket in range(BUCKETS)]
    assert edges[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert edges[-1][1] == 1 << MAX_BITS


@given(st.integers(min_value=1 << MAX_BITS))
def test_what_is_longer_is_in_the_last_bucket(microseconds: int) -> None:
    assert bucket_of(microseconds) == BUCKETS - 1


@given(st.lists(times, min_size=1), st.sampled_from((0.0, 0.5, 0.95, 0.99, 1.0)))
def test_a_quantile_is_exact_to_an_eighth(values: list[int], share: float) -> None:
    counts = Counter(map(bucket_of, values))
    found = quantile(counts, share)
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert found is not None
    low, high = bounds(bucket_of(exact))
    assert low <= found <= high


def test_an_empty_histogram_has_no_quantile() -> None:
    assert quantile({}, 0.95) is None
    assert quantile({3: 0}, 0.95) is None
