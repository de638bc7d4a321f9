"""The tests that tell a worse canary from chance. Pure; no approximation where counts are small.

All of them are one question: of everything bad that was seen, did more fall to the canary than its share
of the traffic explains? If both pools are equal, how the bad ones are dealt to them is a lottery whose
odds are known: hypergeometric (Fisher's exact test) where each sample is good or bad, binomial where a
sample can have several events. Strata (the steps of a rollout, with their different splits) are added up
by convolution of their lotteries: the exact form of the Mantel-Haenszel test. Nothing is assumed about
the base rate, or that it is the same in all strata.

SciPy would have the distributions, but not the convolution, for 69 MB of memory in every lbd;
tests/unit/test_statistics.py compares with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

REACH = 12.0  # standard deviations; what lies beyond has a probability below 1e-30
MARGIN = 60  # values beyond that, for lotteries that are skewed because few are drawn
FEWEST = 0.25  # bad samples that are expected of a backend, for it to tell of its spread
TOO_WIDE = (
    4_000  # values; beyond (a deviation of over 160) the normal law is within 10 % at 4 deviations
)


@dataclass(frozen=True)
class Table:
    """How many of each pool's samples were bad, over the same time."""

    canary_bad: int
    canary: int
    stable_bad: int
    stable: int


@dataclass(frozen=True)
class Lottery:
    """Probabilities of `first`, `first + 1`, ... bad ones in the canary."""

    first: int
    chances: Floats

    def at_least(self, count: int) -> float:
        """The probability of `count` or more."""
        if count <= self.first:
            return 1.0
        return min(1.0, float(self.chances[count - self.first :].sum()))

    def middle(self, count: int) -> float:
        """The probability of more than `count`, and half of that of `count` itself: the mid-p-value.
        (Lancaster 1961. It makes up for steps: of counts as small as a canary's errors the whole
        p-value is on average 1.6 times too large.)"""
        return (self.at_least(count) + self.at_least(count + 1)) / 2


def more_in_canary(tables: Iterable[Table], *, several: bool = False) -> float:
    """The mid-p-value of the canary's bad ones, if both pools are equal. `several`: a sample can have
    more than one event, so that they may outnumber the samples."""
    told = [each for each in tables if each.canary and each.stable and each.canary_bad + each.stable_bad]
    seen = sum(each.canary_bad for each in told)
    if not seen:
        return 1.0
    moments = [_moments(each, several) for each in told]
    mean, variance = (sum(each[i] for each in moments) for i in (0, 1))
    if REACH * 2 * math.sqrt(variance) > TOO_WIDE:
        return normal_above((seen - mean) / math.sqrt(variance))
    total: Lottery | None = None
    for table, (one_mean, one_variance) in zip(told, moments, strict=True):
        one = _lottery(table, several, one_mean, one_variance)
        total = one if total is None else _sum(total, one)
    assert total is not None
    return total.middle(seen)


def above_limit(bad: int, samples: int, limit: float, *, several: bool = False) -> float:
    """The mid-p-value of `bad` of `samples`, if each is bad with the probability `limit` (binomial), or
    has so many events on average (Poisson)."""
    if bad <= 0 or samples <= 0:
        return 1.0
    if limit <= 0:
        return 0.0
    if not several and limit >= 1:
        return 1.0
    mean = samples * limit
    variance = mean if several else mean * (1 - limit)
    if REACH * 2 * math.sqrt(variance) > TOO_WIDE:
        return normal_above((bad - mean) / math.sqrt(variance))
    first, values = _window(mean, variance, 0, bad + int(mean) + TOO_WIDE if several else samples)
    if several:
        steps = np.log(mean) - np.log(values + 1)
    else:
        steps = np.log(samples - values) - np.log(values + 1) + math.log(limit) - math.log1p(-limit)
    return _normalised(first, steps).middle(bad)


