"""The tables of docs/performance.md, from the results that are committed (bench/results/latest.json).

`python -m bench.document` writes them, and so does a whole `make bench`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import goals, growth, live, requests, rows
from bench.goals import GOALS, LB, Figures
from bench.load import FLOWS
from bench.packet import FEW, MANY, MANY_LABEL, SOME
from bench.rows import RESULTS, Row

PAGE = Path(__file__).resolve().parents[1] / "docs/performance.md"
_PART = re.compile(r"(<!-- figures: (\w+) -->\n).*?(\n<!-- end of figures -->)", re.DOTALL)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    first, *rest = (f"| {' | '.join(cells)} |".replace("  ", " ") for cells in (head, *lines))
    return "\n".join((first, "|---" * len(head) + "|", *rest))


def machine(found: Figures) -> str:
    """What it ran on."""
    (each,) = found.all("machine")
    load = f"between {each.min:.1f} and {each.max:.1f} processes"
    return f"{each.peer}; load (average over a minute, before, between and after the suites) {load}."


def goal_table(found: Figures) -> str:
    """Every goal, and whether it is met."""
    values = goals.values(found.rows)
    lines = []
    for goal in GOALS:
        value = values.get(goal.name)
        sign = "≥" if goal.at_least else "≤"
        shown = "not measured" if value is None else f"{value:.2f}"
        verdict = "met" if goal.met(value) else "**missed**"
        lines.append([goal.name, f"{sign} {goal.limit:.2f}", shown, verdict])
    return table(("", "goal", "measured", ""), lines)


def _cells(found: Figures, *keys: tuple[str, str, str]) -> list[str]:
    """Medians, and nothing where nothing was measured."""
    have = {each.key: each for each in found.rows}
    shown = (have[key].median if key in have else None for key in keys)
    return ["" if v is None else f"{v:,.0f}" if v >= 1000 else f"{v:.3g}" for v in shown]


def live_table(found: Figures) -> str:
    """Peers by flows."""
    counts = (1, SOME, MANY, FLOWS)
    measured: list[tuple[str, str]] = []
    for each in found.all(live.SUITE):
        if (each.peer, each.label) not in measured:
            measured.append((each.peer, each.label))
    lines = []
    for peer, what in measured:
        keys = [(live.SUITE, f"{MANY_LABEL[n]}: {what}", peer) for n in counts]
        lines.append([f"{peer}, {what}", *_cells(found, *keys)])
    return table(("", *(MANY_LABEL[n] for n in counts)), lines)


def request_table(found: Figures) -> str:
    """What each peer does: keep-alive, and with a connection each."""
    figures = (
        "answers",
        "latency p50",
        "latency p99",
        "CPU for 10,000 requests",
        "CPU over direct, of HAProxy's",
    )
    words = (
        "answers a second",
        "p50, ms",
        "p99, ms",
        "CPU seconds for 10,000",
        "CPU over direct, of HAProxy's",
    )
    peers = dict.fromkeys(each.peer for each in found.all(requests.SUITE))
    parts = []
    for how in (requests.KEEP, requests.CLOSE):
        lines = []
        for peer in peers:
            keys = ((requests.SUITE, f"{what}: {how}", peer) for what in figures)
            lines.append([peer, *_cells(found, *keys)])
        parts.append(table((how, *words), lines))
    return "\n\n".join(parts)


def growth_table(found: Figures) -> str:
    """Ratios to the floor."""
    columns = ((1, False), (FEW, False), (FEW, True), (SOME, True), (FLOWS, True))
    have = {each.key: each for each in found.rows}
    lines = []
    for services, backends in growth.SIZES:
        cells = [f"{services:,} x {backends:,}"]
        for flows, spread in columns:
            name = growth.label(services, backends, spread=spread)
            each = have.get((growth.SUITE, f"{MANY_LABEL[flows]}: {name}", LB))
            shown = each and each.ratio_to_floor is not None
            cells.append(f"{each.median:.0f} ns = {each.ratio_to_floor:.2f}" if each and shown else "")
        lines.append(cells)
    head = [f"{MANY_LABEL[n]} to {'all' if spread else 'one'}" for n, spread in columns]
    return table(("services x backends of each", *head), lines)


PARTS: dict[str, Callable[[Figures], str]] = {
    "machine": machine,
    "goals": goal_table,
    "live": live_table,
    "requests": request_table,
    "growth": growth_table,
}


def filled(page: str, measured: Sequence[Row]) -> str:
    """The page with these figures in it."""
    found = Figures(measured)
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]](found)}\n{part[3]}", page)


def write() -> None:
    """The page, with the figures of the last whole run."""
    PAGE.write_text(filled(PAGE.read_text(), rows.read(RESULTS / "latest.json")))


if __name__ == "__main__":
    write()
