"""Changes taken in one by one give what reading everything gives; so do the plans made of them."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core.nexthop import NextHop
from lb.core.plan import Observed, plan
from lb.core.state import DesiredState, advance, parse
from lb.model import keys
from lb.model.objects import (
    Admin,
    Backend,
    ClusterConfig,
    Service,
    TableDocument,
)
from lb.model.reports import NodeStatus
from lb.node.planning import Bases, Plans

SERVICES = ["a", "b"]
NAMES = ["x", "y"]
CONFIG = ClusterConfig(seed="00" * 16).model_dump_json()
HOP = NextHop(1, bytes(6), bytes(6))

services = st.builds(
    Service,
    name=st.sampled_from(SERVICES),
    vip=st.sampled_from([ip_address("10.0.0.1"), ip_address("10.0.0.1"), ip_address("10.0.0.2")]),
    port=st.sampled_from([80, 80, 81]),
    window=st.sampled_from([60, 900]),
    split=st.sampled_from([{"stable": 100.0}, {"stable": 90.0, "canary": 10.0}]),
)
backends = st.builds(
    Backend,
    service=st.sampled_from(SERVICES),
    name=st.sampled_from(NAMES),
    address=st.sampled_from([ip_address(f"10.1.0.{n}") for n in (1, 1, 1, 2, 3)]),
    weight=st.integers(0, 3),
    admin=st.sampled_from(Admin),
    pool=st.sampled_from(["stable", "canary"]),
)
tables = st.builds(
    TableDocument,
    service=st.sampled_from(SERVICES),
    backends=st.just(("x",)),
    parts=st.just({"stable": 100_000_000}),
    runs=st.sampled_from([((0, 65536),), ((0, 1), (-1, 65535))]),
)
nodes = st.builds(
    NodeStatus,
    node=st.sampled_from(NAMES),
    version=st.just("1"),
    pid=st.integers(1, 9),
    started=st.just(0.0),
    revision=st.integers(0, 9),
    links=st.just(()),
    pin_dir=st.just("/x"),
)


def key_of(document: Service | Backend | TableDocument | NodeStatus) -> str:
    if isinstance(document, Service):
        return keys.service(document.name)
    if isinstance(document, Backend):
        return keys.backend(document.service, document.name)
    if isinstance(document, TableDocument):
        return keys.table(document.service)
    return keys.node(document.node)


written = st.one_of(services, backends, backends, backends, tables, nodes).map(
    lambda document: (key_of(document), document.model_dump_json())
)
damaged = st.tuples(
    st.sampled_from([keys.service("a"), keys.backend("a", "x"), keys.node("x"), keys.CONFIG]),
    st.sampled_from(["{", "{}", CONFIG]),
)
beside = st.tuples(
    st.sampled_from([keys.record("r"), keys.record("s"), keys.member("x")]),
    st.sampled_from([None, "{", '{"node": "x", "since": 1}']),
)
deleted = st.tuples(
    st.sampled_from(
        [*map(keys.service, SERVICES), keys.backend("a", "x"), keys.table("a"), keys.node("x")]
    ),
    st.none(),
)
batches = st.lists(
    st.lists(st.one_of(written, written, written, beside, damaged, deleted), min_size=1, max_size=3),
    max_size=12,
)


def start() -> dict[str, tuple[str, int]]:
    documents: list[Service | Backend] = [
        Service(name="a", vip=ip_address("10.0.0.1"), port=80),
        Service(name="b", vip=ip_address("10.0.0.2"), port=80),
        Backend(service="a", name="x", address=ip_address("10.1.0.1")),
        Backend(service="a", name="y", address=ip_address("10.1.0.2")),
        Backend(service="b", name="x", address=ip_address("10.1.0.1")),
    ]
    held = {key_of(document): (document.model_dump_json(), 1) for document in documents}
    return {**held, keys.CONFIG: (CONFIG, 1)}


def parsed(revision: int, held: dict[str, tuple[str, int]], before: DesiredState | None) -> DesiredState:
    return parse(revision, ((key, text, at) for key, (text, at) in sorted(held.items())), before)


@settings(max_examples=300, deadline=None)
@given(batches)
def test_changes_taken_in_one_by_one_give_what_reading_everything_gives(
    story: list[list[tuple[str, str | None]]],
) -> None:
    held = start()
    state = parsed(1, held, None)
    bases, plans = Bases(), Plans()
    hops = {ip_address(f"10.1.0.{n}"): HOP for n in (1, 2)}
    observed = Observed(hops, frozenset({1}))
    for revision, batch in enumerate(story, 2):
        for key, text in batch:
            if text is None:
                held.pop(key, None)
            else:
                held[key] = text, revision
        changes = [(key, text, revision) for key, text in batch]
        taken, read = advance(state, revision, changes), parsed(revision, held, state)
        if taken is not None:
            for each in fields(DesiredState):
                assert getattr(taken, each.name) == getattr(read, each.name), each.name
            assert taken.addresses == read.addresses
            for name in SERVICES:
                assert taken.backends_of(name) == read.backends_of(name)
        state = taken or read
        if revision % 3 == 0:
            observed = replace(observed, next_hops=hops if revision % 2 else {})
        tables = bases.update(state)
        made, whole = plans.update(state, observed, tables), plan(state, observed, tables)
        assert made.backends == whole.backends
        assert made.problems == whole.problems
        assert {n: (w.service, w.seed, w.base, w.table.digest) for n, w in made.services.items()} == {
            n: (w.service, w.seed, w.base, w.table.digest) for n, w in whole.services.items()
        }


def test_a_record_beside_a_change_does_not_make_everything_be_read() -> None:
    state = parsed(1, start(), None)
    changes = [
        (keys.backend("a", "x"), '{"service":"a","name":"x","address":"10.1.0.1","weight":3}', 2),
        (keys.record("new"), "{}", 2),
        (keys.record("old"), None, 2),
    ]
    taken = advance(state, 2, changes)
    assert taken is not None
    assert taken.backends["a", "x"].weight == 3


def test_a_plain_change_leaves_the_plans_of_others_as_they_are() -> None:
    state = parsed(1, start(), None)
    bases, plans, observed = Bases(), Plans(), Observed({}, frozenset())
    before = plans.update(state, observed, bases.update(state))
    changed = state.backends["a", "x"].model_copy(update={"weight": 7})
    after = advance(state, 2, [(keys.backend("a", "x"), changed.model_dump_json(), 2)])
    assert after is not None
    assert after.backends["a", "x"].weight == 7
    made = plans.update(after, observed, bases.update(after))
    assert made.services["b"] is before.services["b"]
    assert made.services["a"] is not before.services["a"]


def test_what_could_contradict_others_is_read() -> None:
    state = parsed(1, start(), None)
    moved = state.backends["a", "x"].model_copy(update={"address": ip_address("10.1.0.9")})
    assert advance(state, 2, [(keys.backend("a", "x"), moved.model_dump_json(), 2)]) is None
    assert advance(state, 2, [(keys.backend("a", "x"), None, 2)]) is None
    assert advance(state, 2, [(keys.service("a"), "{", 2)]) is None
