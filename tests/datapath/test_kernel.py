"""lb/datapath/kernel.py: the maps are made so, adopted, and put right."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core import flowhash, slots
from lb.core.ids import uid
from lb.core.nexthop import NextHop
from lb.core.plan import Observed, Wanted, base_table, plan, seed_of
from lb.core.room import NOTHING, LeftOut, left_out
from lb.core.state import DesiredState
from lb.datapath import consts, mapkeys, structs
from lb.datapath.encode import index_key
from lb.datapath.holding import limits
from lb.datapath.kernel import Kernel, read_owners
from lb.datapath.maps import Maps
from lb.datapath.slotmaps import table_key
from lb.datapath.view import KernelView
from lb.errors import CapacityError, DatapathError
from lb.model import keys
from lb.model.objects import (
    TRANSLATIONS,
    Admin,
    Backend,
    ClusterConfig,
    Mode,
    Protocol,
    Service,
    Tracking,
)
from lb.node.planning import Bases, Plans
from lb.settings import Limits, Timeouts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="bpf() needs root")

HOP = NextHop(ifindex=1, source_mac=b"\2\0\0\0\0\1", destination_mac=b"\2\0\0\0\0\2")
SMALL = Limits(services=4, vips=8, backends=5, conntrack=1024)


def state_of(services: Mapping[str, Mapping[str, int]], mode: Mode = Mode.DSR) -> DesiredState:
    """Services named s1, s2 … with backends by name and weight."""
    return DesiredState(
        config=ClusterConfig(seed="00112233445566778899aabbccddeeff"),
        services={
            name: Service(name=name, vip=ip_address(f"198.51.100.{name[1:]}"), port=80, mode=mode)
            for name in services
        },
        backends={
            (service, name): Backend(
                service=service,
                name=name,
                address=ip_address(f"203.0.113.{10 * int(service[1:]) + int(name[1:])}"),
                weight=weight,
            )
            for service, backends in services.items()
            for name, weight in backends.items()
        },
    )


def wanted_of(state: DesiredState, *, resolved: bool = True) -> Wanted:
    hops = {b.address: HOP for b in state.backends.values()} if resolved else {}
    bases = {n: base_table(s, state.backends_of(n), None, 0) for n, s in state.services.items()}
    return plan(state, Observed(hops, frozenset({HOP.ifindex})), bases)


def test_what_is_applied_is_there_and_is_not_applied_twice() -> None:
    state = state_of({"s1": {"b1": 3, "b2": 1}, "s2": {"b1": 1}}, Mode.NAT)
    kernel = Kernel(Maps.create(SMALL))
    assert kernel.apply(wanted_of(state)) > 0
    assert kernel.apply(wanted_of(state)) == 0
    view = KernelView(kernel.maps, state)
    assert view.slot_counts("s1") == {"b1": 49152, "b2": 16384}
    assert view.slot_counts("s2") == {"b1": 65536}
    assert view.slots("s1") == list(wanted_of(state).services["s1"].table.names())
    assert len(list(kernel.maps.vips.keys())) == 4  # two sockets, two addresses
    assert len(list(kernel.maps.nat_back.keys())) == 3


def test_the_next_lbd_adopts_and_changes_nothing() -> None:
    state = state_of({"s1": {"b1": 3, "b2": 1}})
    maps = Maps.create(SMALL)
    Kernel(maps).apply(wanted_of(state))
    heir = Kernel(maps)
    heir.adopt()
    assert heir.apply(wanted_of(state)) == 0


def test_ranges_of_ports_are_cut_into_prefixes_and_taken_away_again() -> None:
    state = state_of({"s1": {"b1": 1}, "s2": {"b1": 1}}, Mode.NAT)
    spans = {"s1": (8000, 8100), "s2": (1, 65535)}
    wide = {
        n: s.model_copy(update=dict(zip(("port", "end_port"), spans[n], strict=True)))
        for n, s in state.services.items()
    }
    ranged = replace(state, services=wide)
    maps = Maps.create(Limits(services=4, vips=32, backends=5, conntrack=1024))
    Kernel(maps).apply(wanted_of(ranged))
    kernel = Kernel(maps)
    kernel.adopt()
    assert kernel.apply(wanted_of(ranged)) == 0
    client, one = ip_address("198.51.100.77"), ip_address("198.51.100.1")

    def served(port: int) -> str | None:
        return KernelView(maps, ranged).trace(Protocol.TCP, client, 4000, one, port).service

    assert {served(port) for port in range(8000, 8101)} == {"s1"}
    assert served(7999) is served(8101) is None
    kernel.apply(wanted_of(state))
    assert list(maps.ranges.keys()) == []
    assert served(8000) is None
    assert served(80) == "s1"


def test_what_was_changed_by_hand_is_found_and_put_right() -> None:
    state = state_of({"s1": {"b1": 3, "b2": 1}}, Mode.NAT)
    maps = Maps.create(SMALL)
    kernel = Kernel(maps)
    kernel.apply(wanted_of(state))
    for name in ("vips", "nat_back"):
        victim = next(maps.by_name[name].keys())
        maps.by_name[name].delete(victim)
    for name in ("services", "backends"):
        maps.by_name[name].put(index_key(1), bytes(maps.by_name[name].value_size))
    maps.tables.delete(table_key(1))
    kernel.adopt()
    kernel.apply(wanted_of(state))
    again = Kernel(maps)
    again.adopt()
    assert again.apply(wanted_of(state)) == 0
    assert KernelView(maps, state).slot_counts("s1") == {"b1": 49152, "b2": 16384}


def test_the_last_service_goes_also_when_an_audit_finds_that() -> None:
    kernel = Kernel(Maps.create(SMALL))
    kernel.apply(wanted_of(state_of({"s1": {"b1": 1}})))
    kernel.adopt()
    assert kernel.apply(wanted_of(state_of({}))) > 0
    assert list(kernel.maps.vips.keys()) == []


def test_a_reused_id_has_another_generation_and_fresh_counters() -> None:
    maps = Maps.create(Limits(services=4, vips=8, backends=2, conntrack=1024))
    kernel = Kernel(maps)
    kernel.apply(wanted_of(state_of({"s1": {"b1": 1}})))
    first = structs.Backend.from_buffer_copy(maps.backends.get(index_key(1)) or b"")
    maps.backend_stats.put(index_key(1), b"\1" * maps.backend_stats.user_value_size)
    kernel.apply(wanted_of(state_of({"s1": {}})))
    freed = structs.Backend.from_buffer_copy(maps.backends.get(index_key(1)) or b"")
    assert freed.flags == 0
    # Also for a lbd that was started in between.
    heir = Kernel(maps)
    heir.adopt()
    state = state_of({"s1": {"b2": 1}})
    heir.apply(wanted_of(state))
    second = structs.Backend.from_buffer_copy(maps.backends.get(index_key(1)) or b"")
    assert second.generation == first.generation + 1
    stats = KernelView(maps, state).backend_stats("s1", "b2")
    assert stats is not None
    assert stats.packets == 0


def test_an_id_that_was_given_out_has_its_generation_also_if_lbd_is_killed_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flows of the owner before must not match the new one."""
    maps = Maps.create(Limits(services=4, vips=8, backends=2, conntrack=1024))
    kernel = Kernel(maps)
    kernel.apply(wanted_of(state_of({"s1": {"b1": 1}})))
    first = held_backend(maps, 1)
    kernel.apply(wanted_of(state_of({})))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    later = wanted_of(state_of({"s2": {"b1": 1}}))
    with monkeypatch.context() as patch:
        patch.setattr("lb.datapath.contents.write", killed)
        with pytest.raises(KeyboardInterrupt):
            kernel.apply(later)
    assert read_owners(maps.backend_owners) == {1: uid(keys.backend("s2", "b1"))}
    heir = Kernel(maps)
    heir.adopt()
    heir.apply(later)
    assert held_backend(maps, 1).generation > first.generation


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("moved", [{"address": ip_address("203.0.113.99")}, {"port": 8081}])
def test_flows_that_are_bound_to_a_socket_end_with_it(mode: Mode, moved: dict[str, object]) -> None:
    """In fullnat a backend that moves is another one. Elsewhere its flows go on: it may know them."""
    state = state_of({"s1": {"b1": 1, "b2": 1}}, mode)
    maps = Maps.create(SMALL)
    Kernel(maps).apply(wanted_of(state))
    kernel = Kernel(maps)
    kernel.adopt()
    number = kernel_ids(maps)[uid(keys.backend("s1", "b1"))]
    before = {n: held_backend(maps, n).generation for n in (1, 2)}
    b1 = state.backends["s1", "b1"]

    def now(**change: object) -> dict[int, int]:
        backends = {**state.backends, ("s1", "b1"): b1.model_copy(update=change)}
        kernel.apply(wanted_of(replace(state, backends=backends)))
        return {n: held_backend(maps, n).generation - before[n] for n in (1, 2)}

    other = 3 - number
    assert now(weight=7) == {number: 0, other: 0}
    assert now(**moved) == {number: int(mode is Mode.FULLNAT), other: 0}
    assert now(**moved) == {number: int(mode is Mode.FULLNAT), other: 0}
    assert now() == {number: 2 * int(mode is Mode.FULLNAT), other: 0}
    assert kernel.apply(wanted_of(state)) == 0


