"""lb/core/room.py: what is promised of what is left out, over whole stories of one node."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lb.core import ports, rules
from lb.core.ids import uid
from lb.core.room import NOTHING, WHOLE, LeftOut, left_out
from lb.core.slots import EMPTY, SLOTS, Table
from lb.core.state import DesiredState
from lb.model import keys
from lb.model.objects import Backend, Mirror, Mode, Service, table_path

WINDOW = 900
PREFIXES = [ip_network(f"203.0.113.{n}/32") for n in range(3)]
POOLS = ["canary", "beta"]
EMPTY_SLOTS = np.full(SLOTS, EMPTY, dtype=np.int32)

services = st.builds(
    lambda name, address, port, span, asked, copied: Service(
        name=name,
        vip=ip_address(f"198.51.100.{address}"),
        # No two claim the same: lb/core/conflicts.py sees to that.
        port=(port := port * 100 + 10 * ord(name) % 100),
        end_port=port + span if span else None,
        rules=asked,
        mode=Mode.NAT,
        mirror=Mirror(pool="shadow", percent=1) if copied else None,
    ),
    st.sampled_from("abcd"),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0, 0, 3]),
    st.dictionaries(st.sampled_from(PREFIXES), st.sampled_from(POOLS), max_size=3),
    st.booleans(),
)
# A turn: services, how many backends each has by name, whether what was remembered is forgotten.
turns = st.tuples(
    st.lists(services, max_size=4, unique_by=lambda each: each.name),
    st.dictionaries(st.sampled_from("abcd"), st.frozensets(st.sampled_from("xyz"))),
    st.booleans(),
)
sizes = st.fixed_dictionaries(
    {
        "services": st.integers(1, 8),
        "vips": st.integers(1, 8),
        "ranges": st.integers(1, 5),
        "rules": st.integers(1, 6),
        "backends": st.integers(1, 8),
    }
)


@dataclass
class Memory:
    """What a node's kernel has: sets of named things, by map."""

    taken: dict[str, set[object]] = field(default_factory=lambda: {n: set() for n in (
        "services", "vips", "ranges", "rules", "backends")})  # fmt: skip
    kept: dict[str, set[object]] = field(default_factory=dict)

    @property
    def tables(self) -> set[int]:
        return {uid(keys.service(path)) for path in self.taken["services"]}

    @property
    def backends(self) -> set[int]:
        return {uid(keys.backend(*key)) for key in self.taken["backends"]}

    @property
    def vips(self) -> dict[object, int]:
        return {at: uid(keys.service(owner)) if owner else 0 for at, owner in self.taken["vips"]}

    @property
    def ranges(self) -> dict[object, int]:
        return {at: uid(keys.service(owner)) for at, owner in self.taken["ranges"]}

    @property
    def rules(self) -> dict[int, set[object]]:
        found: dict[int, set[object]] = {}
        for name, prefix in self.taken["rules"]:
            found.setdefault(uid(keys.service(name)), set()).add(prefix)
        return found


def programmed(state, steers, left: LeftOut, before: Memory) -> dict[str, set[object]]:
    """What the kernel has then, by map: said anew here, from what the planner makes of it."""
    taken: dict[str, set[object]] = Memory().taken
    for name, whole in state.services.items():
        if name in left.services:
            continue
        part = left.parts.get(name, WHOLE)
        service = part.service(whole)
        table = part.base(Table((), EMPTY_SLOTS, steers=steers[name]))
        pools = rules.pools(table.steers) | ({service.mirror.pool} if service.mirror else set())
        taken["services"] |= {name, *(table_path(name, pool) for pool in pools)}
        remembered = {p for owner, p in before.taken["rules"] if owner == name}
        taken["rules"] |= {(name, p) for p in {*service.rules, *table.steers, *remembered}}
        taken["vips"].add(((service.vip, None, 0), ""))
        if service.end_port:
            for each in ports.prefixes(service.port, service.end_port):
                taken["ranges"].add(((service.vip, service.protocol, *each), name))
        else:
            taken["vips"].add(((service.vip, service.protocol, service.port), name))
        taken["backends"] |= {
            key for key in state.backends if key[0] == name and key[1] not in part.backends
        }
    return taken


def fits(taken: dict[str, set[object]], limits: dict[str, int]) -> bool:
    return all(len(each) <= limits[what] for what, each in taken.items())


# Shrinking such a story takes minutes.
@settings(max_examples=200, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(sizes, st.lists(turns, min_size=1, max_size=4))
def test_what_fits_is_in_what_is_held_stays_and_it_always_fits(limits, story) -> None:
    memory, steers, old = Memory(), {}, DesiredState()
    for now, (asked, members, forgets) in enumerate(story, 1000):
        found = {each.name: each for each in asked}
        state = DesiredState(
            services=found,
            backends={
                (name, each): Backend(service=name, name=each, address=ip_address("10.0.0.1"))
                for name in found
                for each in members.get(name, ())
            },
        )
        if forgets:  # windows are closed
            memory.taken["rules"] = {
                (name, p)
                for name, p in memory.taken["rules"]
                if name in old.services and p in old.services[name].rules
            }
            steers = {n: {p: s for p, s in each.items() if p in old.services[n].rules}
                      for n, each in steers.items()}  # fmt: skip
        steers = {
            name: rules.follow(steers.get(name, {}), each.rules, now, WINDOW)
            for name, each in found.items()
        }
        bases = {name: Table((), EMPTY_SLOTS, steers=each) for name, each in steers.items()}
        left = left_out(state, bases, limits, memory, "node1")
        after = programmed(state, steers, left, memory)
        assert fits(after, limits)
        everything = programmed(state, steers, NOTHING, memory)
        if fits(everything, limits):
            assert left == NOTHING

        # What was there keeps its place, unless its VIP is another one now.
        for name, service in found.items():
            path = old.services.get(name)
            if path is None or name not in memory.taken["services"]:
                continue
            if path.endpoint == service.endpoint:
                assert name not in left.services
            if name in left.services:
                continue
            part = left.parts.get(name, WHOLE)
            held = {key[1] for key in memory.taken["backends"] if key[0] == name}
            assert not held & part.backends
            mirror = service.mirror and table_path(name, service.mirror.pool)
            assert part.copies or mirror not in memory.taken["services"]

        # Nothing more would have fitted.
        for name in left.services:
            less = {prefix: steers[name][prefix] for prefix in found[name].rules}
            alone = DesiredState(services={name: found[name]})
            more = programmed(alone, {name: less}, NOTHING, memory)
            assert not fits({what: after[what] | more[what] for what in after}, limits)
        for key in state.backends:
            if key[0] not in left.services and key not in after["backends"]:
                assert len(after["backends"]) == limits["backends"]
        for name, part in left.parts.items():
            if not part.copies:
                assert len(after["services"]) == limits["services"]
            for prefix in found[name].rules.keys() - part.service(found[name]).rules.keys():
                pools = rules.pools({prefix: steers[name][prefix]})
                more = {
                    "services": {table_path(name, pool) for pool in pools},
                    "rules": {(name, prefix)},
                }
                assert not fits({what: after[what] | each for what, each in more.items()}, limits)

        names = {each for each in left.names if "/" in each}
        assert names == {
            "/".join(k) for k in state.backends.keys() - after["backends"] if k[0] not in left.services
        }
        memory.taken = after
        # The next turn changes nothing; at most it takes somebody in for whom old rules had no room.
        again = left_out(state, bases, limits, memory, "node1")
        assert {*again.names} <= {*left.names}
        if again.services == left.services:
            assert again.parts == left.parts
        old = state
