"""Mirrored traffic: what may be asked for, what the kernel is to hold of it, what people are told."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from unit.test_backup import backends, planned, service

from lb.core.plan import Wanted
from lb.datapath import consts, encode, structs
from lb.model.objects import Mode, Service

MIRROR = {"pool": "spare", "percent": 10}


def web(**fields: object) -> Service:
    return service(**{"mode": "nat", "backup": None, "mirror": MIRROR, **fields})


def gets_copies(wanted: Wanted) -> set[str]:
    return {name for (_, name), each in wanted.backends.items() if each.gets_copies}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mode": Mode.DSR}, "servers answer clients themselves"),
        ({"mode": Mode.IPIP}, "servers answer clients themselves"),
        ({"mode": Mode.GUE}, "servers answer clients themselves"),
        ({"mode": Mode.FULLNAT}, "a port of the node's"),
        ({"backup": "spare"}, "is the backup"),
        ({"protocol": "udp", "quic_id_bytes": 2}, "keys of one server"),
        ({"rules": {"10.0.0.0/8": "spare"}}, "rules send clients"),
        ({"mirror": {"pool": "spare", "percent": 101}}, "less than or equal to 100"),
        ({"mirror": {"pool": "spare", "percent": -1}}, "greater than or equal to 0"),
        ({"mirror": {"pool": "No Name", "percent": 1}}, "pattern"),
    ],
)
def test_what_can_not_be_asked_for(fields: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        web(**fields)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_pool_has_a_table_of_its_own_and_no_slots(protocol: str) -> None:
    wanted = planned(web(protocol=protocol), backends())
    assert wanted.services.keys() == {"web", "web/spare"}
    assert wanted.services["web/spare"].table.counts()["s1"] == 32768
    assert not {"s1", "s2"} & {n for n, count in wanted.services["web"].table.counts().items() if count}
    assert gets_copies(wanted) == {"s1", "s2"}
    assert wanted.problems == ()


def test_without_it_nothing_is_different() -> None:
    wanted = planned(web(mirror=None), backends())
    assert wanted.services.keys() == {"web"}
    assert gets_copies(wanted) == set()


def test_it_rests_while_the_pool_has_clients_of_its_own() -> None:
    split = {"stable": 95, "spare": 5}
    wanted = planned(web(split=split), backends())
    assert gets_copies(wanted) == set()
    [problem] = wanted.problems
    assert problem.warning
    assert "mirroring rests: pool 'spare' has 5 % of the new flows" in problem.message
    assert web(split={"stable": 100, "spare": 0}).mirrored is not None


def test_a_pool_of_nobody_is_told() -> None:
    [problem] = planned(web(mirror={"pool": "nobody", "percent": 1}), backends()).problems
    assert problem.warning
    assert "no backend of pool 'nobody' takes new flows" in problem.message


@pytest.mark.parametrize(("percent", "limit"), [(0, 0), (0.5, 328), (10, 6554), (100, 65536)])
def test_what_the_kernel_is_told(percent: float, limit: int) -> None:
    asked = web(mirror={"pool": "spare", "percent": percent})
    raw = structs.Service.from_buffer_copy(encode.service(asked, (1, 2), mirror_table=7))
    assert (raw.mirror_table, raw.mirror_limit) == (7, limit)
    rests = web(split={"stable": 95, "spare": 5})
    raw = structs.Service.from_buffer_copy(encode.service(rests, (1, 2), mirror_table=7))
    assert (raw.mirror_table, raw.mirror_limit) == (7, 0)
    raw = structs.Service.from_buffer_copy(encode.service(asked, (1, 2)))  # of the pool's own table
    assert (raw.mirror_table, raw.mirror_limit) == (0, 0)
    known = planned(asked, backends()).backends
    flags = {n: structs.Backend.from_buffer_copy(encode.backend(known["web", n], 1)).flags for n in
             ("m1", "s1")}  # fmt: skip
    assert flags["s1"] & consts.BackendFlag.MIRROR
    assert not flags["m1"] & consts.BackendFlag.MIRROR


@pytest.fixture
def shop(lbctl):
    lbctl.ok("service", "add", "shop", "--vip", "10.0.0.1:80", "--mode", "nat")
    lbctl.ok("backend", "add", "shop", "b1", "10.0.1.1")
    return lbctl


def test_asked_for_and_ended_again(shop):
    shop.ok("service", "set", "shop", "--mirror", "canary:10")
    added = shop.ok("backend", "add", "shop", "c1", "10.0.1.2", "--pool", "canary")
    assert "no share" not in added.err
    assert "mirrored 10 % to pool canary" in shop.ok("service", "show", "shop").out
    [row] = shop.json("service", "list")
    assert row["mirror"] == {"pool": "canary", "percent": 10}
    assert row["mirrored"] is None  # no kernel here
    assert shop.json("export")["services"][0]["mirror"] == {"pool": "canary", "percent": 10}
    shop.ok("service", "set", "shop", "--mirror", "canary:2.5%")
    shop.ok("service", "set", "shop", "--no-mirror")
    assert shop.json("service", "list")[0]["mirror"] is None
    assert "mirror" not in shop.json("export")["services"][0]


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (("--mirror", "canary"), 2, "'canary' is not POOL:PERCENT"),
        (("--mirror", "canary:x"), 2, "is not POOL:PERCENT"),
        (("--mirror", "canary:101"), 2, "mirror.percent: "),
        (("--mirror", "canary:nan"), 2, "mirror.percent: "),
        (("--mirror", ":5"), 2, "mirror.pool: must be"),
        (("--mirror", "stable:5"), 4, "pool 'stable' has 100 % of the new flows"),
        (("--mirror", "canary:5", "--no-mirror"), 2, "contradict each other"),
        (("--mirror", "canary:5", "--mode", "dsr"), 2, "servers answer clients themselves"),
        (("--mirror", "canary:5", "--backup-pool", "canary"), 2, "is the backup"),
    ],
)
def test_what_is_refused_changes_nothing(shop, asked: tuple[str, ...], code: int, words: str) -> None:
    before = shop.json("export")
    refused = shop("service", "set", "shop", *asked)
    assert (refused.code, words in refused.err) == (code, True), refused.err
    assert shop.json("export") == before


def test_a_share_for_its_pool_is_no_mistake(shop):
    """A rollout begins so."""
    shop.ok("backend", "add", "shop", "c1", "10.0.1.2", "--pool", "canary")
    shop.ok("service", "set", "shop", "--mirror", "canary:10")
    told = shop.ok("service", "set", "shop", "--split", "stable=95,canary=5")
    assert "mirroring rests: pool 'canary' has 5 %" in told.err
    refused = shop("service", "set", "shop", "--mode", "gue")
    assert "mirror: in mode gue" in refused.err


def test_a_rule_for_its_pool_is_refused(shop):
    shop.ok("service", "set", "shop", "--mirror", "canary:10")
    refused = shop("rule", "add", "shop", "10.9.0.0/16", "canary")
    assert refused.code != 0
    assert "rules send clients to pool 'canary'" in refused.err
