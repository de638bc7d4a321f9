"""Writes docs/reference/metrics.md: what lbd tells Prometheus, read off the functions that make it."""

from __future__ import annotations

from lb.node.metrics import FAMILIES, Scrape

INTRODUCTION = """\
# Metrics

`lbd` answers Prometheus at `listen` of `[metrics]` in `lb.toml`: 127.0.0.1:9642 unless it is set, under
any path. That is for its own machine only; to be scraped from elsewhere it needs an address there. There
is no password: take an address of a network that may know.
[configs/prometheus](../../configs/prometheus/README.md) has a scrape configuration and alerts.

Scrapes are answered by threads of their own, from what lbd holds and the kernel has counted. Counters
are the kernel's: they go on rising when lbd is restarted, and begin at 0 when maps are made anew
(`lbd --detach`, a reboot) or a name is given to something else. Beside those below there are
`process_…` ones, of lbd itself.
"""


def metrics_page() -> str:
    """The page, without the mark of a generated one."""
    parts = [INTRODUCTION]
    for family in FAMILIES:
        words = " ".join((family.__doc__ or "").split())
        rows = []
        for metric in family(Scrape(node="node1")):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            labels = ", ".join(f"`{each}`" for each in getattr(metric, "_labelnames", ()))
            rows.append(f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |")
        parts += [f"## {family.__name__.replace('_', ' ').capitalize()}\n\n{words}\n"]
        parts += ["\n".join(("| metric | type | labels | |", "|---|---|---|---|", *rows, ""))]
    return "\n".join(parts)
