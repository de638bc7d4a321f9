"""Asking what lb itself can't see. Whatever the outside does, it is a Measurement."""

from __future__ import annotations

from lb.analysis import command, prometheus, webhook
from lb.analysis.context import Context, NotMeasured
from lb.model.analysis import Metric
from lb.model.evidence import Measurement

__all__ = ["Context", "measure"]


def measure(metric: Metric, context: Context) -> Measurement:
    """Measure one metric that has an outside source. Never raises for what the outside does; returns
    within the source's timeout for each question (Prometheus is asked two) and the name's resolution.
    Not within a running event loop."""
    try:
        if metric.prometheus is not None:
            return prometheus.ask(metric.prometheus, context, compares=metric.compares)
        if metric.command is not None:
            return command.ask(metric.command, context, metric.name)
        assert metric.webhook is not None, "the kernel's metrics are measured by who reads its totals"
        return webhook.ask(metric.webhook, context, metric.name)
    except NotMeasured as error:
        return Measurement(error=" ".join(str(error).split()))
