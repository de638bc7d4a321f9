"""What each of the kernel's metrics is made of, and which of them a forwarding mode can see. Pure."""

from __future__ import annotations

from lb.model.analysis import Analysis, KernelMetric
from lb.model.flows import Vantage
from lb.model.objects import Mode, Protocol


def visible(mode: Mode, protocol: Protocol, vantage: Vantage) -> tuple[KernelMetric, ...]:
    """The metrics that can be seen from there."""
    raise NotImplementedError


def default_analysis(mode: Mode, protocol: Protocol, vantage: Vantage) -> Analysis | None:
    """What a canary is judged by when nobody says otherwise; None if nothing can be seen."""
    raise NotImplementedError