def held_backend(maps: Maps, number: int) -> structs.Backend:
    return structs.Backend.from_buffer_copy(maps.backends.get(index_key(number)) or b"")


def kernel_ids(maps: Maps) -> dict[int, int]:
    """Ids of backends, by the uids of their owners."""
    return {owner: number for number, owner in read_owners(maps.backend_owners).items()}


def test_too_many_are_refused_before_anything_is_written() -> None:
    kernel = Kernel(Maps.create(SMALL))
    good = state_of({"s1": {"b1": 1}})
    kernel.apply(wanted_of(good))
    for too_many in (
        {"s1": {f"b{i}": 1 for i in range(1, 6)}},
        {f"s{i}": {} for i in range(1, 5)},
    ):
        with pytest.raises(CapacityError, match="map is full"):
            kernel.apply(wanted_of(state_of(too_many)))
        assert kernel.apply(wanted_of(good)) == 0


def test_what_has_no_room_is_left_out_and_all_else_works_on() -> None:
    maps = Maps.create(SMALL)
    kernel, plans, bases = Kernel(maps), Plans(), Bases()
    said: list[LeftOut] = []

    def apply(state: DesiredState, keep: Collection[str] = ()) -> int:
        tables = bases.update(state)
        said.append(left_out(state, tables, limits(maps), kernel.holding(keep), "node1"))
        hops = {b.address: HOP for b in state.backends.values()}
        observed = Observed(hops, frozenset({HOP.ifindex}))
        return kernel.apply(plans.update(state, observed, tables, left_out=said[-1]), keep)

    apply(state_of({"s1": {"b3": 1, "b4": 1}, "s3": {"b1": 1}}))
    assert said.pop() is NOTHING
    asked = {"s1": {f"b{n}": 1 for n in range(1, 6)}, "s2": {"b1": 1}, "s3": {"b1": 1}, "s4": {}}
    state = state_of(asked)
    apply(state)
    # Room for three services and four backends; who was there keeps its place.
    assert said[-1].names == ("s4", "s1/b2", "s1/b5", "s2/b1")
    view = KernelView(maps, state)
    assert view.slot_counts("s1").keys() == {"b1", "b3", "b4"}
    assert view.slot_counts("s2") == {}
    assert view.slot_counts("s3") == {"b1": 65536}
    assert apply(state) == 0
    # Values go the short way, also beside backends that aren't there.
    heavier = state_of({**asked, "s1": {**asked["s1"], "b3": 2, "b2": 7}})
    assert apply(heavier) > 0
    assert KernelView(maps, heavier).slot_counts("s1")["b3"] in (32768, 32769)
    # Another lbd finds the same.
    kernel = Kernel(maps)
    kernel.adopt()
    assert apply(heavier) == 0
    assert said[-1] == said[-2]
    # What nobody understands any more keeps its room; what is gone gives it to others.
    half = state_of({name: each for name, each in asked.items() if name != "s1"})
    apply(half, {keys.service("s1"), *(keys.backend("s1", f"b{n}") for n in range(1, 6))})
    assert said[-1].names == ("s4", "s2/b1")
    apply(half)
    assert said[-1] is NOTHING
    assert KernelView(maps, half).slot_counts("s2") == {"b1": 65536}


