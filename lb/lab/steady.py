"""Requests from the client at a steady pace, while something happens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lb.lab.base import Namespaces
from lb.lab.shell import PATIENCE, LabError, environment, in_namespace
from lb.lab.topology import Address


@dataclass
class Requests:
    """What came of a client's requests."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    slowest_ms: int = 0

    @property
    def failed(self) -> int:
        """All that went wrong: no connection, no answer in time, another answer than 200."""
        return self.failures.total()

    @property
    def total(self) -> int:
        """All that were made."""
        return self.answers.total() + self.failed

    def take(self, output: str) -> None:
        """What lb/lab/asking.py printed at its end."""
        found = json.loads(output)
        self.answers += Counter(found["answers"])
        self.failures += Counter(found["failures"])
        self.slowest_ms = max(self.slowest_ms, found["slowest_ms"])


@contextmanager
def traffic(place: Namespaces, address: Address, rate: float) -> Iterator[Requests]:
    """`rate` requests a second, each a connection of its own; what came of them is known after the
    block. It begins when the first was answered."""
    found = Requests()
    argv = [sys.executable, "-m", "lb.lab.asking", str(address), "80", str(rate)]
    child = subprocess.Popen(
        in_namespace(place.namespace("client"), argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    try:
        assert child.stdout
        if not child.stdout.readline():
            raise LabError("the client ended at once")
        yield found
        found.take(child.communicate(timeout=30 * PATIENCE)[0])  # the end of its input ends it
    finally:
        child.kill()
        child.wait()
