"""Slot tables of a service of which a document can't be read: nodes may know different things of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lb.core import slots
from lb.core.state import DesiredState, parse
from lb.model import keys
from lb.node.planning import Bases
from lb.node.sharing import Sharing
from lb.store.base import Delete, Put, Store

BAD = '{"service": "web", "name": "b", "weight": "many"}'


def service(name: str = "web", **more: Any) -> Put:
    text = json.dumps({"name": name, "vip": f"198.51.100.{len(name)}", "port": 80, **more})
    return Put(keys.service(name), text)


def backend(name: str, of: str = "web", **more: Any) -> Put:
    address = f"203.0.113.{ord(name[0]) + 10 * len(of)}"
    return Put(
        keys.backend(of, name), json.dumps({"service": of, "name": name, "address": address, **more})
    )


class Node:
    """What an lbd does with tables: the real parse, memory, and turns."""

    def __init__(self, store: Store, name: str, last_known: DesiredState | None = None) -> None:
        self.store, self.state = store, last_known or DesiredState()
        self.bases = Bases()
        self.sharing = Sharing(store, name, self.bases)
        self.tables: dict[str, slots.Table] = {}

    def turn(self) -> int:
        """Follow the store; returns how many commits that made."""
        found = self.store.read(keys.EVERYTHING)
        items = [(each.key, each.value, each.mod_revision) for each in found.items]
        self.state = parse(found.revision, items, self.state)
        self.tables = self.bases.update(self.state)
        self.sharing.plan(self.state, 0.0)
        self.sharing.share_if_due(self.state, 1e9, held=False)
        return self.store.read(keys.TABLES).revision - found.revision


def settle(*nodes: Node) -> None:
    """Until nobody has anything to write."""
    for _ in range(5):
        if sum(node.turn() for node in nodes) == 0:
            return
    pytest.fail("they overwrite each other")


@pytest.fixture
def fleet(store: Store) -> Callable[[str], Node]:
    """Makes nodes of a fleet that serves `web` with b, c, d, e."""
    config = Put(keys.CONFIG, json.dumps({"seed": "0" * 32}))
    store.commit([config, service(), *(backend(name) for name in "bcde")])
    return lambda name: Node(store, name)


def test_a_node_that_never_saw_a_good_version_leaves_the_others_table_alone(
    fleet: Callable[[str], Node], store: Store
) -> None:
    one, two = fleet("one"), fleet("two")
    settle(one, two)
    shared = store.get(keys.table("web"))
    store.commit([Put(keys.backend("web", "b"), BAD)])
    new = fleet("new")
    assert [node.turn() for node in (new, one, two) * 3] == [0] * 9
    assert store.get(keys.table("web")) == shared
    assert one.tables["web"].counts()["b"] == 16384
    assert new.tables["web"].counts() == {"c": 21846, "d": 21845, "e": 21845}
    # It ends: all have the same again, and share what comes.
    store.commit([backend("b")])
    settle(new, one, two)
    assert store.get(keys.table("web")) == shared
    assert {node.tables["web"].digest for node in (one, two, new)} == {one.tables["web"].digest}
    store.commit([backend("b", weight=10)])
    settle(new, one, two)
    assert store.get(keys.table("web")) != shared
    assert {node.tables["web"].digest for node in (one, two, new)} == {one.tables["web"].digest}


def test_nor_does_one_whose_copy_is_older(fleet: Callable[[str], Node], store: Store) -> None:
    one, two = fleet("one"), fleet("two")
    settle(one, two)
    old = one.state
    store.commit([backend("b", weight=10)])
    settle(one, two)
    store.commit([Put(keys.backend("web", "b"), BAD)])
    back = Node(store, "back", old)
    shared = store.get(keys.table("web"))
    assert [node.turn() for node in (back, one, two) * 3] == [0] * 9
    store.commit([backend("b", weight=10)])
    settle(back, one, two)
    assert store.get(keys.table("web")) == shared
    assert back.tables["web"].digest == one.tables["web"].digest


def test_other_services_are_shared_meanwhile(fleet: Callable[[str], Node], store: Store) -> None:
    one, new = fleet("one"), fleet("new")
    settle(one)
    store.commit([Put(keys.backend("web", "b"), BAD), service("other"), backend("x", of="other")])
    settle(new, one)
    assert store.get(keys.table("other")) is not None


@pytest.mark.parametrize("bad", [keys.service("web"), keys.backend("web", "b")])
def test_pools_that_others_may_need_are_not_taken_out(
    fleet: Callable[[str], Node], store: Store, bad: str
) -> None:
    """A node of a newer version reads what we can't, and stores the table of a pool for it."""
    one = fleet("one")
    settle(one)
    good = store.get(bad)
    assert good is not None
    theirs = slots.to_document("web/canary", one.tables["web"])
    put = Put(keys.table("web/canary"), theirs.model_dump_json())
    store.commit([Put(bad, '{"new": "field"}'), put])
    assert [one.turn(), one.turn()] == [0, 0]
    assert store.get(put.key) is not None
    store.commit([Put(bad, good.value)])
    settle(one)
    assert store.get(put.key) is None


