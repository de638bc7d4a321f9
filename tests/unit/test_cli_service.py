"""lbctl service …"""

import json

import pytest

from lb.model import keys
from lb.store.base import Put


def test_add_writes_one_document_and_makes_the_seed(lbctl, store):
    result = lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80", "--mode", "nat")
    assert "service web: 10.0.0.1:80/tcp, mode nat" in result.out
    items = {item.key: json.loads(item.value) for item in store.read(keys.ROOT).items}
    assert items[keys.service("web")]["mode"] == "nat"
    assert len(bytes.fromhex(items[keys.CONFIG]["seed"])) == 16
    assert store.read(keys.ROOT).revision == 1  # one commit for both


@pytest.mark.parametrize(("mode", "header"), [("ipip", "20 bytes longer"), ("gue", "28 bytes longer")])
def test_a_tunnel_needs_room_and_that_is_said_once(lbctl, mode, header):
    assert header in lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80", "--mode", mode).err
    assert header not in lbctl.ok("service", "set", "web", "--mode", mode, "--observe").err
    assert "longer" not in lbctl.ok("service", "set", "web", "--mode", "dsr").err
    [told] = lbctl.json("service", "set", "web", "--mode", mode)["notes"]
    assert header in told


def test_the_seed_is_made_once(lbctl, store):
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80")
    seed = store.get(keys.CONFIG).value
    lbctl.ok("service", "add", "api", "--vip", "10.0.0.2:80")
    assert store.get(keys.CONFIG).value == seed


def test_looking_makes_no_revision(lbctl, store):
    lbctl.ok("service", "list")
    lbctl.ok("status")
    lbctl.ok("export")
    assert store.read(keys.ROOT).revision == 0


@pytest.mark.parametrize(
    ("vip", "address", "port"),
    [("10.0.0.1:80", "10.0.0.1", 80), ("[2001:db8::1]:443", "2001:db8::1", 443)],
)
def test_add_takes_both_families(lbctl, vip, address, port):
    lbctl.ok("service", "add", "web", "--vip", vip, "--protocol", "udp", "--affinity", "client")
    [row] = lbctl.json("service", "list")
    assert (row["vip"], row["port"], row["protocol"]) == (address, port, "udp")
    assert row["affinity"] == "client"
    assert vip + "/udp" in lbctl.ok("service", "list").out


@pytest.mark.parametrize(
    ("ports", "first", "last"), [("8000-8100", 8000, 8100), ("any", 1, 65535), ("1-65535", 1, 65535)]
)
def test_add_takes_several_ports(lbctl, ports, first, last):
    lbctl.ok("service", "add", "web", "--vip", f"10.0.0.1:{ports}")
    [row] = lbctl.json("service", "list")
    assert (row["port"], row["end_port"]) == (first, last)
    shown = "any" if last == 65535 else ports
    assert f"10.0.0.1:{shown}/tcp" in lbctl.ok("service", "list").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["web", "--vip", "10.0.0.1:90-80"], "end_port 80 is not above port 90"),
        (["web", "--vip", "10.0.0.1:80-"], "end_port: must be 1 to 65535"),
        (["web", "--vip", "10.0.0.1"], "--vip: '10.0.0.1' has no port"),
        (["web", "--vip", "2001:db8::1"], "'2001:db8::1' has no port"),
        (["web", "--vip", "10.0.0.1:"], "no port behind the colon"),
        (["web", "--vip", "[2001:db8::1:80"], "is not [ADDRESS]:PORT"),
        (["web", "--vip", "10.0.0.1:0"], "port: must be 1 to 65535, not 0"),
        (["web", "--vip", "10.0.0.1:70000"], "port: must be 1 to 65535, not 70000"),
        (["web", "--vip", "10.0.0.1:http"], "port: must be 1 to 65535, not http"),
        (["web", "--vip", "10.0.0:80"], "vip: '10.0.0' is not an IPv4 or IPv6 address"),
        (["web", "--vip", "224.0.0.1:80"], "vip: 224.0.0.1 is not a unicast address"),
        (["web", "--vip", "[fe80::1]:80"], "vip: fe80::1 is link-local"),
        (["Web", "--vip", "10.0.0.1:80"], "name: must be 1 to 63 of a-z, 0-9 and '-'"),
        (["w" * 64, "--vip", "10.0.0.1:80"], "name: must be 1 to 63"),
        (["", "--vip", "10.0.0.1:80"], "name: must be 1 to 63"),
        (["a/b", "--vip", "10.0.0.1:80"], "name: must be 1 to 63"),
        (["web", "--vip", "10.0.0.1:80", "--mode", "tunnel"], "--mode"),
        (["web"], "--vip"),
    ],
)
def test_add_refuses_bad_input_in_one_line(lbctl, store, arguments, message):
    for extra in ([], ["--dry-run"]):
        result = lbctl("service", "add", *arguments, *extra)
        assert result.code == 2
        error, hint = result.err.splitlines()
        assert error.startswith("error: ")
        assert message in error
        assert hint.startswith("hint: ")
        assert result.out == ""
    assert store.read(keys.ROOT).revision == 0


