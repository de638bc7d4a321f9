"""What the Maglev paper says of itself, next to what this run measured.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016. Only figures
that stand in its text; none is read off a plot. Its machines were others, so times compare in ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.rows import Row

_EVEN = "evenness, max over exact share: N = 1,000, equal weights"


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, and where this run has the same: (suite, case, peer), for the peer of
    the paper and for us."""

    where: str
    says: str
    theirs: tuple[str, str]
    ours: tuple[str, str]


CLAIMS = (
    Claim(
        "3.4",
        "M larger than 100 x N ensures at most 1 % difference in hash space (here M = 65 x N)",
        (_EVEN, "Maglev 65,537"),
        (_EVEN, "lb 65,536"),
    ),
    Claim(
        "5.3",
        "1,000 backends, M = 65,537: rendezvous must be overprovisioned by 49.5 %, Maglev is almost"
        " perfectly balanced",
        (_EVEN, "HRW 65,537"),
        (_EVEN, "lb 65,536"),
    ),
    Claim(
        "5.3",
        "1,000 backends, M = 655,373: rendezvous must be overprovisioned by 12.3 %",
        (_EVEN, "HRW 655,373"),
        (_EVEN, "lb 65,536"),
    ),
    Claim(
        "5.3",
        "table generation takes 1.8 ms at M = 65,537 (the number of backends is not stated)",
        ("rebuild: N = 1,000", "Maglev 65,537 (C)"),
        ("rebuild: N = 1,000", "lb, one weight changed"),
    ),
    Claim(
        "5.3",
        "table generation takes 22.9 ms at M = 655,373",
        ("rebuild: N = 1,000", "Maglev 655,373 (C)"),
        ("rebuild: N = 1,000", "lb, one weight changed"),
    ),
)


def compared(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table; only what was measured."""
    known = {(each.case, each.peer): each for each in rows if each.suite == "slots"}
    lines = []
    for claim in CLAIMS:
        theirs, ours = known.get(claim.theirs), known.get(claim.ours)
        if theirs is None or ours is None:
            continue
        lines.append(
            f"| {claim.where} | {claim.says} | {theirs.peer}: {theirs.median:.4g} {theirs.unit}"
            f" | {ours.median:.4g} {ours.unit} |"
        )
    if not lines:
        return []
    head = ["| section | the paper says | measured here | lb, measured here |", "|---|---|---|---|"]
    return head + lines
