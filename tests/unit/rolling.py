"""A node's rollouts, turned by hand."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lb.node.rollouts import Rollouts
from lb.store.base import Store


@dataclass
class Runner:
    """One lbd's rollouts, turned by hand."""

    store: Store
    name: str = "n1"
    now: float = 0.0
    set_ahead: float = 0.0  # of `now`, by somebody

    def __post_init__(self) -> None:
        self.now = time.time()
        self.live: list[frozenset[str]] = []
        self.rollouts = Rollouts(
            self.store,
            self.name,
            self.live.append,
            lambda: self.now,
            lambda: self.now - self.set_ahead,
        )

    def set_clock(self, ahead: float) -> None:
        """As somebody does with `date -s`: seconds, negative if back."""
        self.now += ahead
        self.set_ahead += ahead

    def turn(self, later: float = 0.0) -> float:
        self.now += later
        return self.rollouts.turn(time.monotonic())