def test_tables_of_a_service_that_is_gone_go_also_when_its_backends_are_still_there(
    fleet: Callable[[str], Node], store: Store
) -> None:
    one = fleet("one")
    settle(one)
    store.commit([Delete(keys.service("web")), service("other")])
    settle(one)
    assert one.state.in_doubt == {"web"}  # its backends have no service
    assert store.get(keys.table("web")) is None


def test_a_service_with_a_bad_backend_from_its_beginning_is_served_and_shared_when_it_ends(
    store: Store,
) -> None:
    bad = Put(keys.backend("web", "b"), BAD)
    config = Put(keys.CONFIG, json.dumps({"seed": "0" * 32}))
    store.commit([config, service(), bad, *(backend(name) for name in "cde")])
    one, two = Node(store, "one"), Node(store, "two")
    settle(one, two)
    assert one.tables["web"].counts() == {"c": 21846, "d": 21845, "e": 21845}
    assert store.get(keys.table("web")) is None
    before = one.tables["web"]
    store.commit([backend("c", weight=400)])
    settle(one, two)
    moved = slots.moved(before, one.tables["web"])
    assert sum(run[1] for run in one.tables["web"].moves) == moved > 0
    late = Node(store, "late")  # saw nothing of it
    settle(late)
    assert one.tables["web"].digest == two.tables["web"].digest == late.tables["web"].digest
    before = one.tables["web"]
    store.commit([Delete(bad.key)])
    settle(one, two)
    assert slots.moved(before, one.tables["web"]) == 0
    shared = one.state.tables["web"]
    assert slots.equal(slots.from_document(shared), one.tables["web"])
    assert sum(run[1] for run in shared.moves) == moved  # windows are open still, for all nodes


def test_a_change_and_its_opposite_are_remembered_though_nothing_is_stored(
    fleet: Callable[[str], Node], store: Store
) -> None:
    """Flows that began at e while it had more are older than what the slot names after it: their slot
    moves, on each node, until the window closes."""
    one = fleet("one")
    settle(one)
    at_first = one.tables["web"]
    store.commit([Put(keys.backend("web", "b"), BAD)])
    for weight in (300, 100):
        before = one.tables["web"]
        store.commit([backend("e", weight=weight)])
        one.turn()
        after = one.tables["web"]
        changed = np.flatnonzero(before.names() != after.names())
        assert len(changed) == pytest.approx(16384, abs=2)
        past = after.past()
        assert (past.closes[changed] > 0).all()
        origins = np.array(after.backends, dtype=object)[past.origin[changed]]
        assert (origins == at_first.names()[changed]).all()
    # When all can be read again, that is what all nodes get.
    store.commit([backend("b", weight=90)])
    settle(one)
    shared = slots.from_document(one.state.tables["web"])
    assert (shared.past().closes[changed] > 0).all()
    # From then on the stored ones count, whoever planned them.
    other = Node(store, "other")
    store.commit([backend("b", weight=50)])
    settle(other, one)
    assert one.tables["web"].digest == other.tables["web"].digest


def test_what_others_store_counts_more_than_what_is_remembered(
    fleet: Callable[[str], Node], store: Store
) -> None:
    """Nodes of two versions: those that read the document go on sharing, the others follow them."""
    one = fleet("one")
    settle(one)
    store.commit([Put(keys.backend("web", "b"), BAD)])
    store.commit([backend("e", weight=300)])
    one.turn()
    mine = one.tables["web"]
    theirs = slots.plan(
        [slots.Member(name, "stable", 100) for name in "cdef"],
        {"stable": 100.0},
        slots.from_document(one.state.tables["web"]),
    )
    put = Put(keys.table("web"), slots.to_document("web", theirs).model_dump_json())
    store.commit([put, backend("f")])
    assert one.turn() == 0
    expected = slots.plan(
        [slots.Member(name, "stable", 300 if name == "e" else 100) for name in "bcdef"],
        {"stable": 100.0},
        theirs,
    )
    assert slots.moved(expected, one.tables["web"]) == 0
    assert slots.moved(mine, one.tables["web"]) > 0