def test_ranges_that_the_kernel_holds_are_known_by_name() -> None:
    state = state_of({"s1": {}, "s2": {}})
    wide = {
        "s1": state.services["s1"].model_copy(update={"port": 8000, "end_port": 8005}),
        "s2": state.services["s2"],
    }
    kernel = Kernel(Maps.create(SMALL))
    kernel.apply(wanted_of(replace(state, services=wide)))
    found = kernel.holding({keys.service("s1")})
    vip, owner = ip_address("198.51.100.1"), uid(keys.service("s1"))
    other = ip_address("198.51.100.2")
    spans = {(vip, Protocol.TCP, 8000, 2): owner, (vip, Protocol.TCP, 8004, 1): owner}
    assert found.ranges == spans
    assert found.vips == {
        (vip, None, 0): 0,
        (other, None, 0): 0,
        (other, Protocol.TCP, 80): uid(keys.service("s2")),
    }
    assert found.kept["ranges"] == spans.keys()
    assert found.kept["vips"] == {(vip, None, 0)}


def test_a_backend_that_is_down_or_unresolved() -> None:
    state = state_of({"s1": {"b1": 1, "b2": 1}})
    down = state.backends["s1", "b1"].model_copy(update={"admin": Admin.DOWN})
    state = DesiredState(
        config=state.config,
        services=state.services,
        backends={**state.backends, ("s1", "b1"): down},
    )
    kernel = Kernel(Maps.create(SMALL))
    kernel.apply(wanted_of(state))
    assert KernelView(kernel.maps, state).slot_counts("s1") == {"b2": 65536}
    raw = kernel.maps.backends.array()
    size = ctypes.sizeof(structs.Backend)
    flags = sorted(structs.Backend.from_buffer_copy(raw, at).flags for at in range(size, 3 * size, size))
    both = consts.BackendFlag.USABLE | consts.BackendFlag.RESOLVED
    assert flags == [consts.BackendFlag.RESOLVED, both]
    kernel.apply(wanted_of(state, resolved=False))
    assert KernelView(kernel.maps, state).slot_counts("s1") == {}


