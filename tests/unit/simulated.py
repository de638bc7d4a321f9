"""Thousands of rollouts, simulated in seconds: who is aborted, and at which step.

Figures are drawn and screened with NumPy; whatever could possibly fail is then judged by the product's
own tests (lb/core/comparison.py). test_judgement_power.py proves that the screen lets nothing through
that would fail, and that the short cut around judge() says what judge() says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lb.core.comparison import View, compare_counts, compare_latency
from lb.core.histogram import BUCKETS, bounds
from lb.core.judgement import EARLIER_MARGIN, RECENT, ROLLOUT, WHOLE
from lb.core.measures import MEASURES
from lb.core.spending import Look, Plan, allowance
from lb.core.statistics import normal_above
from lb.model.analysis import KernelMetric
from lb.model.evidence import Window
from lb.model.flows import FlowTotals

SCREEN = 10.0  # times the level: what the normal law finds likelier than that can't fail
MIN_SAMPLES = 10
Ints = NDArray[np.int64]
Strata = list[tuple[Ints, Ints]]


@dataclass(frozen=True)
class Scenario:
    """What a rollout meets. Rates are shares, `connections` a step, of both pools together."""

    steps: tuple[float, ...] = (1, 5, 25, 50, 100)
    looks: int = 3
    connections: int = 2000
    in_canary: bool = False  # `connections` are the canary's alone
    metrics: int = 6  # with power, that share the allowance
    base: float = 0.01
    worse: float = 0.0  # added to the canary's rate
    decays: bool = False  # little by little, from look to look, until all of `worse` is there
    slower: float = 1.0  # times the stable pool's latency
    sigma: float = 0.5  # of the logarithm of latencies
    stable_backends: int = 4
    canary_backends: int = 1
    differ: float = 0.0  # relative standard deviation of a backend's rate, or of its speed
    burst: int = 1  # bad answers come so many at a time
    drift: float = 0.0  # relative standard deviation of both pools' rate from look to look
    false_alarms: float = 0.01

    @property
    def plan(self) -> Plan:
        return Plan(self.steps, self.looks)

    def sizes(self, step: int) -> tuple[int, int]:
        """(canary, stable) connections of one look, for each backend."""
        share = self.steps[step] / 100
        total = self.connections / share if self.in_canary else self.connections
        canary, stable = total * share / self.looks, total * (1 - share) / self.looks
        return round(canary / self.canary_backends), round(stable / self.stable_backends)


@dataclass
class Drawn:
    """Of each rollout, look and backend: histograms of latencies, or (bad, good); the last axis."""

    canary: Ints
    stable: Ints


def draw_shares(scenario: Scenario, rollouts: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    looks = len(scenario.steps) * scenario.looks
    progress = np.arange(looks)[None, :, None] / (looks - 1) if scenario.decays else 1.0
    common = np.exp(scenario.drift * rng.standard_normal((rollouts, looks, 1)))
    found = []
    for backends, added, which in (
        (scenario.canary_backends, scenario.worse, 0),
        (scenario.stable_backends, 0.0, 1),
    ):
        own = np.maximum(0.0, 1 + scenario.differ * rng.standard_normal((rollouts, 1, backends)))
        rate = np.minimum(1.0, (scenario.base * common + added * progress) * own)
        samples = np.array([scenario.sizes(i // scenario.looks)[which] for i in range(looks)])
        samples = np.broadcast_to(samples[None, :, None], (rollouts, looks, backends))
        bad = np.minimum(samples, scenario.burst * rng.binomial(samples // scenario.burst, rate))
        found.append(np.stack((bad, samples - bad), axis=-1))
    return Drawn(*found)


def draw_latencies(scenario: Scenario, rollouts: int, seed: int) -> Drawn:
    """Log-normal, with a median of 20 ms."""
    rng = np.random.default_rng(seed)
    looks = len(scenario.steps) * scenario.looks
    edges = np.log(np.array([max(0.5, bounds(bucket)[0]) for bucket in range(1, BUCKETS)]))
    below = np.vectorize(lambda z: 1 - normal_above(z))
    found = []
    for backends, times, which in (
        (scenario.canary_backends, scenario.slower, 0),
        (scenario.stable_backends, 1.0, 1),
    ):
        # Speeds of backends are drawn from a few, so that their distributions are made once.
        kinds = rng.standard_normal(64 if scenario.differ else 1) * scenario.differ
        centres = np.log(20_000 * times) + kinds
        cumulative = below((edges[None, :] - centres[:, None]) / scenario.sigma)
        chances = np.diff(cumulative, prepend=0.0, append=1.0, axis=1)
        which_kind = rng.integers(len(kinds), size=(rollouts, 1, backends))
        samples = np.array([scenario.sizes(i // scenario.looks)[which] for i in range(looks)])
        samples = np.broadcast_to(samples[None, :, None], (rollouts, looks, backends))
        found.append(rng.multinomial(samples, chances[which_kind]))
    used = np.flatnonzero(sum(each.sum(axis=(0, 1, 2)) for each in found))
    keep = slice(used[0], used[-1] + 1)
    return Drawn(*(each[..., keep].astype(np.int64) for each in found)), int(used[0])


def aborted(scenario: Scenario, rollouts: int, seed: int, *, latency: bool = False) -> Ints:
    """The step at which each rollout is aborted; -1 = never."""
    offset = 0
    if latency:
        drawn, offset = draw_latencies(scenario, rollouts, seed)
    else:
        drawn = draw_shares(scenario, rollouts, seed)
    measure = MEASURES[KernelMetric.FIRST_BYTE_P95 if latency else KernelMetric.HTTP_5XX]
    fails = np.full(rollouts, -1)
    for index in range(len(scenario.steps) * scenario.looks):
        step, number = divmod(index, scenario.looks)
        look = Look(step, number)
        level = scenario.false_alarms * allowance(scenario.plan, look) / scenario.metrics
        margin = measure.margin * (EARLIER_MARGIN if scenario.steps[step] >= WHOLE else 1)
        for name, weight, strata, background in views(scenario, drawn, look):
            for rollout in screened(strata, measure.quantile if latency else None, level * weight):
                if fails[rollout] >= 0:
                    continue
                view = View(
                    name,
                    weight,
                    windows_of(strata, rollout, latency, offset),
                    windows_of(background, rollout, latency, offset),
                )
                compare = compare_latency if latency else compare_counts
                found = compare(measure, view, margin, level * weight)
                enough = min(found.canary_samples, found.stable_samples) >= MIN_SAMPLES
                if enough and found.failed:
                    fails[rollout] = step
    return fails


def views(scenario: Scenario, drawn: Drawn, look: Look) -> Iterator[tuple[str, float, Strata, Strata]]:
    """As judgement.views() makes them, of all rollouts at once."""
    begin, now = look.step * scenario.looks, look.step * scenario.looks + look.number

    def part(first: int, last: int) -> tuple[Ints, Ints]:
        return drawn.canary[:, first:last].sum(axis=1), drawn.stable[:, first:last].sum(axis=1)

    this, latest = part(begin, now + 1), part(now, now + 1)
    if scenario.steps[look.step] >= WHOLE:
        rollouts, _, backends, kinds = drawn.stable.shape
        by_step = drawn.stable[:, :begin].reshape(rollouts, look.step, scenario.looks, backends, kinds)
        earlier = by_step.sum(axis=2).reshape(rollouts, look.step * backends, kinds)
        yield "earlier", 1.0, [(this[0], earlier)], []
        return
    full = [part(s * scenario.looks, (s + 1) * scenario.looks) for s in range(look.step)]
    yield "rollout", ROLLOUT, [*full, this], [*full, this]
    yield "step", RECENT, [this], [*full, this]
    yield "look", RECENT, [latest], [*full, this]


def deviations(level: float) -> float:
    """Below so many standard deviations nothing fails at this level."""
    return NormalDist().inv_cdf(1 - SCREEN * level)


def screened(strata: Strata, quantile: float | None, level: float) -> Ints:
    """The rollouts that could fail in this view."""
    found = np.zeros(len(strata[0][0]), dtype=bool)
    least = deviations(level)
    shares = [None] if quantile is None else [quantile, 1 - 4 * (1 - quantile)]
    for share in shares:
        excess, variance = 0.0, 0.0
        for canary_backends, stable_backends in strata:
            canary, stable = canary_backends.sum(axis=1), stable_backends.sum(axis=1)
            if share is None:
                ours, theirs = canary[:, 0], stable[:, 0]
            else:
                ours, theirs = above_edge(canary, stable, share)
            n, m = canary.sum(axis=1), stable.sum(axis=1)
            total, bad = n + m, ours + theirs
            part = n / np.maximum(1, total)
            excess = excess + ours - bad * part
            variance = variance + bad * part * (1 - part) * (total - bad) / np.maximum(1, total - 1)
        found |= (excess > 0) & (excess >= least * np.sqrt(variance))
    return np.flatnonzero(found)


def above_edge(canary: Ints, stable: Ints, share: float) -> tuple[Ints, Ints]:
    both = (canary + stable)[:, ::-1].cumsum(axis=1)[:, ::-1]  # from each bucket on
    wanted = (1 - share) * both[:, :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.maximum(both / wanted, wanted / both)
    away[(both == 0) | (both == both[:, :1])] = np.inf
    edge = away.shape[1] - 1 - np.argmin(away[:, ::-1], axis=1)
    mask = np.arange(away.shape[1]) >= edge[:, None]
    return (canary * mask).sum(axis=1), (stable * mask).sum(axis=1)


def windows_of(strata: Strata, rollout: int, latency: bool, offset: int) -> tuple[Window, ...]:
    return tuple(
        Window.model_construct(
            step=0,
            canary=totals(canary[rollout], latency, offset),
            stable=totals(stable[rollout], latency, offset),
        )
        for canary, stable in strata
    )


def totals(backends: Ints, latency: bool, offset: int) -> dict[str, FlowTotals]:
    """Of one rollout and view."""
    found = {}
    for index, row in enumerate(backends):
        if latency:
            kept = {offset + int(b): int(row[b]) for b in np.flatnonzero(row)}
            found[f"b{index}"] = FlowTotals.model_construct(first_byte=kept)
        else:
            http = {"5xx": int(row[0]), "2xx": int(row[1])}
            found[f"b{index}"] = FlowTotals.model_construct(http=http)
    return found


def share_aborted(scenario: Scenario, rollouts: int, seed: int, *, latency: bool = False) -> float:
    return float((aborted(scenario, rollouts, seed, latency=latency) >= 0).mean())


__all__ = ["Scenario", "aborted", "draw_shares", "replace", "share_aborted"]
