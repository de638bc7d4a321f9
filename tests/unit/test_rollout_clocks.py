"""Rollouts while somebody sets the clock, and on nodes and machines whose clocks differ."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rolling import STEPS, Runner, phase, rollout, settle

from lb.errors import StoreUnavailable
from lb.model import keys
from lb.model.rollout import Phase
from lb.store import rollouts as stored
from lb.store.base import Put, Store


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_a_step_lasts_as_long_whatever_the_clock_is_set_to(
    canary: Any, store: Store, runner: Runner, ahead: float, caplog: pytest.LogCaptureFixture
) -> None:
    canary.ok("rollout", "start", "web", *STEPS, "--deadline", "10m")
    settle(runner)
    runner.turn(40)
    runner.set_clock(ahead)
    assert runner.turn() <= 1.5  # it looks as often as before
    runner.turn(19)
    assert rollout(store).status.step == 1
    runner.turn(1.5)
    assert rollout(store).status.step == 2
    settle(runner)
    assert phase(store) is Phase.BAKING
    assert "the clock was set by" in caplog.text
    runner.turn(50)
    assert rollout(store).status.step == 2
    runner.turn(11)
    settle(runner)
    assert phase(store) is Phase.PROMOTED


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
@pytest.mark.parametrize("written", [False, True])
def test_no_step_is_cut_short_when_the_store_goes_as_the_clock_is_set(
    canary: Any,
    store: Store,
    runner: Runner,
    monkeypatch: pytest.MonkeyPatch,
    ahead: float,
    written: bool,
) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    replace = stored.replace

    def unavailable(*arguments: Any) -> Any:
        if written:
            replace(*arguments)
        raise StoreUnavailable("away")

    runner.turn(40)
    runner.set_clock(ahead)
    with monkeypatch.context() as patched:
        patched.setattr(stored, "replace", unavailable)
        with pytest.raises(StoreUnavailable):
            runner.turn()
    runner.turn(19)
    assert rollout(store).status.step == 1
    for _ in range(2):  # at the latest its time began anew
        runner.turn(42)
    assert rollout(store).status.step == 2


def test_another_node_whose_clock_is_behind(canary: Any, store: Store, runner: Runner) -> None:
    canary.ok("rollout", "start", "web", *STEPS, "--deadline", "10m")
    settle(runner)
    runner.turn(40)
    runner.rollouts._lock.give_up()
    other = Runner(store, "n2")
    other.now = runner.now - 3600
    other.turn()
    other.turn(59)
    assert rollout(store).status.step == 1  # its time began anew
    other.turn(1.5)
    assert rollout(store).status.step == 2


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_the_deadline_is_by_the_nodes_clock(
    canary: Any, store: Store, runner: Runner, ahead: float
) -> None:
    runner.set_clock(ahead)  # not that of lbctl
    canary.ok("rollout", "start", "web", *STEPS, "--deadline", "10m", "--manual-gate")
    settle(runner)
    assert phase(store) is Phase.BAKING
    runner.turn(60)
    runner.set_clock(ahead)
    runner.turn(539)
    assert phase(store) is Phase.GATE
    runner.turn(2)
    assert rollout(store).status.ending == "deadline"


def test_the_deadline_counts_while_the_canary_is_waited_for(
    canary: Any, store: Store, runner: Runner, nodes: Any
) -> None:
    nodes.stop()
    nodes.put("n1", 0, health={"web/c1": {"state": "unknown", "since": 0.0, "share": 0.0}})
    canary.ok("rollout", "start", "web", *STEPS, "--deadline", "10m")
    for seconds, expected in ((0, Phase.PENDING), (599, Phase.PENDING), (2, Phase.ABORTED)):
        runner.turn(seconds)
        assert phase(store) is expected
    assert rollout(store).status.ending == "deadline"


def test_a_deadline_of_a_rollout_that_does_not_say_when_it_began(
    canary: Any, store: Store, runner: Runner
) -> None:
    """An lbd of before has begun it."""
    canary.ok("rollout", "start", "web", *STEPS, "--deadline", "10m", "--manual-gate")
    settle(runner)
    runner.turn(61)
    assert phase(store) is Phase.GATE
    document = json.loads(rollout(store).model_dump_json())
    del document["status"]["begun"]
    store.commit([Put(keys.rollout("web"), json.dumps(document))])
    runner.turn(530)
    assert phase(store) is Phase.GATE
    runner.turn(10)
    assert rollout(store).status.ending == "deadline"