def test_a_full_map_has_room_for_an_exchange() -> None:
    # Two VIPs and two addresses fill it: the new ones fit only after the old ones have gone.
    kernel = Kernel(Maps.create(Limits(services=4, vips=4, backends=5, conntrack=1024)))
    kernel.apply(wanted_of(state_of({"s1": {}, "s2": {}})))
    kernel.apply(wanted_of(state_of({"s3": {}, "s4": {}})))
    assert kernel.apply(wanted_of(state_of({"s3": {}, "s4": {}}))) == 0
    assert len(list(kernel.maps.vips.keys())) == 4


def test_what_is_not_understood_is_left_as_it_is() -> None:
    state = state_of({"s1": {"b1": 3, "b2": 1}, "s2": {"b1": 1}}, Mode.NAT)
    maps = Maps.create(SMALL)
    Kernel(maps).apply(wanted_of(state))
    before = {name: sorted(each.items()) for name, each in maps if name in ("vips", "nat_back")}
    # A restarted lbd that can read neither s1 nor its backends.
    heir = Kernel(maps)
    heir.adopt()
    keep = {keys.service("s1"), keys.backend("s1", "b1"), keys.backend("s1", "b2")}
    half = state_of({"s2": {"b1": 1}}, Mode.NAT)
    assert heir.apply(wanted_of(half), keep) == 0
    assert {name: sorted(maps.by_name[name].items()) for name in before} == before
    assert KernelView(maps, state).slot_counts("s1") == {"b1": 49152, "b2": 16384}
    # Without a reason to keep them, they go.
    assert heir.apply(wanted_of(half)) > 0
    assert len(list(maps.vips.keys())) == 2