def test_add_of_a_taken_name_or_vip(web, store):
    before = store.read(keys.ROOT)
    taken = web("service", "add", "web", "--vip", "10.0.0.9:80")
    assert (taken.code, taken.err.splitlines()[0]) == (4, "error: service web exists already")
    vip = web("service", "add", "other", "--vip", "10.0.0.1:80")
    assert vip.code == 2
    assert "service other: VIP 10.0.0.1:80/tcp belongs to service 'web' already" in vip.err
    assert store.read(keys.ROOT) == before
    web.ok("service", "add", "other", "--vip", "10.0.0.1:80", "--protocol", "udp")


def test_add_with_the_address_of_a_server(web, store):
    before = store.read(keys.ROOT)
    result = web("service", "add", "other", "--vip", "10.0.1.1:80")
    assert result.code == 2
    assert result.err.splitlines() == [
        "error: service other: VIP 10.0.1.1:80/tcp is the address of backend 'web/b1' already",
        "hint: choose another address, or give that backend another one first",
    ]
    assert store.read(keys.ROOT) == before


def test_a_service_that_somebody_gave_anothers_vip(web, store):
    """lbctl has never seen a good version; the one that nodes have in force they tell of themselves."""
    web.ok("service", "add", "api", "--vip", "10.0.0.2:80")
    document = store.get(keys.service("api")).value
    store.commit([Put(keys.service("api"), document.replace("10.0.0.2", "10.0.0.1"))])
    result = web("service", "show", "api")
    assert result.code == 2
    assert result.err.splitlines() == [
        "error: service 'api' is quarantined: VIP 10.0.0.1:80/tcp belongs to service 'web' already",
        "hint: `lbctl status` shows what is in force; replace it with `lbctl apply`, or remove it",
    ]
    web.ok("backend", "weight", "web", "b1", "7")
    assert [row["name"] for row in web.json("service", "list")] == ["web"]
    # When the owner gives the VIP up, the other one gets it.
    web.ok("service", "rm", "web", "--cascade")
    assert [row["name"] for row in web.json("service", "list")] == ["api"]


@pytest.mark.usefixtures("store")
def test_list_when_empty(lbctl):
    assert "no services" in lbctl.ok("service", "list").out
    assert lbctl.json("service", "list") == []


def test_show(web):
    data = web.json("service", "show", "web")
    assert data["service"]["backends"] == 3
    assert [b["share_percent"] for b in data["backends"]] == [50.0, 30.0, 20.0]
    assert data["service"]["flows"] is None
    text = web.ok("service", "show", "web").out
    assert "no backend: reject" in text
    assert "10.0.1.3" in text


