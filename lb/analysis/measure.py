"""Asking what lb itself can't see. Whatever the outside does, it is a Measurement."""

from __future__ import annotations

from dataclasses import dataclass

from lb.model.analysis import Metric
from lb.model.evidence import Measurement


@dataclass(frozen=True)
class Context:
    """What is asked about; queries and programs can name all of it."""

    service: str
    stable: str  # name of the pool
    canary: str
    stable_backends: tuple[str, ...]
    canary_backends: tuple[str, ...]
    step: int  # from 0
    share: float  # of the canary, per cent
    seconds: float  # length of the window that just ended


def measure(metric: Metric, context: Context) -> Measurement:
    """Measure one metric that has an outside source. Never raises for what the outside does."""
    raise NotImplementedError
