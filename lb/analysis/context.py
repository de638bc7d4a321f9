"""What the outside is told, and how its answers are read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lb.model.document import LARGEST_FIGURE
from lb.model.evidence import Measurement
from lb.probe.base import DEFAULT_EXEC_DIR, excerpt

MAX_ANSWER = 65536  # bytes


class NotMeasured(Exception):
    """The outside gave no figure; the message says why, for people."""


@dataclass(frozen=True)
class Context:
    """What is asked about; queries, programs and webhooks get all of it."""

    service: str
    stable: str  # name of the pool
    canary: str
    stable_backends: tuple[str, ...]
    canary_backends: tuple[str, ...]
    step: int  # from 0
    share: float  # of the canary, per cent
    seconds: float  # length of the window that just ended
    exec_dir: Path = DEFAULT_EXEC_DIR  # where programs may be

    @property
    def alone(self) -> bool:
        """Does the canary have all of the traffic, so that there is nobody to compare with?"""
        return self.share >= 100

    def document(self, metric: str) -> str:
        """As JSON, for programs and webhooks."""
        fields = {name: value for name, value in asdict(self).items() if name != "exec_dir"}
        return json.dumps({"metric": metric, **fields})

    def filled(self, query: str, *, canary: bool) -> str:
        """A query with its places filled in; other braces, as PromQL has them, stay."""
        backends = self.canary_backends if canary else self.stable_backends
        places = {
            "service": self.service,
            "pool": self.canary if canary else self.stable,
            "backends": "|".join(backends),
            "step": str(self.step),
            "share": f"{self.share:g}",
            "seconds": f"{max(1, round(self.seconds))}",
        }
        for name, value in places.items():
            query = query.replace("{" + name + "}", value)
        return query


def read_answer(answer: bytes) -> Measurement:
    """The figures in what a program or webhook answers. Raises NotMeasured."""
    if len(answer) > MAX_ANSWER:
        raise NotMeasured(f"the answer is longer than {MAX_ANSWER} bytes")
    try:
        # Python reads 1e400 as infinity, and nesting without an end as RecursionError.
        found = json.loads(answer)
    except (ValueError, RecursionError):
        said = excerpt(answer) if answer.strip() else "empty"
        raise NotMeasured(f"the answer is neither a number nor JSON: it is {said}") from None
    if not isinstance(found, dict):
        return Measurement(canary=number(found))
    if "canary" not in found:
        raise NotMeasured(f'the answer has no "canary": it is {excerpt(answer)}')
    stable = found.get("stable")
    return Measurement(canary=number(found["canary"]), stable=None if stable is None else number(stable))


def number(value: Any) -> float:
    """A finite number, and not too large to be reckoned with. Raises NotMeasured."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotMeasured(f"{excerpt(repr(value))} is not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not abs(found) <= LARGEST_FIGURE:
        raise NotMeasured(f"the answer is {found}, which is no figure")
    return found
