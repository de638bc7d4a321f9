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

    def __post_init__(self) -> None:
        self.now = time.time()
        self.live: list[frozenset[str]] = []
        self.rollouts = Rollouts(self.store, self.name, self.live.append, lambda: self.now)

    def turn(self, later: float = 0.0) -> float:
        self.now += later
        return self.rollouts.turn(time.monotonic())
