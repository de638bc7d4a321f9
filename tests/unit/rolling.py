"""A node's rollouts, turned by hand, and what has become of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lb.model import keys
from lb.model.objects import Service
from lb.model.rollout import Phase, Rollout
from lb.node.rollouts import Rollouts
from lb.store import rollouts as stored
from lb.store.base import Store

STEPS = ("--to", "canary", "--steps", "10,100", "--every", "60s", "--no-analysis")


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


def rollout(store: Store, service: str = "web") -> Rollout:
    found = stored.find(store, service)
    assert found is not None
    return found.rollout


def phase(store: Store) -> Phase:
    return rollout(store).status.phase


def split(store: Store) -> dict[str, float]:
    item = store.get(keys.service("web"))
    assert item is not None
    return Service.model_validate_json(item.value).split


def settle(runner: Runner) -> None:
    """Until nothing happens by itself: the node has applied what was written."""
    deadline = time.monotonic() + 10
    while True:
        before = rollout(runner.store)
        if runner.turn() >= 1.0 and rollout(runner.store) == before:
            present = stored.sight(runner.store, "web").view
            if all(each.revision >= present.version for each in present.nodes.values()):
                runner.turn()
                if rollout(runner.store) == before:
                    return
        assert time.monotonic() < deadline
        time.sleep(0.01)