def test_after_a_failure_in_the_middle_the_kernel_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = Maps.create(SMALL)
    kernel = Kernel(maps)
    first, second = state_of({"s1": {"b1": 1}}), state_of({"s1": {"b2": 1}})

    def fail(**_: object) -> None:
        raise DatapathError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("lb.datapath.slotmaps.new_table", fail)
        with pytest.raises(DatapathError):
            kernel.apply(wanted_of(first))
    half = structs.Backend.from_buffer_copy(maps.backends.get(index_key(1)) or b"")
    assert half.flags & consts.BackendFlag.USABLE
    kernel.apply(wanted_of(second))
    owners = read_owners(maps.backend_owners)
    assert list(owners.values()) == [uid(keys.backend("s1", "b2"))]
    (number,) = owners
    new = structs.Backend.from_buffer_copy(maps.backends.get(index_key(number)) or b"")
    # Had a flow been tracked on the first one meanwhile, it must not match the second.
    assert (number, new.generation) != (1, half.generation)
    assert KernelView(maps, second).slot_counts("s1") == {"b2": 65536}


services = st.dictionaries(
    st.sampled_from(["s1", "s2", "s3"]),
    st.dictionaries(st.sampled_from(["b1", "b2", "b3", "b4"]), st.integers(0, 3), max_size=4),
    max_size=3,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(services, st.sampled_from(Mode)), min_size=2, max_size=5))
def test_any_history_ends_as_if_made_at_once(
    history: list[tuple[dict[str, dict[str, int]], Mode]],
) -> None:
    kernel = Kernel(Maps.create(Limits(services=8, vips=16, backends=16, conntrack=1024)))
    for services, mode in history:
        state = state_of(services, mode)
        kernel.apply(wanted_of(state))
        heir = Kernel(kernel.maps)
        heir.adopt()
        assert heir.apply(wanted_of(state)) == 0
        view = KernelView(kernel.maps, state)
        for name, service in wanted_of(state).services.items():
            assert view.slots(name) == list(service.table.names())
        assert len(list(kernel.maps.vips.keys())) == 2 * len(services)
        backends = sum(len(each) for each in services.values())
        assert len(list(kernel.maps.nat_back.keys())) == (backends if mode in TRANSLATIONS else 0)


# --- slots that move ------------------------------------------------------------------------------


def reweighted(state: DesiredState, weight: int, **policy: object) -> DesiredState:
    """s1's b1 has another weight, and its table is planned from the one before, as nodes do it."""
    service, key = state.services["s1"].model_copy(update=policy), ("s1", "b1")
    return DesiredState(
        config=state.config,
        services={**state.services, "s1": service},
        backends={
            **state.backends,
            key: state.backends[key].model_copy(update={"weight": weight}),
        },
        tables={"s1": slots.to_document("s1", base_of(state))},
    )


def base_of(state: DesiredState) -> slots.Table:
    return base_table(state.services["s1"], state.backends_of("s1"), state.tables.get("s1"), 0)


