"""Collecting evidence: from totals that nodes report to the windows that are judged. Pure.

Totals only rise, within an epoch. A window is the difference of two readings; when a node has begun
anew in between, its difference would be too small by nobody knows what, so there is no window: that look
could not be measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lb.model.analysis import Analysis
from lb.model.evidence import Evidence, Measurement, Window
from lb.model.flows import FlowReport, FlowTotals


@dataclass(frozen=True)
class Lost:
    """A window that could not be measured, and why."""

    why: str


def difference(before: FlowTotals, after: FlowTotals) -> FlowTotals | None:
    """What happened from `before` to `after`; None if a figure fell, so that the totals began anew."""
    raise NotImplementedError


def window(
    before: Mapping[str, FlowReport],
    after: Mapping[str, FlowReport],
    stable: Iterable[str],
    canary: Iterable[str],
    step: int,
) -> Window | Lost:
    """The window between two readings of all observers of a service (by node). `stable` and `canary`
    name the backends of the pools."""
    raise NotImplementedError


def collect(
    evidence: Evidence,
    analysis: Analysis,
    found: Window | Lost,
    measured: Mapping[str, Measurement],
) -> Evidence:
    """The evidence with one more look in it. `measured`: of the metrics that are measured outside."""
    raise NotImplementedError
