"""Rollouts on a real etcd: two nodes that run them, and one that is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest

from lb.lab.etcd import Etcd
from lb.lab.shell import wait_until
from lb.model import keys
from lb.model.objects import Backend, Service
from lb.model.reports import NodeStatus
from lb.model.rollout import Rollout, RolloutSpec
from lb.node.rollouts import LEASE_SECONDS, RETRY_SECONDS, Rollouts
from lb.store import rollouts as stored
from lb.store.base import Delete, Put, Store
from lb.store.opening import open_store

PATIENCE = 30.0
RUNNER = """
import sys, time
from lb.node.rollouts import Rollouts
from lb.store.opening import open_store
Rollouts(open_store(sys.argv[1]), sys.argv[2]).start()
while True:
    time.sleep(60)
"""


@pytest.fixture
def store(etcd: Etcd) -> Iterator[Store]:
    """With a service, its canary, and a node that has applied whatever comes."""
    with open_store(etcd.url) as opened:
        documents: list[tuple[str, Service | Backend | NodeStatus]] = [
            (keys.service("web"), Service(name="web", vip=IPv4Address("198.51.100.1"), port=80)),
            *(
                (
                    keys.backend("web", name),
                    Backend(service="web", name=name, address=IPv4Address("203.0.113.1"), pool=pool),
                )
                for name, pool in (("b1", "stable"), ("c1", "canary"))
            ),
            (
                keys.node("n0"),
                NodeStatus(
                    node="n0", version="1", pid=1, started=0.0, revision=1 << 40, links=(), pin_dir="/"
                ),
            ),
        ]
        opened.commit([Put(key, document.model_dump_json()) for key, document in documents])
        yield opened


def begin(store: Store, every: float) -> None:
    steps = (1.0, 10.0, 50.0)
    spec = RolloutSpec(pool="canary", steps=steps, every=every, when=time.time())
    rollout = Rollout(service="web", id="r1", spec=spec)
    store.commit([Put(keys.rollout("web"), rollout.model_dump_json())])


def rollout(store: Store) -> Rollout:
    found = stored.find(store, "web")
    assert found is not None
    return found.rollout


def until(condition: Callable[[], bool]) -> None:
    wait_until("the rollout", condition, timeout=PATIENCE)


def test_one_of_two_is_killed_and_the_other_goes_on(etcd: Etcd, store: Store) -> None:
    children = {
        name: subprocess.Popen([sys.executable, "-c", RUNNER, etcd.url, name]) for name in ("n1", "n2")
    }
    try:
        begin(store, 2.0)
        until(lambda: rollout(store).status.phase == "baking")
        runs = rollout(store).status.history[-1].by
        assert runs in children
        children[runs].kill()
        killed = time.monotonic()
        [other] = set(children) - {runs}
        until(lambda: rollout(store).status.history[-1].by == other)
        # Its lease, what is left of a step, and some time for a busy machine.
        assert time.monotonic() - killed < LEASE_SECONDS + RETRY_SECONDS + 2.0 + 15.0
        until(lambda: rollout(store).is_over)
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    history = rollout(store).status.history
    assert rollout(store).status.phase == "promoted"
    assert [each.split["canary"] for each in history if each.split] == [1, 10, 50, 100]


def test_two_that_both_believe_to_run_it_do_nothing_twice(etcd: Etcd, store: Store) -> None:
    """The lock is taken away from each again and again: at any time both may be at it."""
    begin(store, 0.05)
    with open_store(etcd.url) as one, open_store(etcd.url) as two:
        runners = [Rollouts(one, "n1"), Rollouts(two, "n2")]
        for each in runners:
            each.start()
        deadline = time.monotonic() + PATIENCE
        while not rollout(store).is_over:
            assert time.monotonic() < deadline
            store.commit([Delete(keys.ROLLOUT_LOCK)])
            time.sleep(0.02)
        for each in runners:
            each.stop()
    history = rollout(store).status.history
    assert rollout(store).status.phase == "promoted"
    assert [each.split["canary"] for each in history if each.split] == [1, 10, 50, 100]
    phases = [(each.step, each.phase) for each in history]
    assert len(phases) == len(set(phases))