def planned(state: DesiredState) -> Wanted:
    hops = {b.address: HOP for b in state.backends.values()}
    tables = {
        n: base_table(s, state.backends_of(n), state.tables.get(n), int(time.time()))
        for n, s in state.services.items()
    }
    return plan(state, Observed(hops, frozenset({HOP.ifindex})), tables)


def test_slots_that_move_remember_where_they_were_and_the_next_lbd_finds_it() -> None:
    state = state_of({"s1": {"b1": 3, "b2": 1}, "s2": {"b1": 1}})
    kernel = Kernel(Maps.create(SMALL))
    kernel.apply(planned(state))
    view = KernelView(kernel.maps, state)
    before = view.slots("s1")
    assert view.moving("s1") == []
    assert not kernel.is_stirred

    wanted = planned(reweighted(state, 1))
    kernel.apply(wanted)
    after, moving = view.slots("s1"), view.moving("s1")
    moved = [n for n in range(65536) if before[n] != after[n]]
    assert len(moved) == slots.moved(base_of(state), wanted.services["s1"].base)
    assert [n for run in moving for n in range(run.first, run.first + run.length)] == moved
    assert {run.origin for run in moving} == {"b1"}
    assert all(840 < run.closes - time.time() <= 900 for run in moving)
    assert view.moving("s2") == []

    heir = Kernel(kernel.maps)
    heir.adopt()
    assert heir.apply(wanted) == 0
    again = view.moving("s1")
    assert [replace(run, closes=0) for run in again] == [replace(run, closes=0) for run in moving]


def test_the_way_back_keeps_the_origin_and_a_removed_origin_is_nobody() -> None:
    state = state_of({"s1": {"b1": 1, "b2": 1, "b3": 1}})
    kernel = Kernel(Maps.create(SMALL))
    kernel.apply(planned(state))
    view = KernelView(kernel.maps, state)
    first = view.slots("s1")
    away = reweighted(state, 0)
    kernel.apply(planned(away))
    back = reweighted(away, 1)
    kernel.apply(planned(back))
    runs = view.moving("s1")
    stirred = {n: run.origin for run in runs for n in range(run.first, run.first + run.length)}
    assert all(first[n] == origin for n, origin in stirred.items())
    assert set(stirred) >= {n for n in range(65536) if first[n] == "b1"}  # away, and perhaps back
    # b1 goes altogether; its id may soon be somebody else's.
    gone = DesiredState(
        config=back.config,
        services=back.services,
        backends={key: each for key, each in back.backends.items() if key[1] != "b1"},
        tables=back.tables,
    )
    kernel.apply(planned(gone))
    assert "b1" not in {run.origin for run in view.moving("s1")}


def test_slots_become_quiet_when_no_flow_needs_them_any_more() -> None:
    state = reweighted(state_of({"s1": {"b1": 3, "b2": 1}}), 3, window=1)
    kernel = Kernel(Maps.create(SMALL))
    kernel.apply(planned(state))
    assert kernel.calm() == 0
    view = KernelView(kernel.maps, state)
    before = view.slots("s1")
    kernel.apply(planned(reweighted(state, 1)))
    after = view.slots("s1")
    # Two flows of the second before: one in a slot that moved, one in a slot that did not.
    service = state.services["s1"]
    seed = seed_of(state.config.seed, "s1")
    client = ip_address("192.0.2.1")
    at = {
        port: flowhash.slot(seed, client, port, service.port, service.affinity)
        for port in range(1000, 1100)
    }
    moved = next(port for port, slot in at.items() if before[slot] != after[slot])
    b1 = next(
        n
        for n, u in read_owners(kernel.maps.backend_owners).items()
        if u == uid(keys.backend("s1", "b1"))
    )
    generation = structs.Backend.from_buffer_copy(kernel.maps.backends.get(index_key(b1))).generation
    ports = {"client_port": socket.htons(moved), "vip_port": socket.htons(service.port)}
    key = structs.FlowKey(service=1, **ports)
    key.client[:] = mapkeys.address_bytes(client)

    def seen_now() -> None:
        entry = structs.Flow(b1, generation, kernel.clock.jiffies())
        kernel.maps.conntrack.put(bytes(key), bytes(entry))

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline

    def calmed() -> int:
        seen_now()
        return kernel.calm()

    found = []
    until(lambda: found.append(calmed()) or found[-1])
    assert found[-1] == sum(a != b for a, b in zip(before, after, strict=True)) - 1
    assert kernel.is_stirred  # for that one flow
    assert view.moving("s1") == []  # all windows are closed
    # It falls silent.
    until(kernel.calm)
    assert not kernel.is_stirred
    assert kernel.maps.conntrack.get(bytes(key)) is None
    assert view.slots("s1") == after


