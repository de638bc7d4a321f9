"""`make bench-compare OLD=file.json`: what changed between two results.

Rows of the same suite, case and peer are compared by the ratio of their medians, new over old, and
where both have a floor by the ratio of their ratios, which a slower phase of the machine leaves alone.
A change counts only if the two spreads do not overlap.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import rows
from bench.rows import RESULTS, Row


@dataclass(frozen=True)
class Change:
    """One row in two runs."""

    old: Row
    new: Row

    @property
    def ratio(self) -> float | None:
        """New median over old; None if the old one is 0."""
        return self.new.median / self.old.median if self.old.median else None

    @property
    def ratio_over_floor(self) -> float | None:
        """The same, each in terms of its own run's floor."""
        old, new = self.old.ratio_to_floor, self.new.ratio_to_floor
        return new / old if old and new is not None else None

    @property
    def clear(self) -> bool:
        """Do the spreads not overlap?"""
        return self.new.min > self.old.max or self.new.max < self.old.min


def compare(old: Sequence[Row], new: Sequence[Row]) -> list[Change]:
    """Rows that both have and that measure something in the same unit, in the order of `new`."""
    before = {each.key: each for each in old if each.suite != "machine"}
    pairs = ((before.get(each.key), each) for each in new)
    return [Change(was, now) for was, now in pairs if was is not None and was.unit == now.unit]


def missing(old: Sequence[Row], new: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that only `old` has, and that only `new` has."""
    one, other = {each.key for each in old}, {each.key for each in new}
    return [each for each in old if each.key not in other], [each for each in new if each.key not in one]


def table(changes: Sequence[Change]) -> list[str]:
    """Markdown; clear changes first, the largest first."""

    def size(change: Change) -> float:
        ratio = change.ratio_over_floor or change.ratio or 1.0
        return max(ratio, 1 / ratio) if ratio > 0 else 1.0

    lines = ["| suite | case | peer | old | new | new/old | over floor | |", "|---" * 8 + "|"]
    for each in sorted(changes, key=lambda change: (not change.clear, -size(change))):
        old, new = each.old, each.new
        lines.append(
            f"| {new.suite} | {new.case} | {new.peer} | {old.median:.4g} | {new.median:.4g} {new.unit} |"
            f" {_ratio(each.ratio)} | {_ratio(each.ratio_over_floor)} |"
            f" {'clear' if each.clear else 'within the spread'} |"
        )
    return lines


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=RESULTS / "latest.json")
    chosen = parser.parse_args(arguments)
    try:
        old, new = rows.read(chosen.old), rows.read(chosen.new)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    changes = compare(old, new)
    print("\n".join(table(changes)))
    gone, fresh = missing(old, new)
    clear = sum(each.clear for each in changes)
    print(f"\n{len(changes)} rows compared, {clear} clearly changed; {len(gone)} gone, {len(fresh)} new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
