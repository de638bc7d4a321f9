"""lb/core/room.py: what has no room is left out, and said; tests/property has its promises."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from lb.core import ports, sizes
from lb.core.ids import uid
from lb.core.nexthop import NextHop
from lb.core.plan import Observed, base_tables, plan
from lb.core.room import NOTHING, LeftOut, entries, left_out
from lb.core.state import DesiredState
from lb.datapath.maps import specs
from lb.model import keys
from lb.model.objects import Backend, ClusterConfig, Mirror, Mode, Protocol, Service
from lb.node.planning import Bases, Plans
from lb.settings import Limits

ROOMY = {"services": 100, "vips": 100, "ranges": 100, "rules": 100, "backends": 100}
TESTERS, OFFICE = ip_network("203.0.113.0/28"), ip_network("203.0.113.64/26")


@dataclass
class Has:
    """What a kernel has."""

    tables: Collection[int] = ()
    backends: Collection[int] = ()
    vips: Mapping[Any, int] = field(default_factory=dict)
    ranges: Mapping[Any, int] = field(default_factory=dict)
    rules: Mapping[int, Collection[Any]] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)


def web(name: str = "web", vip: str = "198.51.100.1", port: int = 80, **more: Any) -> Service:
    return Service(name=name, vip=ip_address(vip), port=port, **more)


def state_of(*services: Service, backends: Collection[str] = ()) -> DesiredState:
    """`backends`: as service/name."""
    paths = [each.split("/") for each in backends]
    return DesiredState(
        config=ClusterConfig(seed="00" * 16),
        services={each.name: each for each in services},
        backends={
            (service, name): Backend(service=service, name=name, address=ip_address(f"10.0.0.{n}"))
            for n, (service, name) in enumerate(paths, 1)
        },
    )


def out(state: DesiredState, held: Has | None = None, **limits: int) -> LeftOut:
    return left_out(state, Bases().update(state), {**ROOMY, **limits}, held or Has(), "node1")


def test_while_everything_fits_nobody_looks_at_the_kernel() -> None:
    class Untouched(Has):
        def __getattribute__(self, name: str) -> Any:
            assert name in ("kept", "rules", "__class__"), name
            return super().__getattribute__(name)

    state = state_of(web(), web("api", port=81), backends=["web/b1", "api/b1"])
    exactly = {"services": 2, "vips": 4, "backends": 2}
    assert out(state, Untouched(), **exactly) is NOTHING


def test_of_what_is_new_the_names_decide_and_what_is_there_stays() -> None:
    state = state_of(web(), backends=["web/a", "web/b", "web/c"])
    assert out(state, backends=2).names == ("web/c",)
    there = Has(backends=[uid(keys.backend("web", "c")), uid(keys.backend("web", "b"))])
    found = out(state, there, backends=2)
    assert found.names == ("web/a",)
    assert found.parts["web"].backends == {"a"}
    [problem] = found.problems
    assert problem.where == keys.backend("web", "a")
    assert problem.message == "backends map is full (2 entries): it gets no traffic from this node"
    assert problem.hint == "raise limits.backends in lb.toml, then lbd --detach and start lbd again"
    assert problem.kind == "CapacityError"


@pytest.mark.parametrize(
    ("service", "limits", "full", "setting"),
    [
        (web("z", "198.51.100.2"), {"vips": 3}, "vips", "vips"),
        (web("z", port=8000, end_port=8005), {"ranges": 1}, "ranges", "vips"),
        (web("z", port=81), {"services": 1}, "services", "services"),
        (web("z", port=81, rules={TESTERS: "canary"}), {"services": 2}, "services", "services"),
        (web("z", port=81, rules={TESTERS: "a", OFFICE: "a"}), {"rules": 1}, "rules", "rules"),
    ],
)
def test_a_new_service_is_out_as_a_whole(
    service: Service, limits: dict[str, int], full: str, setting: str
) -> None:
    found = out(state_of(web(), service, backends=["web/b1", "z/b1"]), **limits)
    assert found.services == {"z"}
    assert found.names == ("z",)  # its backends need no room, and no word
    [problem] = found.problems
    assert problem.where == keys.service("z")
    assert f"{full} map is full ({limits[full]} entries): this node does not serve" in problem.message
    assert f"raise limits.{setting} in" in problem.hint


def test_a_service_that_moves_to_a_vip_without_room_is_out_and_leaves_its_place() -> None:
    vip = ip_address("198.51.100.1")
    there = Has(
        tables=[uid(keys.service("a")), uid(keys.service("b"))],
        vips={
            (vip, None, 0): 0,
            (vip, Protocol.TCP, 80): uid(keys.service("a")),
            (vip, Protocol.TCP, 81): uid(keys.service("b")),
        },
    )
    moved = [web("a", "198.51.100.2"), web("b", port=81)]
    assert out(state_of(*moved), there, vips=3).services == {"a"}
    assert out(state_of(*moved, web("c", port=82)), there, vips=3, services=2).services == {"a"}
    assert out(state_of(*moved), there, vips=4) == NOTHING


def test_of_a_service_that_grows_what_is_new_is_out() -> None:
    service = web(rules={OFFICE: "canary", TESTERS: "canary"}, mode=Mode.NAT,
                  mirror=Mirror(pool="shadow", percent=5))  # fmt: skip
    owner = uid(keys.service("web"))
    there = Has(
        tables=[owner, uid(keys.service("web/canary"))],
        vips={
            (service.vip, None, 0): 0,
            (service.vip, Protocol.TCP, 80): owner,
        },
        rules={owner: [OFFICE]},
    )
    state = state_of(service, backends=["web/b1"])
    found = out(state, there, services=2, rules=1)
    assert not found.services
    part = found.parts["web"]
    assert (part.rules, part.copies) == ({OFFICE: "canary"}, False)
    rules, copies = found.problems
    assert rules.message.startswith("rules map is full (1 entries): without effect on this node")
    assert rules.message.endswith("are its rules for 203.0.113.0/28")
    assert "services map is full (2 entries): this node sends no copies" in copies.message
    # What the planner makes of it.
    made = Plans().update(state, Observed(), Bases().update(state), left_out=found)
    assert made.services.keys() == {"web", "web/canary"}
    assert made.services["web"].service.rules.keys() == {OFFICE}
    assert made.services["web"].base.steers.keys() == {OFFICE}
    # Rules that are only remembered need their room, too.
    assert out(state_of(web()), Has(rules={owner: [OFFICE]}), rules=1) == NOTHING


def test_what_is_kept_needs_its_room() -> None:
    state = state_of(web(), backends=["web/b1"])
    limits = {"services": 1, "vips": 2, "backends": 1}
    assert out(state, **limits) == NOTHING
    vip = ip_address("198.51.100.9")
    kept = {"services": {1}, "backends": {2}, "vips": {(vip, None, 0), (vip, Protocol.TCP, 80)}}
    assert out(state, Has(kept=kept), **limits).names == ("web",)
    assert out(state, Has(kept=kept), services=2, vips=4, backends=1).names == ("web/b1",)
    # An address that both have is one entry.
    vip = ip_address("198.51.100.1")
    kept = {"vips": {(vip, None, 0), (vip, Protocol.TCP, 81)}}
    assert out(state, Has(kept=kept), vips=3) == NOTHING


def test_of_hundreds_the_first_are_said_and_how_many_more() -> None:
    state = state_of(web(), backends=[f"web/b{n:03}" for n in range(250)])
    found = out(state, backends=3)
    assert len(found.names) == 247
    assert len(found.problems) == 11
    last = found.problems[-1]
    assert last.where == "node1"
    assert "backends map is full (3 entries): 237 more services or backends are left out" in last.message
    assert "left_out" in last.hint


def test_a_backend_without_room_is_one_that_can_not_be_used() -> None:
    state = state_of(web(), backends=["web/a", "web/b", "web/c"])
    hops = {each.address: NextHop(1, bytes(6), bytes(6)) for each in state.backends.values()}
    bases = Bases().update(state)
    found = out(state, backends=2)
    made = Plans().update(state, Observed(hops, frozenset({1})), bases, left_out=found)
    assert made.backends.keys() == {("web", "a"), ("web", "b")}
    assert made.services["web"].base is bases["web"]
    counts = made.services["web"].table.counts()
    assert counts["c"] == 0
    assert sum(counts.values()) == 65536
    # As one whose next hop isn't known: nodes that can't use it for either reason agree.
    del hops[state.backends["web", "c"].address]
    other = plan(state, Observed(hops, frozenset({1})), bases)
    assert other.services["web"].table.digest == made.services["web"].table.digest


def test_a_service_without_room_is_not_planned_and_comes_in_when_there_is_some() -> None:
    state = state_of(web(), web("api", port=81), backends=["web/b1", "api/b1"])
    bases, plans = Bases().update(state), Plans()
    without = plans.update(state, Observed(), bases, left_out=LeftOut(services=frozenset({"web"})))
    assert without.services.keys() == {"api"}
    assert without.backends.keys() == {("api", "b1")}
    assert plans.update(state, Observed(), bases).services.keys() == {"api", "web"}


def test_entries_are_what_maps_hold() -> None:
    state = state_of(
        web(rules={TESTERS: "canary", OFFICE: "canary"}),
        web("any", port=1, end_port=65535),
        web("other", "198.51.100.2", port=80, end_port=81),
        backends=["web/b1", "any/b1"],
    )
    assert entries(state) == {"services": 4, "vips": 3, "ranges": 17, "rules": 2, "backends": 2}


def test_prefixes_cover_a_range_and_nothing_else() -> None:
    for first, last in ((1, 65535), (0, 65535), (8000, 8100), (7, 7), (1, 2)):
        spans = [(start, 1 << free) for start, free in ports.prefixes(first, last)]
        covered = [port for start, size in spans for port in range(start, start + size)]
        assert covered == list(range(first, last + 1))
        assert all(start % size == 0 for start, size in spans)


def test_hints_name_the_setting_that_sizes_the_map() -> None:
    """Of each map that can be full: those whose keys are not all there from the beginning."""
    default = Limits()
    before = specs(default)
    for name, spec in before.items():
        if spec.kind.name not in ("HASH", "LPM_TRIE"):
            continue
        setting = sizes.setting(name)
        field_name = setting.removeprefix("limits.")
        other = default.model_copy(update={field_name: getattr(default, field_name) + 7})
        assert specs(other)[name].max_entries != spec.max_entries, name
        assert sizes.hint([name]).startswith(f"raise {setting} in lb.toml, then")
    assert "limits" not in sizes.hint(["egress"])


def test_tables_of_a_rule_that_is_gone_are_there_while_it_is_remembered() -> None:
    before = web(rules={TESTERS: "canary"})
    table = base_tables(before, [], {}, 1000)["web"]
    state = state_of(web(), web("z", port=81))
    steered = type(table)(
        table.backends,
        table.slots,
        table.parts,
        steers={TESTERS: next(iter(table.steers.values()))},
    )
    bases = {**Bases().update(state), "web": steered}
    found = left_out(state, bases, {**ROOMY, "services": 2}, Has(), "node1")
    # New services come before what one remembers.
    assert not found.services
    assert found.parts["web"].steers == {}
