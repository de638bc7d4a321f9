"""Drains that have an end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lb.core.deadlines import next_deadline, overdue
from lb.core.state import DesiredState, parse
from lb.errors import StoreDenied
from lb.model import keys
from lb.model.objects import Admin, Backend
from lb.node.drains import Drains
from lb.store.base import Put
from lb.store.opening import open_store
from lb.store.sqlite import SqliteStore


def backend(name: str, admin: Admin, until: float | None) -> Backend:
    return Backend.model_validate(
        {"service": "web", "name": name, "address": "203.0.113.11", "admin": admin, "drain_until": until}
    )


def state_of(*backends: Backend) -> DesiredState:
    return DesiredState(backends={("web", each.name): each for each in backends})


def test_only_a_drain_with_an_end_ends() -> None:
    drain = backend("b1", Admin.DRAIN, 100.0)
    later = backend("b2", Admin.DRAIN, 200.0)
    open_end = backend("b3", Admin.DRAIN, None)
    up = backend("b4", Admin.UP, 50.0)
    state = state_of(drain, later, open_end, up)
    assert next_deadline(state) == 100.0
    assert overdue(state, 99.9) == []
    assert overdue(state, 100.0) == [backend("b1", Admin.DOWN, None)]
    assert next_deadline(state_of(open_end, up)) == next_deadline(DesiredState()) == math.inf


def test_it_is_written_once_and_not_over_what_somebody_wants_now(tmp_path: Path) -> None:
    drain = backend("b1", Admin.DRAIN, 100.0)
    key = keys.backend("web", "b1")
    with open_store(str(tmp_path / "store.db")) as store:

        def read() -> DesiredState:
            found = store.read(keys.ROOT)
            return parse(found.revision, [(i.key, i.value, i.mod_revision) for i in found.items])

        service = '{"name": "web", "vip": "198.51.100.100", "port": 80}'
        store.commit([Put(keys.service("web"), service), Put(key, drain.model_dump_json())])
        state, drains = read(), Drains(store)
        assert drains.due(state) == 100.0
        # A person is faster.
        store.commit([Put(key, drain.model_copy(update={"admin": Admin.UP}).model_dump_json())])
        drains.end(state, 100.0)
        assert read().backends["web", "b1"].admin is Admin.UP
        assert drains.due(state) == math.inf  # it waits for the news, and doesn't try again
        store.commit([Put(key, drain.model_dump_json())])
        state = read()
        assert drains.due(state) == 100.0
        drains.end(state, 100.0)
        ended = read()
        assert ended.backends["web", "b1"] == backend("b1", Admin.DOWN, None)
        assert drains.due(ended) == math.inf


@pytest.mark.parametrize(
    "stored", ['"admin": "up", "zone": "a field of a newer lbctl"', '"weight": "many"']
)
def test_what_is_stored_and_cannot_be_read_is_not_written_over(tmp_path: Path, stored: str) -> None:
    """The drain is known from memory: what is there instead may be that it was called off."""
    drain = backend("b1", Admin.DRAIN, 100.0)
    key = keys.backend("web", "b1")
    text = f'{{"service": "web", "name": "b1", "address": "203.0.113.11", {stored}}}'
    with open_store(str(tmp_path / "store.db")) as store:

        def read(before: DesiredState | None = None) -> DesiredState:
            found = store.read(keys.ROOT)
            items = [(i.key, i.value, i.mod_revision) for i in found.items]
            return parse(found.revision, items, before)

        service = '{"name": "web", "vip": "198.51.100.100", "port": 80}'
        other = backend("b2", Admin.DRAIN, 200.0).model_copy(update={"address": "203.0.113.12"})
        puts = [
            Put(keys.service("web"), service),
            Put(key, drain.model_dump_json()),
            Put(keys.backend("web", "b2"), other.model_dump_json()),
        ]
        store.commit(puts)
        state, drains = read(), Drains(store)
        store.commit([Put(key, text)])
        state = read(state)
        assert state.backends["web", "b1"] == drain
        assert drains.due(state) == 200.0  # and not in the past, again and again
        drains.end(state, 300.0)
        found = store.get(key)
        assert found is not None
        assert found.value == text
        state = read(state)
        assert state.backends["web", "b2"].admin is Admin.DOWN  # others are not held up
        # Its end comes when it is there again, and can be read.
        store.commit([Put(key, drain.model_dump_json())])
        state = read(state)
        assert drains.due(state) == 100.0
        drains.end(state, 300.0)
        assert read().backends["web", "b1"].admin is Admin.DOWN


def test_a_drain_that_cannot_be_written_is_said_and_tried_again(tmp_path: Path) -> None:
    class Denying(SqliteStore):
        denied = True

        def commit(self, *arguments: Any) -> int:
            if self.denied:
                raise StoreDenied("permission denied", hint="ask for it")
            return super().commit(*arguments)

    over = backend("b1", Admin.DRAIN, 100.0)
    state = DesiredState(backends={("web", "b1"): over})
    with Denying(tmp_path / "store.db") as store:
        drains = Drains(store)
        assert drains.end(state, 100.0)
        [problem] = drains.problems
        assert (problem.where, problem.hint) == (keys.backend("web", "b1"), "ask for it")
        assert drains.due(state) == 101.0
        assert not drains.end(state, 101.0)  # nothing new to say
        store.denied = False
        assert drains.end(state, 102.0)
        assert (drains.problems, drains.due(state)) == ((), math.inf)
