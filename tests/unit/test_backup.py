"""The backup pool: who takes new flows while nobody of the split can."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lb.core import slots
from lb.core.health import Member, Record, State, Verdict, judge, new
from lb.core.nexthop import NextHop
from lb.core.plan import Observed, Wanted, base_tables, plan
from lb.core.slots import Table
from lb.core.state import DesiredState
from lb.model.health import Health
from lb.model.objects import Admin, Backend, ClusterConfig, Protocol, Service, TableDocument

HOP = NextHop(2, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2")
POOLS = {"m1": "stable", "m2": "stable", "c1": "canary", "s1": "spare", "s2": "spare", "o1": "other"}
SPARE = {"s1": 32768, "s2": 32768}


def service(**fields: object) -> Service:
    split = {"stable": 90, "canary": 10}
    given = {"name": "web", "vip": "198.51.100.100", "port": 80, "split": split, "backup": "spare"}
    return Service.model_validate({**given, **fields})


def backends(admin: Mapping[str, Admin] = MappingProxyType({})) -> tuple[Backend, ...]:
    return tuple(
        Backend(
            service="web",
            name=name,
            pool=pool,
            address=ip_address(f"203.0.113.{n}"),
            admin=admin.get(name, Admin.UP),
        )
        for n, (name, pool) in sorted(enumerate(POOLS.items(), 1), key=lambda each: each[1][0])
    )


def planned(
    web: Service,
    members: tuple[Backend, ...],
    dead: frozenset[str] = frozenset(),
    lost: frozenset[str] = frozenset(),
    bases: Mapping[str, Table] | None = None,
) -> Wanted:
    """`dead`: by their health; `lost`: without a next hop."""
    state = DesiredState(
        config=ClusterConfig(seed="00112233445566778899aabbccddeeff"),
        services={"web": web},
        backends={("web", each.name): each for each in members},
    )
    hops = {each.address: HOP for each in members if each.name not in lost}
    bases = bases or base_tables(web, members, {}, 0)
    verdict = Verdict(fitness=dict.fromkeys(dead, 0.0))
    return plan(state, Observed(hops, frozenset({2})), bases, {"web": verdict})


def counts(wanted: Wanted, path: str = "web") -> dict[str, int]:
    return {name: n for name, n in wanted.services[path].table.counts().items() if n}


MAIN = frozenset({"m1", "m2", "c1"})


def test_it_gets_nothing_while_anybody_of_the_split_can_be_used() -> None:
    assert counts(planned(service(), backends())).keys() == MAIN
    wanted = planned(service(), backends(), dead=MAIN - {"c1"})
    assert counts(wanted) == {"c1": 65536}
    assert wanted.problems == ()


@pytest.mark.parametrize("why", ["health", "next hop", "drain", "down", "mixed"])
def test_it_stands_in_for_whatever_reason_the_others_are_out(why: str) -> None:
    dead = {"health": MAIN, "mixed": {"m1"}}.get(why, frozenset())
    lost = {"next hop": MAIN, "mixed": {"m2"}}.get(why, frozenset())
    out = {"drain": MAIN, "down": MAIN, "mixed": {"c1"}}.get(why, frozenset())
    admin = dict.fromkeys(out, Admin.DOWN if why == "down" else Admin.DRAIN)
    wanted = planned(service(), backends(admin), frozenset(dead), frozenset(lost))
    assert counts(wanted) == SPARE
    [problem] = [each for each in wanted.problems if "backup" in each.message]
    assert problem.warning
    assert "no backend of canary, stable can be used" in problem.message
    assert list(wanted.services) == ["web"]  # the kernel has no other table for it


def test_without_anybody_in_it_new_flows_have_nobody() -> None:
    wanted = planned(service(), backends(), dead=MAIN | {"s1", "s2"})
    assert counts(wanted) == {}
    [problem] = wanted.problems
    assert "have none, also not in backup 'spare'" in problem.message
    without = planned(service(backup=None), backends(), dead=MAIN)
    assert counts(without) == {}
    [problem] = without.problems
    assert problem.message == "no backend of canary, stable can be used: new flows have none"
    assert problem.warning
    typo = planned(service(backup=None, split={"canry": 100}), backends())
    assert [each.message for each in typo.problems] == [
        "no backend of canry can be used: new flows have none"
    ]
    assert planned(service(backup=None), []).problems == ()  # it is being made


def test_clients_of_a_rule_go_there_only_when_all_else_is_out() -> None:
    web = service(rules={ip_network("10.0.0.0/8"): "canary"})
    wanted = planned(web, backends(), dead=frozenset({"c1"}))
    assert counts(wanted, "web/canary").keys() == {"m1", "m2"}
    wanted = planned(web, backends(), dead=MAIN)
    assert counts(wanted, "web/canary") == SPARE


def test_its_table_is_shared_and_moves_least() -> None:
    """A backend that comes to the backup moves no more there than it must, also over a restart."""
    web, members = service(), backends({"s2": Admin.DRAIN})
    first = base_tables(web, members, {}, 0)
    assert sorted(first) == ["web", "web/spare"]
    stored = {
        path: TableDocument.model_validate_json(slots.to_document(path, table).model_dump_json())
        for path, table in first.items()
    }
    second = base_tables(web, backends(), stored, 10)
    taken = second["web/spare"].counts()["s2"]
    assert abs(taken - 32768) <= 1  # as even as any table (lb/core/slots.py)
    assert slots.moved(first["web/spare"], second["web/spare"]) == taken
    before = planned(web, members, dead=MAIN, bases=first)
    after = planned(web, backends(), dead=MAIN, bases=second)
    assert (counts(before), counts(after)) == ({"s1": 65536}, {"s1": 65536 - taken, "s2": taken})


SOME = st.frozensets(st.sampled_from(sorted(POOLS)))


@given(SOME, SOME)
def test_it_serves_exactly_while_the_split_does_not(
    dead: frozenset[str], drained: frozenset[str]
) -> None:
    admin = dict.fromkeys(drained, Admin.DRAIN)
    web, members = service(), backends(admin)
    found = counts(planned(web, members, dead=dead))
    able = POOLS.keys() - dead - drained
    assert found.keys() == ((able & MAIN) or (able & SPARE.keys()))
    assert sum(found.values()) == (65536 if found else 0)
    # Whatever was before, a backend that is back gets exactly its own slots back.
    base = planned(web, members).services["web"].table
    assert (planned(web, members, dead=frozenset()).services["web"].table.slots == base.slots).all()


def test_a_share_in_the_split_and_a_backup_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="has a share in the split"):
        service(split={"stable": 90, "spare": 10})
    assert service(split={"stable": 100, "spare": 0}).backup == "spare"


def member(name: str, state: State) -> Member:
    health = Health()
    base = new(name, health, 0.0, in_use=False)
    record = Record(address=base.address, added=0.0, since=1.0, state=state)
    return Member(name, POOLS[name], True, health, record)


def test_a_healthy_backup_goes_before_panic() -> None:
    health = Health(panic=50)
    dead = [member(name, State.UNHEALTHY) for name in ("m1", "m2")]

    def panics(*spare: Member) -> tuple[str, ...]:
        return judge([*dead, *spare], health, Protocol.TCP, 9.0, "spare").panics

    assert panics(member("s1", State.HEALTHY)) == ()
    assert panics(member("s1", State.UNHEALTHY)) == ("spare", "stable")
    # Who has healthy ones left, though too few, goes on with all of them: the backup isn't in use.
    few = [*dead, member("c1", State.HEALTHY)]
    pool = [Member(each.name, "stable", True, health, each.record) for each in few]
    found = judge([*pool, member("s1", State.HEALTHY)], health, Protocol.TCP, 9.0, "spare")
    assert found.panics == ("stable",)