@pytest.mark.parametrize(
    ("tracking", "where", "silence", "is_over"),
    [
        (Tracking.ALWAYS, "conntrack", 7430, False),
        (Tracking.ALWAYS, "conntrack", 7450, True),
        (Tracking.ALWAYS, "embryonic", 25, False),
        (Tracking.ALWAYS, "embryonic", 35, True),
        (Tracking.MOVING, "conntrack", 7450, False),  # goes by its window
    ],
)
def test_flows_that_are_remembered_for_good_are_forgotten_when_idle(
    tracking: Tracking, where: str, silence: int, is_over: bool
) -> None:
    state = state_of({"s1": {"b1": 1}, "s2": {"b1": 1}})
    services = {"s1": state.services["s1"].model_copy(update={"tracking": tracking})}
    state = replace(state, services=state.services | services)
    kernel = Kernel(Maps.create(SMALL))
    kernel.apply(wanted_of(state))
    flows = kernel.maps.by_name[where]
    seen = (kernel.clock.jiffies() - silence * kernel.clock.rate) % 2**32
    for service in (1, 2):  # the other one has no flows to forget
        flows.put(bytes(structs.FlowKey(service=service)), bytes(structs.Flow(1, 1, seen)))
    assert kernel.forget_idle(Timeouts()) == is_over
    assert len(list(flows.keys())) == 2 - is_over
    assert kernel.remembers == (tracking is Tracking.ALWAYS)


def test_quic_server_ids_lead_to_backends_and_go_with_them() -> None:
    state = state_of({"s1": {"b1": 1, "b2": 1}})
    quic = state.services["s1"].model_copy(update={"protocol": Protocol.UDP, "quic_id_bytes": 2})
    first = state.backends["s1", "b1"].model_copy(update={"quic_id": "0a3f"})
    named = replace(state, services={"s1": quic}, backends={**state.backends, ("s1", "b1"): first})
    kernel = Kernel(Maps.create(SMALL))
    kernel.apply(wanted_of(named))
    [(key, value)] = kernel.maps.quic.items()
    assert bytes(structs.QuicKey(0x0A3F, 1)) == key
    owner = read_owners(kernel.maps.backend_owners)[int.from_bytes(value, sys.byteorder)]
    assert owner == uid(keys.backend("s1", "b1"))
    raw = structs.Service.from_buffer_copy(kernel.maps.services.get(index_key(1)) or b"")
    assert (raw.quic_bytes, raw.quic_config) == (2, 0)
    heir = Kernel(kernel.maps)
    heir.adopt()
    assert heir.apply(wanted_of(named)) == 0
    # Another ID for the same server, without anything else that differs.
    other = first.model_copy(update={"quic_id": "0b00"})
    heir.apply(wanted_of(replace(named, backends={**named.backends, ("s1", "b1"): other})))
    assert list(kernel.maps.quic.keys()) == [bytes(structs.QuicKey(0x0B00, 1))]
    heir.apply(wanted_of(state))
    assert list(kernel.maps.quic.keys()) == []
