"""Rows as Markdown, with plots beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import paper, plot
from bench.rows import Row

_PROSE = {
    "machine": "What this ran on. Others may have been at work: compare ratios within one run, never"
    " figures of different runs.",
    "slots": "Ours beside Maglev (NSDI'16, section 3.4; weights as in Katran's MaglevHashV2) and"
    " weighted rendezvous (HRW). A cell is the median over trials (least to greatest); ...x is the ratio"
    " to the part of the traffic that has to change hands between the exact shares. Rounding to whole"
    " slots lets an even table come out a little below 1; the strict figure, *moved over the least from"
    " that table*, never does.",
    "packet": "ns per packet by BPF_PROG_TEST_RUN on one pinned CPU. Before each call a wrapper writes"
    " the 80-byte frame anew from a template, and the flow from a table (bench/wrapper.c); its cost is"
    " the *empty wrapper*, and is part of all figures. ...x is the ratio to *parse + swap + TX*,"
    " the median of the rounds. `dsr`, `ipip` and `gue` go back out of the interface they came in"
    " by (XDP_TX), `nat` and `fullnat` out of another (XDP_REDIRECT). Flows are uniform, walked in"
    " another order than inserted; conntrack has 131,072 entries, and 2 M where 100 k or 1 M flows are"
    " known. That packets met the verdict, and flows were known or new as stated, is checked by the"
    " programs' own counters. Nothing is sent.",
    "growth": "As in `packet`. *To all of them*: each flow goes to one of the services, in turn, so what"
    " a packet needs of tables, backends and counters is rarely in the processor's caches when there is"
    " much of it. 1,000 services of 1,000 backends would be a million backends: left out.",
    "live": "Frames that travel over veth pairs, generator and all on one CPU, in Mpps; ...x is the"
    " ratio to the *redirect floor* of as many flows in the same round. lb redirects in all modes."
    " nftables has no 1 M flows: the kernel's connection tracking holds 262,144 for the whole machine.",
    "requests": "wrk with 16 connections, one nginx, everything on this machine; ...x is the ratio to"
    " the direct path. CPU is of the whole machine, less that of processes that are none of the lab's."
    " The *redirect floor* is the least that an XDP program can do in the path of `nat` (bench/road.c),"
    " *kernel forwarding* that path without a program.",
    "daemon": "A real lbd in the lab, with three services of four backends.",
    "checks": "Health checks: lbd's parts in one process, one nginx on the loopback. late_p99 is by how"
    " much 99 of 100 checks began late at most.",
    "fleet": "Three nodes: lbd, etcd (three members) and kernels in namespaces of this machine, seen at"
    " the pinned maps. A hundred: lbd's own loop without kernels, in a few processes on this machine,"
    " with an etcd of one member; all their work is done by its processors.",
    "control": "From desired state to kernel maps, on unpinned maps of the default limits.",
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def cell(each: Row) -> str:
    """Median (least to greatest) = its ratio to the floor."""
    text, least, greatest = (_number(value) for value in (each.median, each.min, each.max))
    if least != greatest:
        text += f" ({least} to {greatest})"
    if each.ratio_to_floor is not None:
        text += f" = {each.ratio_to_floor:.3g}x"
    return text


def markdown(rows: Sequence[Row], plots: Sequence[str] = ()) -> str:
    """All suites, one table per section, one column per peer."""
    parts = ["# Benchmark results", "", "Written by `python -m bench`; the same rows: latest.json.", ""]
    for suite in dict.fromkeys(each.suite for each in rows):
        parts += [f"## {suite}", "", _PROSE.get(suite, ""), ""]
        parts += [
            line for name in plots if name.startswith(suite) for line in (f"![{name}]({name})", "")
        ]
        mine = [each for each in rows if each.suite == suite]
        for section in dict.fromkeys(each.section for each in mine):
            parts += _table(section, [each for each in mine if each.section == section])
        if suite == "slots" and (claims := paper.compared(rows)):
            parts += ["### The Maglev paper's own figures", "", *claims, ""]
    return "\n".join(parts)


def _table(section: str, rows: Sequence[Row]) -> list[str]:
    peers = list(dict.fromkeys(each.peer for each in rows))
    units = list(dict.fromkeys(each.unit for each in rows))
    unit = f" ({units[0]})" if len(units) == 1 else ""
    lines = [f"### {section}{unit}", "", f"| | {' | '.join(peers)} |", "|---" * (len(peers) + 1) + "|"]
    for label in dict.fromkeys(each.label for each in rows):
        cells = {each.peer: each for each in rows if each.label == label}
        shown = [cell(cells[peer]) if peer in cells else "" for peer in peers]
        if not unit:
            shown = [
                f"{text} {cells[peer].unit}" if text else ""
                for text, peer in zip(shown, peers, strict=True)
            ]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return [*lines, ""]


def plots(rows: Sequence[Row]) -> dict[str, str]:
    """SVG by file name."""
    found: dict[str, str] = {}
    for label in ("N = 100, random weights", "N = 1,000, random weights"):
        moved = [
            each
            for each in rows
            if each.suite == "slots"
            and each.section.startswith("moved, ")
            and each.label == label
            and each.ratio_to_floor is not None
        ]
        if moved:
            groups = _grouped(
                (each.section[7:], each.peer, each.ratio_to_floor or 0.0) for each in moved
            )
            size = label.split()[2].strip(",").replace(",", "")
            title = f"Slots moved over what must change hands: {label}"
            found[f"slots-moved-{size}.svg"] = plot.bars(title, "x", groups)
    rebuilt = [each for each in rows if each.suite == "slots" and each.section == "rebuild"]
    if rebuilt:
        groups = _grouped((each.label, each.peer, each.median) for each in rebuilt)
        found["slots-rebuild.svg"] = plot.bars("Rebuilding one service's table", "ms", groups)
    found |= _plots_of_traffic(rows)
    packets = [
        each
        for each in rows
        if each.suite == "packet"
        and each.peer == "lb"
        and each.label.startswith(("dsr IPv4", "nat IPv4"))
    ]
    if packets:
        groups = _grouped((each.label, each.section, each.ratio_to_floor or 0.0) for each in packets)
        title = "ns per packet over parse + swap + TX"
        found["packet-flows.svg"] = plot.bars(title, "x", groups)
    return found


def _plots_of_traffic(rows: Sequence[Row]) -> dict[str, str]:
    """Suites `growth`, `live`, `requests`, `daemon`."""

    def chosen(suite: str, *sections: str) -> list[Row]:
        return [r for r in rows if r.suite == suite and (not sections or r.section in sections)]

    wanted = {
        "growth.svg": (
            "dsr: ns per packet over parse + swap + TX", "x",
            [(r.label, r.section, r.ratio_to_floor or 0.0) for r in chosen("growth") if r.peer == "lb"],
        ),
        "live.svg": (
            "Frames a second over veth", "Mpps",
            [(f"{r.peer}, {r.label}", r.section, r.median) for r in chosen("live")],
        ),
        "requests-answers.svg": (
            "Answers a second", "/s",
            [(r.peer, r.label, r.median) for r in chosen("requests", "answers")],
        ),
        "requests-cpu.svg": (
            "CPU of the whole machine for 10,000 requests", "s",
            [(r.peer, r.label, r.median) for r in chosen("requests", "CPU for 10,000 requests")],
        ),
        "requests-p99.svg": (
            "Latency, p99", "ms",
            [(r.peer, r.label, r.median) for r in chosen("requests", "latency p99")],
        ),
        "daemon-memory.svg": (
            "Memory of lbd", "MB",
            [(r.label, r.peer, r.median) for r in chosen("daemon", "memory")],
        ),
    }  # fmt: skip
    return {
        name: plot.bars(title, unit, _grouped(values))
        for name, (title, unit, values) in wanted.items()
        if values
    }


def _grouped(values: Iterable[tuple[str, str, float]]) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = {}
    for group, peer, value in values:
        groups.setdefault(group, {})[peer] = value
    return groups


def write(folder: Path, rows: Sequence[Row]) -> None:
    """latest.md and its plots."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots(rows)
    for name, svg in drawn.items():
        (folder / name).write_text(svg)
    (folder / "latest.md").write_text(markdown(rows, list(drawn)))