def normal_above(z: float) -> float:
    """The probability that a standard normal value is above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def _moments(table: Table, several: bool) -> tuple[float, float]:
    everything, bad = table.canary + table.stable, table.canary_bad + table.stable_bad
    share = table.canary / everything
    variance = bad * share * (1 - share)
    if not several:
        variance *= (everything - bad) / max(1, everything - 1)
    return bad * share, variance


def _lottery(table: Table, several: bool, mean: float, variance: float) -> Lottery:
    bad = table.canary_bad + table.stable_bad
    if several:
        first, values = _window(mean, variance, 0, bad)
        odds = math.log(table.canary) - math.log(table.stable)
        return _normalised(first, np.log(bad - values) - np.log(values + 1) + odds)
    good = table.canary + table.stable - bad
    least, most = max(0, table.canary - good), min(bad, table.canary)
    first, values = _window(mean, variance, least, most)
    return _normalised(
        first,
        np.log(bad - values)
        + np.log(table.canary - values)
        - np.log(values + 1)
        - np.log(good - table.canary + values + 1),
    )


def _window(mean: float, variance: float, least: int, most: int) -> tuple[int, Floats]:
    """The first value that matters, and all that matter but the last."""
    reach = REACH * math.sqrt(variance) + MARGIN
    first = max(least, math.floor(mean - reach))
    last = max(first, min(most, math.ceil(mean + reach)))
    return first, np.arange(first, last, dtype=np.float64)


def _normalised(first: int, steps: Floats) -> Lottery:
    """Of the logarithms of the ratio of each probability to the one before it."""
    logs = np.concatenate(([0.0], np.cumsum(steps)))
    chances = np.exp(logs - logs.max())
    return Lottery(first, chances / chances.sum())


def _sum(one: Lottery, other: Lottery) -> Lottery:
    return Lottery(one.first + other.first, np.convolve(one.chances, other.chances))


@dataclass(frozen=True)
class Spread:
    """How much more backends of one pool differ than chance explains.

    `factor`: of the variance, for `per` samples a backend; 1 = nothing. A difference between backends
    weighs the more the more samples each has, so for others it is scaled.
    """

    factor: float = 1.0
    per: float = 1.0

    def at(self, samples: float) -> float:
        """The factor for so many samples a backend."""
        return 1.0 + (self.factor - 1.0) * samples / self.per


def spread(
    groups: Iterable[Sequence[tuple[int, int]]], *, several: bool = False, prior: float = math.inf
) -> Spread:
    """Of (bad, samples) of equal backends, a sequence for each stratum: Pearson's statistic over its
    degrees of freedom. Where that can be chance (it is as large in more than one of fifty times), it is
    drawn towards 1 by `prior` more degrees, since noise that makes samples count for less costs power;
    with the default it is 1 then."""
    statistic = freedom = variance = 0.0
    samples: list[int] = []
    for group in groups:
        told = [each for each in group if each[1] > 0]
        bad, total = (sum(each[i] for each in told) for i in (0, 1))
        if bad <= 0 or (bad >= total and not several):
            continue
        rate = bad / total
        each_variance = rate if several else rate * (1 - rate)
        told = [each for each in told if each[1] * rate >= FEWEST]
        if len(told) < 2:
            continue
        statistic += sum((b - n * rate) ** 2 / (n * each_variance) for b, n in told)
        freedom += len(told) - 1
        # The fewer are expected, the wider the statistic scatters: one is a great difference then.
        variance += 2 * (len(told) - 1) + sum(1 / (n * rate) for _, n in told)
        samples += [n for _, n in told]
    if not freedom:
        return Spread()
    factor = statistic / freedom
    if statistic < freedom + _reach(freedom, variance):
        factor = 1 + (factor - 1) / (1 + prior / freedom)
    return Spread(max(1.0, factor), sum(samples) / len(samples))


def _reach(freedom: float, variance: float) -> float:
    """How far above its mean a statistic is once in fifty times: as a gamma distribution with these
    moments has it, by Wilson and Hilferty (1931)."""
    scale = variance / (2 * freedom)  # 1 for chi-squared
    part = 2 / (9 * freedom / scale)
    return float(freedom * ((1 - part + 2.054 * math.sqrt(part)) ** 3 - 1))


def thinned(table: Table, canary_factor: float, stable_factor: float) -> Table:
    """The table as so many fewer samples as its spread makes it worth (the design effect of surveys)."""
    return Table(
        math.floor(table.canary_bad / canary_factor),
        max(1, round(table.canary / canary_factor)) if table.canary else 0,
        math.ceil(table.stable_bad / stable_factor),
        max(1, round(table.stable / stable_factor)) if table.stable else 0,
    )


def wilson(bad: float, samples: float, z: float) -> tuple[float, float]:
    """Bounds of a share (Wilson 1927)."""
    if samples <= 0:
        return 0.0, 1.0
    share = min(1.0, bad / samples)
    centre = share + z * z / (2 * samples)
    reach = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def worse_at_most(canary: tuple[float, float], stable: tuple[float, float], z: float = 1.645) -> float:
    """The upper bound of the difference of two shares, of (share, samples) each; one-sided, 95 % with
    the default z (Newcombe 1998, method 10)."""
    upper = wilson(canary[0] * canary[1], canary[1], z)[1]
    lower = wilson(stable[0] * stable[1], stable[1], z)[0]
    return canary[0] - stable[0] + math.hypot(upper - canary[0], stable[0] - lower)
