"""lbctl backend …"""

import pytest

from lb.model import keys


def weights(lbctl):
    return {row["name"]: row["weight"] for row in lbctl.json("backend", "list", "web")}


def admins(lbctl):
    return {row["name"]: row["admin"] for row in lbctl.json("backend", "list", "web")}


def test_list_columns(web):
    header, first, *_ = web.ok("backend", "list").out.splitlines()
    columns = "SERVICE NAME ADDRESS POOL WEIGHT STATE SHARE% SLOTS FLOWS PACKETS BYTES"
    assert header.split() == columns.split()
    assert first.split() == ["web", "b1", "10.0.1.1", "stable", "50", "up", "50", *["-"] * 4]
    assert first.index(" 50 ") + 3 == header.index("WEIGHT") + 6  # figures to the right,
    assert first.index("stable") == header.index("POOL")  # words to the left


def test_list_of_one_service(web):
    web.ok("service", "add", "api", "--vip", "10.0.0.2:80")
    web.ok("backend", "add", "api", "a1", "10.0.1.9")
    assert [row["name"] for row in web.json("backend", "list", "api")] == ["a1"]
    assert len(web.json("backend", "list")) == 4
    assert web("backend", "list", "nope").code == 3


def test_add_with_a_port_needs_nat(lbctl):
    lbctl.ok("service", "add", "web", "--vip", "[2001:db8::1]:80", "--mode", "nat")
    lbctl.ok("backend", "add", "web", "b1", "[2001:db8:1::1]:8080", "--weight", "7")
    lbctl.ok("backend", "add", "web", "b2", "2001:db8:1::2")
    b1, b2 = lbctl.json("backend", "list")
    assert (b1["address"], b1["port"], b1["weight"]) == ("2001:db8:1::1", 8080, 7)
    assert (b2["address"], b2["port"], b2["weight"]) == ("2001:db8:1::2", None, 100)
    assert "[2001:db8:1::1]:8080" in lbctl.ok("backend", "list").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["web", "b4", "10.0.1.4", "--weight", "70000"], "weight: must be 0 to 65535, not 70000"),
        (["web", "b4", "10.0.1.4", "--weight", "-1"], "weight: must be 0 to 65535, not -1"),
        (["web", "b4", "10.0.1.4", "--weight", "ten"], "weight: must be 0 to 65535, not ten"),
        (["web", "B4", "10.0.1.4"], "name: must be 1 to 63"),
        (["web", "b4", "10.0.1"], "address: '10.0.1' is not an IPv4 or IPv6 address"),
        (["web", "b4", "10.0.1.4:8080"], "mode dsr can't change the port from 80 to 8080"),
        (["web", "b4", "10.0.0.1"], "address 10.0.0.1 is a VIP itself"),
        (["web", "b4", "10.0.1.1"], "10.0.1.1:80/tcp is backend 'web/b1' already"),
        (["web", "b4", "10.0.1.4", "--pool", "No"], "pool: must be 1 to 63"),
    ],
)
def test_add_refuses_bad_input(web, store, arguments, message):
    before = store.read(keys.ROOT)
    for extra in ([], ["--dry-run"]):
        result = web("backend", "add", *arguments, *extra)
        assert (result.code, result.out) == (2, "")
        assert message in result.err.splitlines()[0]
    assert store.read(keys.ROOT) == before


def test_add_to_nothing_and_twice(web):
    result = web("backend", "add", "wbe", "b1", "10.0.1.4")
    assert (result.code, "did you mean 'web'?" in result.err) == (3, True)
    result = web("backend", "add", "web", "b1", "10.0.1.4")
    assert (result.code, "backend web/b1 exists already" in result.err) == (4, True)
    assert "lbctl backend show web b1" in result.err


def test_add_drained_and_in_a_pool_without_share(web):
    result = web.ok("backend", "add", "web", "c1", "10.0.1.4", "--pool", "canary", "--drain")
    assert "pool canary has no share in the split" in result.err
    row = web.json("backend", "show", "web", "c1")
    assert (row["admin"], row["pool"], row["share_percent"]) == ("drain", "canary", 0.0)


def test_weight_of_one(web):
    result = web.ok("backend", "weight", "web", "b1", "45")
    assert "~ backend web/b1: weight 50 -> 45" in result.out
    assert weights(web) == {"b1": 45, "b2": 30, "b3": 20}


def test_weight_of_several_is_one_commit(web, store):
    revision = store.read(keys.ROOT).revision
    web.ok("backend", "weight", "web", "b1=1", "b3=0")
    assert weights(web) == {"b1": 1, "b2": 30, "b3": 0}
    assert store.read(keys.ROOT).revision == revision + 1


def test_weight_of_several_is_all_or_nothing(web, store):
    before = store.read(keys.ROOT)
    assert web("backend", "weight", "web", "b1=1", "b9=2").code == 3
    assert web("backend", "weight", "web", "b1=1", "b2=70000").code == 2
    assert store.read(keys.ROOT) == before