def test_set_changes_only_what_is_named(web):
    web.ok("service", "set", "web", "--no-backend", "drop", "--affinity", "client")
    row = web.json("service", "show", "web")["service"]
    assert (row["no_backend"], row["affinity"], row["tracking"]) == ("drop", "client", "moving")
    assert "unchanged" in web.ok("service", "set", "web", "--no-backend", "drop").out
    assert web("service", "set", "web").code == 2


def test_set_refuses_what_the_backends_cant_follow(lbctl, store):
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80", "--mode", "nat")
    lbctl.ok("backend", "add", "web", "b1", "10.0.1.1:8080")
    before = store.read(keys.ROOT)
    result = lbctl("service", "set", "web", "--mode", "dsr")
    assert result.code == 2
    assert "backend web/b1: mode dsr can't change the port from 80 to 8080" in result.err
    assert store.read(keys.ROOT) == before


def test_rm_refuses_while_there_are_backends(web, store):
    result = web("service", "rm", "web")
    assert result.code == 4
    assert "still has 3 backends" in result.err
    assert "--cascade" in result.err
    web.ok("service", "rm", "web", "--cascade")
    left = [item.key for item in store.read(keys.ROOT).items]
    assert [key for key in left if not key.startswith(keys.HISTORY)] == [keys.CONFIG]
    assert web("service", "rm", "web").code == 3


def test_rm_takes_the_slot_table_along(web, store):
    store.commit([Put(keys.table("web"), '{"service": "web", "backends": [], "runs": [[-1, 65536]]}')])
    web.ok("service", "rm", "web", "--cascade")
    assert store.get(keys.table("web")) is None


def test_unknown_names_suggest_close_ones(web):
    result = web("service", "show", "wbe")
    assert result.code == 3
    assert result.err == "error: no service 'wbe'\nhint: did you mean 'web'?\n"
    assert "`lbctl service list`" in web("service", "rm", "zzzzzz").err


def test_an_unreadable_service_can_be_removed_and_replaced(lbctl, store):
    store.commit([Put(keys.service("web"), '{"name": "web"}')])
    assert "quarantined" in lbctl("service", "show", "web").err
    assert lbctl("service", "add", "web", "--vip", "10.0.0.1:80").code == 4
    lbctl.ok("service", "rm", "web")
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80")


def test_a_backup_pool(lbctl):
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80", "--backup-pool", "spare")
    lbctl.ok("backend", "add", "web", "b1", "10.0.1.1")
    added = lbctl.ok("backend", "add", "web", "b2", "10.0.1.2", "--pool", "spare")
    assert "no share" not in added.err
    assert "(backup spare)" in lbctl.ok("service", "show", "web").out
    [row] = lbctl.json("service", "list")
    assert row["backup"] == "spare"
    shares = {each["name"]: each["share_percent"] for each in lbctl.json("backend", "list", "web")}
    assert shares == {"b1": 100, "b2": 0}
    tried = lbctl.ok("backend", "drain", "web", "b1", "--dry-run").out
    assert "moves 65,536 of 65,536 slots" in tried
    lbctl.ok("backend", "drain", "web", "b1")
    shares = {each["name"]: each["share_percent"] for each in lbctl.json("backend", "list", "web")}
    assert shares == {"b1": 0, "b2": 100}
    lbctl.ok("service", "set", "web", "--backup-pool", "none")
    assert lbctl.json("service", "list")[0]["backup"] is None
    refused = lbctl("service", "set", "web", "--backup-pool", "stable")
    assert refused.code == 2
    assert "has a share in the split" in refused.err


def test_a_split_by_hand(web):
    web.ok("backend", "add", "web", "c1", "203.0.113.9", "--pool", "canary")
    web.ok("service", "set", "web", "--split", "stable=95, canary=5%")
    assert "canary" in web.ok("service", "show", "web").out
    before = web.json("export")
    for split in (
        "stable=95",
        "stable=95,canary=6",
        "stable",
        "stable=x",
        "stable=50,stable=50",
        "=1",
        "",
    ):
        result = web("service", "set", "web", "--split", split)
        assert result.code == 2, split
        assert "split" in result.err
    assert web.json("export") == before
