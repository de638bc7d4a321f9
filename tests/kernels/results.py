"""What the kernels said, and where that is kept: docs/reference/kernels.json, of which table.py makes
the page. A run replaces what is known of the parts that it ran, and leaves the rest."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import debian

KEPT = Path(__file__).parents[2] / "docs/reference/kernels.json"


@dataclass(frozen=True)
class Line:
    """How one test ended: passed, failed or skipped."""

    test: str
    outcome: str
    seconds: float = 0.0
    properties: dict[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Ran:
    """A part of the plan that was run. `status`: pytest's exit status; None: it came to no end, then
    `lines` are those of the tests that did."""

    part: str
    when: str  # the day, as 2026-11-26
    status: int | None = None
    seconds: float = 0.0
    lines: tuple[Line, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many tests ended how."""
        ended = Counter(line.outcome for line in self.lines)
        return {word: ended[word] for word in ("passed", "skipped", "failed")}

    @property
    def whole(self) -> bool:
        """Did everything run, and nothing fail?"""
        failed = any(line.outcome == "failed" for line in self.lines)
        return self.status == 0 and bool(self.lines) and not failed

    def says_less_than(self, old: Ran | None) -> bool:
        """It came to no end and saw nothing fail, and the old one did come to its end?"""
        failed = self.counts()["failed"]
        return old is not None and old.status is not None and self.status is None and not failed


@dataclass(frozen=True)
class Result:
    """What one kernel said, in the parts that were run."""

    series: str
    release: str
    parts: tuple[Ran, ...] = ()

    @property
    def lines(self) -> tuple[Line, ...]:
        """Those of all parts."""
        return tuple(line for part in self.parts for line in part.lines)

    def of(self, beginning: str) -> list[Line]:
        """The tests of a file, or one test in all its forms."""
        return [line for line in self.lines if line.test.startswith(beginning)]

    def outcome(self, beginning: str) -> str:
        """ "passed" if all of these did, "failed" if one did, "" if none was run, else "skipped"."""
        outcomes = {line.outcome for line in self.of(beginning)}
        return next((each for each in ("failed", "skipped", "passed") if each in outcomes), "")

    def recorded(self, beginning: str, name: str) -> Any:
        """What these tests recorded by this name, or None."""
        return next(
            (line.properties[name] for line in self.of(beginning) if name in line.properties), None
        )

    @property
    def failures(self) -> list[Line]:
        """The tests that failed."""
        return [line for line in self.lines if line.outcome == "failed"]

    @property
    def seconds(self) -> float:
        """How long its parts took."""
        return sum(part.seconds for part in self.parts)

    def whole(self, parts: Iterable[str]) -> bool:
        """Were all of these run, and nothing failed?"""
        return {*parts} <= {part.part for part in self.parts if part.whole}

    def with_newer(self, other: Result) -> Result:
        """With the parts of another run; only those, if it was of another package. What a test said
        last holds, whichever part it was in."""
        if other.release != self.release:
            return other
        parts = {part.part: part for part in self.parts}
        newer = [part for part in other.parts if not part.says_less_than(parts.get(part.part))]
        again = {line.test for part in newer for line in part.lines}
        for name, part in parts.items():
            left = tuple(line for line in part.lines if line.test not in again)
            parts[name] = replace(part, lines=left)
        parts |= {part.part: part for part in newer}
        return replace(self, parts=tuple(parts.values()))


def load(file: Path = KEPT) -> dict[str, Result]:
    """What is known, by series."""
    text = file.read_text() if file.exists() else ""
    raw = json.loads(text or "[]")
    results = [
        Result(
            each["series"],
            each["release"],
            tuple(
                Ran(**{**part, "lines": tuple(Line(**line) for line in part["lines"])})
                for part in each["parts"]
            ),
        )
        for each in raw
    ]
    return {result.series: result for result in results}


def keep(new: Sequence[Result], file: Path = KEPT) -> None:
    """Add what was measured just now: parts of which at least one test ended."""
    with file.open("a") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        known = load(file)
        for result in new:
            said = replace(result, parts=tuple(part for part in result.parts if part.lines))
            if said.parts:
                known[said.series] = known.get(said.series, said).with_newer(said)
        order = [each for each in debian.SERIES if each in known]
        order += sorted(known.keys() - set(order))
        file.write_text("[\n" + ",\n".join(_text(_short(known[each])) for each in order) + "\n]\n")


def _text(result: Result) -> str:
    """As JSON, a line for each test."""

    def text(part: Ran) -> str:
        raw = asdict(part)
        lines = [{key: value for key, value in line.items() if value} for line in raw.pop("lines")]
        written = ",\n".join(f"  {json.dumps(line, ensure_ascii=False)}" for line in lines)
        return f'{json.dumps(raw)[:-1]}, "lines": [\n{written}\n ]}}'

    parts = ",\n ".join(map(text, result.parts))
    head = json.dumps({"series": result.series, "release": result.release})
    return f'{head[:-1]}, "parts": [\n {parts}\n]}}'


def _short(result: Result) -> Result:
    """With the last line of what a failure said: the rest is in the log."""

    def shorter(line: Line) -> Line:
        return replace(line, why=next(iter(line.why.strip().splitlines()[::-1]), ""))

    parts = (replace(part, lines=tuple(map(shorter, part.lines))) for part in result.parts)
    return replace(result, parts=tuple(parts))