def test_the_same_weight_is_unchanged(web, store):
    before = store.read(keys.ROOT)
    result = web.ok("backend", "weight", "web", "b1", "50")
    assert result.out == "unchanged\n"
    assert store.read(keys.ROOT) == before
    data = web.json("backend", "weight", "web", "b1", "50")
    assert (data["changed"], data["revision"], data["changes"]) == (False, None, [])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["b1"], "'b1' is not NAME=WEIGHT"),
        (["b1", "2", "b2", "3"], "is not NAME=WEIGHT"),
        (["b1=1", "b1=2"], "'b1' comes twice"),
        (["b1="], "'b1=' is not NAME=WEIGHT"),
        (["b1", "70000"], "weight: must be 0 to 65535, not 70000"),
        (["b1", "-5"], "weight: -5 reads like a step"),
        (["b1", "1.5"], "weight: must be 0 to 65535, not 1.5"),
        (["b1", ""], "weight: must be 0 to 65535"),
    ],
)
def test_weight_refuses_bad_input(web, store, typed, message):
    before = store.read(keys.ROOT)
    result = web("backend", "weight", "web", *typed)
    assert result.code == 2
    assert message in result.err
    assert store.read(keys.ROOT) == before


def test_states(web):
    web.ok("backend", "drain", "web", "b1", "b2")
    assert admins(web) == {"b1": "drain", "b2": "drain", "b3": "up"}
    web.ok("backend", "down", "web", "b2")
    web.ok("backend", "up", "web", "b1")
    assert admins(web) == {"b1": "up", "b2": "down", "b3": "up"}
    assert "unchanged" in web.ok("backend", "up", "web", "b1").out
    assert weights(web)["b2"] == 30  # a state keeps the weight


def test_shares_are_exact(web):
    web.ok("backend", "weight", "web", "b1=1", "b2=1", "b3=1")
    shares = [row["share_percent"] for row in web.json("backend", "list")]
    assert shares == pytest.approx([100 / 3] * 3)
    assert "33.33" in web.ok("backend", "list").out
    web.ok("backend", "drain", "web", "b1")
    assert [row["share_percent"] for row in web.json("backend", "list")] == [0, 50, 50]
    web.ok("backend", "weight", "web", "b2=0", "b3=0")
    assert [row["share_percent"] for row in web.json("backend", "list")] == [0, 0, 0]


def test_rm(web, store):
    web.ok("backend", "rm", "web", "b1", "b2")
    assert list(weights(web)) == ["b3"]
    assert store.get(keys.backend("web", "b1")) is None
    result = web("backend", "rm", "web", "b1")
    assert (result.code, "service 'web' has no backend 'b1'" in result.err) == (3, True)


def test_rm_help_points_to_drain(lbctl):
    text = " ".join(lbctl.ok("backend", "rm", "--help").out.split())
    assert "established flows are placed anew" in text
    assert "lbctl backend drain" in text


def limits(lbctl):
    return {row["name"]: row["max_connections"] for row in lbctl.json("backend", "list", "web")}


def test_limit_needs_fullnat(lbctl):
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80", "--mode", "fullnat")
    lbctl.ok("backend", "add", "web", "b1", "10.0.1.1", "--max-connections", "500")
    lbctl.ok("backend", "add", "web", "b2", "10.0.1.2")
    assert limits(lbctl) == {"b1": 500, "b2": None}
    lbctl.ok("backend", "limit", "web", "b1", "b2", "--max-connections", "70")
    assert limits(lbctl) == {"b1": 70, "b2": 70}
    lbctl.ok("backend", "limit", "web", "b1", "--max-connections", "none")
    assert limits(lbctl) == {"b1": None, "b2": 70}
    assert (
        "must be 1 to 4294967295" in lbctl("backend", "limit", "web", "b1", "--max-connections", "0").err
    )
    assert "limit of what?" in lbctl("backend", "limit", "web", "b1").err
    refused = lbctl("service", "set", "web", "--mode", "nat")
    assert refused.code
    assert "max_connections: in mode nat" in refused.err
    assert limits(lbctl) == {"b1": None, "b2": 70}


def test_a_drain_of_udp_says_when_it_is_one(lbctl):
    lbctl.ok("service", "add", "dns", "--vip", "10.0.0.1:53", "--protocol", "udp")
    lbctl.ok("backend", "add", "dns", "b1", "10.0.1.1")
    lbctl.ok("backend", "add", "dns", "b2", "10.0.1.2")
    for command in (("drain", "dns", "b1"), ("weight", "dns", "b1=0")):
        assert "new UDP flows may still go to b1 for 900 s" in lbctl.ok("backend", *command).err
    assert lbctl.ok("backend", "up", "dns", "b1").err == ""
    lbctl.ok("service", "set", "dns", "--tracking", "always")
    assert lbctl.ok("backend", "drain", "dns", "b1").err == ""


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (("b1", "+10"), "b1 60"),
        (("b1=-10",), "b1 40"),
        (("b1=1", "b2=-90"), "b2 0"),
        (("b1", "+x"), "b1 50"),
    ],
)
def test_a_weight_with_a_sign_is_no_step(web, store, words, typed):
    before = store.read("")
    result = web("backend", "weight", "web", *words)
    assert result.code == 2
    assert "reads like a step from the present weight" in result.err
    assert result.err.endswith(f"lbctl backend weight web {typed}\n")
    assert store.read("") == before
