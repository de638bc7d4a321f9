"""A row is one figure with its spread; all results are rows. Reading, writing, summing up."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One case of one peer. `case` is "section: label"; `ratio_to_floor` is the median over what
    can't be undercut (the least movement, the empty program, the bare interpreter)."""

    suite: str
    case: str
    peer: str
    unit: str
    median: float
    min: float
    max: float
    n: int
    ratio_to_floor: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies a row across runs."""
        return self.suite, self.case, self.peer

    @property
    def section(self) -> str:
        """The part of `case` before the colon."""
        return self.case.partition(": ")[0]

    @property
    def label(self) -> str:
        """The part of `case` after the colon."""
        return self.case.partition(": ")[2] or self.case


@dataclass(frozen=True)
class Options:
    """How much time a suite may take."""

    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        """One of the two, as asked for."""
        return quick if self.quick else full


def row(
    suite: str,
    case: str,
    peer: str,
    unit: str,
    values: Sequence[float],
    floor: float | None = None,
    *,
    ratio: float | None = None,
) -> Row:
    """Median and spread of what was measured; the ratio is given, or the median over `floor`."""
    if not values:
        raise ValueError(f"{suite}: {case}: nothing was measured")
    median = statistics.median(values)
    if ratio is None and floor:
        ratio = median / floor
    return Row(suite, case, peer, unit, median, min(values), max(values), len(values), ratio)


def interleaved(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure all cases once per round, each round beginning with another one, so that phases of the
    machine hit all alike."""
    order = list(cases)
    found: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(rounds):
        start = turn % len(order)
        for name in order[start:] + order[:start]:
            found[name].append(cases[name]())
    return found


def stopwatch(work: Callable[[], object]) -> Callable[[], float]:
    """A case for `interleaved`: how many ms `work` takes."""

    def measure() -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3

    return measure


def write(path: Path, rows: Sequence[Row]) -> None:
    """A list of objects, one a line, so that versions can be compared with diff."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(each)) for each in rows)
    path.write_text(f"[\n{lines}\n]\n")


def read(path: Path) -> list[Row]:
    """What write() wrote. Raises ValueError for a file that isn't."""
    try:
        return [Row(**each) for each in json.loads(path.read_text())]
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a result of bench: {error}") from error
