"""The desired state, followed while the store is there and while it isn't; and lbd's inbox."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from lb.core.state import DesiredState
from lb.errors import StoreUnavailable
from lb.model import keys
from lb.model.objects import Backend, ClusterConfig, Service
from lb.node.desired import RETRY_SECONDS, Desired
from lb.node.happenings import Audit, Happening, NetlinkChanged, RolloutsChanged, Stop
from lb.node.inbox import Inbox
from lb.node.last_known import LastKnown
from lb.store.base import Batch, Put, Snapshot, Watch
from lb.store.sqlite import SqliteStore


class Flaky(SqliteStore):
    """Some of its reads fail."""

    failing = 0

    def read(self, prefix: str, *, revision: int | None = None) -> Snapshot:
        if self.failing:
            self.failing -= 1
            raise StoreUnavailable("no answer")
        return super().read(prefix, revision=revision)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Flaky]:
    with Flaky(tmp_path / "store.db") as store:
        web = Service(name="web", vip=ip_address("198.51.100.1"), port=80)
        config = ClusterConfig(seed="00" * 16)
        store.commit(
            [
                Put(keys.CONFIG, config.model_dump_json()),
                Put(keys.service("web"), web.model_dump_json()),
                backend("b1"),
            ]
        )
        yield store


def backend(name: str, weight: int = 100) -> Put:
    document = Backend(
        service="web", name=name, address=ip_address(f"203.0.113.{name[1:]}"), weight=weight
    )
    return Put(keys.backend("web", name), document.model_dump_json())


def next_of(watch: Watch) -> Batch:
    batch = watch.next(10)
    assert batch is not None
    return batch


def test_what_came_with_a_read_that_failed_is_not_lost(store: Flaky, tmp_path: Path) -> None:
    told: list[DesiredState] = []
    desired = Desired(store, LastKnown("n1", tmp_path / "copy.json"), told.append)
    assert desired.read()
    assert (len(told), desired.due) == (1, math.inf)
    with store.watch(keys.ROOT, after=desired.state.revision) as watch:
        store.commit([backend("b2")])  # that needs a read
        store.failing = 2
        assert not desired.take_in(next_of(watch))
        assert (desired.in_touch, desired.due < math.inf) == (False, True)
        before = desired.state.revision
        store.commit([backend("b1", 50)])  # that would not
        later = next_of(watch)
        assert not desired.take_in(later)
        assert desired.state.revision == before  # nothing of it is said to be applied
        assert desired.take_in(later)
    assert {key[1]: each.weight for key, each in desired.state.backends.items()} == {"b1": 50, "b2": 100}
    assert (desired.in_touch, desired.due) == (True, math.inf)
    assert desired.read()
    assert desired.last_known.problems() == ()


def test_what_somebody_else_may_have_dropped_is_read(store: Flaky, tmp_path: Path) -> None:
    store.commit([backend("b2")])
    desired = Desired(store, LastKnown("n1", tmp_path / "copy.json"), lambda _: None)
    desired.read()
    with store.watch(keys.ROOT, after=desired.state.revision) as watch:
        store.commit([backend("b1", 50)])
        next_of(watch)  # and nobody takes it in
        before = time.monotonic()
        desired.doubt()
        assert desired.due >= before + RETRY_SECONDS  # what fails may fail for long
        assert desired.in_touch
        store.commit([backend("b2", 70)])
        assert desired.take_in(next_of(watch))
    assert [each.weight for each in desired.state.backends.values()] == [50, 70]
    assert desired.due == math.inf


def test_what_was_put_off_comes_before_what_came_later() -> None:
    inbox = Inbox()
    first, second, third = RolloutsChanged(frozenset("a")), NetlinkChanged({}), Audit()
    for each in (first, second):
        inbox.put(each)
    assert inbox.next(0) is first
    inbox.put_off(first)
    assert inbox.next(0) is second
    inbox.put(third)
    assert inbox.everything(math.inf) == [first, third]
    assert inbox.everything(0) == []
    assert inbox.next(-1) is None


def test_whoever_waits_is_woken() -> None:
    inbox = Inbox()
    found: list[Happening] = []
    waiting = threading.Thread(target=lambda: found.extend(inbox.everything(60)))
    waiting.start()
    inbox.put(Stop())
    waiting.join(10)
    assert found == [Stop()]
