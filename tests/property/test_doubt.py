"""What is shared of slot tables while documents can't be read: over whole stories of a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core import slots
from lb.core.state import DesiredState, parse
from lb.model import keys
from lb.model.objects import Backend, ClusterConfig
from lb.node.planning import Bases
from lb.node.sharing import Sharing
from lb.store.base import Compare, Delete, KeyValue, Put, Snapshot, Unwritten, conflict

NAMES = "abc"
WEB = Put(keys.service("web"), '{"name": "web", "vip": "198.51.100.1", "port": 80}')
CONFIG = Put(keys.CONFIG, ClusterConfig(seed="0" * 32).model_dump_json())


class Memory:
    """Of a store what sharing needs."""

    def __init__(self) -> None:
        self.revision = 0
        self.items: dict[str, KeyValue] = {}

    def read(self, prefix: str) -> Snapshot:
        found = sorted(key for key in self.items if key.startswith(prefix))
        return Snapshot(self.revision, tuple(self.items[key] for key in found))

    def commit(
        self, operations: Sequence[Put | Delete], compares: Sequence[Compare | Unwritten] = ()
    ) -> int:
        for each in compares:
            assert isinstance(each, Compare)
            held = self.items[each.key].mod_revision if each.key in self.items else 0
            if held != each.mod_revision:
                raise conflict(each, held)
        self.revision += 1
        for operation in operations:
            if isinstance(operation, Put):
                self.items[operation.key] = KeyValue(operation.key, operation.value, self.revision)
            else:
                self.items.pop(operation.key, None)
        return self.revision


class Node:
    def __init__(self, store: Memory, name: str) -> None:
        self.store = store
        self.state, self.bases = DesiredState(), Bases()
        self.sharing = Sharing(store, name, self.bases)  # type: ignore[arg-type]
        self.table = slots.empty()

    def turn(self) -> None:
        found = self.store.read(keys.EVERYTHING)
        items = [(each.key, each.value, each.mod_revision) for each in found.items]
        self.state = parse(found.revision, items, self.state)
        self.table = self.bases.update(self.state)["web"]
        self.sharing.plan(self.state, 0.0)
        self.sharing.share_if_due(self.state, 1e9, held=False)


def document(name: str, weight: int) -> Put:
    address = f"203.0.113.{NAMES.index(name) + 1}"
    made = Backend.model_validate({"service": "web", "name": name, "address": address, "weight": weight})
    return Put(keys.backend("web", name), made.model_dump_json())


backends = st.sampled_from(NAMES)
changes = st.one_of(
    st.builds(document, backends, st.integers(1, 5)),
    st.builds(lambda name: Delete(keys.backend("web", name)), backends),
    st.builds(
        Put,
        st.builds(lambda name: keys.backend("web", name), backends) | st.just(WEB.key),
        st.sampled_from(["", "{", '{"new": 1}']),
    ),
    st.just(WEB),
)
# A turn of a node, which may just have begun without a copy; or a change.
stories = st.lists(
    st.one_of(changes, st.tuples(st.sampled_from("xyz"), st.sampled_from([False, False, True]))),
    max_size=30,
)


def tables_in(store: Memory) -> tuple[KeyValue, ...]:
    return store.read(keys.TABLES).items


def is_doubted(state: DesiredState) -> bool:
    return any(problem.where.startswith((keys.SERVICES, keys.BACKENDS)) for problem in state.problems)


@settings(max_examples=60, deadline=None)
@given(stories)
def test_nobody_writes_in_doubt_and_all_agree_after_it(story: list[Any]) -> None:
    store = Memory()
    store.commit([CONFIG, WEB, document("a", 1), document("b", 1)])
    nodes = {name: Node(store, name) for name in "xyz"}
    for node in nodes.values():
        node.turn()
    for each in story:
        if isinstance(each, Put | Delete):
            store.commit([each])
            continue
        name, is_new = each
        bad_service = store.items[WEB.key].value != WEB.value
        if is_new and not bad_service:  # without the service it has no table
            nodes[name] = Node(store, name)
        node, tables, before = nodes[name], tables_in(store), nodes[name].table
        node.turn()
        if is_doubted(node.state):
            assert tables_in(store) == tables
            # Whatever moves on this node alone is remembered, until the window closes.
            moved = _moved(before, node.table)
            assert (node.table.past().closes[moved] > 0).all()
        # And who knows the same has the same slots, whatever it saw before.
        for other in nodes.values():
            if _known(other) == _known(node):
                assert other.table.digest == node.table.digest
    # Whatever there was, it ends when all can be read, with one table for all and for whoever comes.
    good = [document(name, 1) for name in NAMES]
    store.commit([WEB, *good])
    nodes["new"] = Node(store, "new")
    for _ in range(3):
        for node in nodes.values():
            node.turn()
    [shared] = tables_in(store)
    for node in nodes.values():
        node.turn()
        assert slots.to_document("web", node.table).model_dump_json() == shared.value
    assert tables_in(store) == (shared,)


def _known(node: Node) -> Any:
    state = node.state
    return state.services, state.backends, [(each.runs, each.backends) for each in state.tables.values()]


def _moved(before: slots.Table, after: slots.Table) -> Any:
    """Slots that named another backend before, which is still there."""
    was = before.names()
    there = np.array([name in after.backends for name in (*before.backends, None)])
    return np.flatnonzero((was != after.names()) & there[before.slots])
