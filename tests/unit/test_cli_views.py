"""What is shown of nodes and kernel: status, trace, doctor, counters in lists."""

import sys
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import yaml

from lb.errors import DatapathError
from lb.model import keys
from lb.model.objects import TableDocument
from lb.model.reports import BackendHealth, Member
from lb.store.base import Delete, Put


@dataclass
class Stats:
    packets: int
    bytes: int
    flows: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0


@dataclass
class FakeKernel:
    services: dict = field(default_factory=dict)
    backends: dict = field(default_factory=dict)
    slots: dict = field(default_factory=dict)
    ends: dict = field(default_factory=dict)
    traced: list = field(default_factory=list)
    answer: object = None

    def service_stats(self, service):
        return self.services.get(service)

    def backend_stats(self, service, backend):
        return self.backends.get((service, backend))

    def slot_counts(self, service):
        return self.slots.get(service)

    def outcomes(self):
        return self.ends

    def trace(self, *flow):
        self.traced.append(flow)
        return self.answer


@pytest.fixture
def kernel(monkeypatch):
    fake = FakeKernel()
    monkeypatch.setattr("lb.cli.kernel.kernel_if_any", lambda _settings, _state: fake)
    monkeypatch.setattr("lb.cli.kernel.open_kernel", lambda _settings, _state: fake)
    return fake


def test_lists_show_the_kernels_figures(web, kernel):
    kernel.services["web"] = Stats(1234567, 10, 25000)
    kernel.backends["web", "b1"] = Stats(5, 600, 3, 4, 500)
    kernel.slots["web"] = {"b1": 32768, "b2": 32768}
    b1, b2, b3 = web.json("backend", "list")
    assert (b1["slots"], b1["flows"], b1["packets"], b1["bytes"]) == (32768, 3, 5, 600)
    assert (b1["reply_packets"], b1["reply_bytes"]) == (4, 500)
    assert (b2["slots"], b2["packets"]) == (32768, None)
    assert b3["slots"] == 0  # the kernel has the service: none is a figure
    [service] = web.json("service", "list")
    assert (service["flows"], service["packets"], service["bytes"]) == (25000, 1234567, 10)
    lines = web.ok("backend", "list").out.splitlines()
    assert lines[1].split()[-4:] == ["32,768", "3", "5", "600"]
    assert lines[2].split()[-4:] == ["32,768", "-", "-", "-"]
    assert "25,000" in web.ok("service", "list").out


def test_a_kernel_that_refuses_is_no_error_in_lists(web, kernel):
    def refuse(*_):
        raise DatapathError("gone")

    kernel.service_stats = kernel.backend_stats = kernel.slot_counts = kernel.outcomes = refuse
    assert web.json("backend", "list")[0]["slots"] is None
    assert web.json("service", "list")[0]["packets"] is None
    assert web.json("status")["outcomes"] is None


def test_the_real_kernel_view_without_maps(web, machine, monkeypatch):
    """No fake: the directory is there, lbd was never started."""
    (machine / "pins").mkdir()
    monkeypatch.setenv("LB_PIN_DIR", str(machine / "pins"))
    assert web.json("backend", "list")[0]["flows"] is None
    result = web("trace", "10.9.0.1:1000", "10.0.0.1:80")
    assert result.code == 6
    assert len(result.err.splitlines()) == 2


def test_status_of_an_empty_store(lbctl, store):
    assert not store.read("").items
    text = lbctl.ok("status").out
    assert "revision 0" in text
    assert "no node is running" in text
    data = lbctl.json("status")
    assert (data["nodes"], data["quarantined"], data["outcomes"]) == ([], [], None)


def test_status(web, nodes, kernel, store):
    digests = {"web": "0123456789abcdef"}
    link = {"interface": "eth0", "hook": "xdp", "why": "the driver runs it"}
    nodes.put("n1", 4, links=(link,), digests=digests, unresolved=("web/b2",))
    nodes.put("n2", 4, digests=digests, problems=({"where": "n2", "message": "hot", "hint": "cool it"},))
    kernel.ends = {
        "forward_tx": Stats(7, 700),
        "drop_no_backend": Stats(2, 120),
        "drop_malformed": Stats(0, 0),
    }
    text = web.ok("status").out
    for part in ("eth0", "xdp", "the driver runs it", "2 nodes agree", "hot", "cool it", "web/b2"):
        assert part in text
    assert "drop_no_backend" in text
    assert "drop_malformed" not in text  # nothing to see
    assert "BEHIND" not in text
    data = web.json("status")
    assert data["desired_revision"] == 4
    assert data["store"]["revision"] == store.read(keys.ROOT).revision
    assert [(n["node"], n["applied"]) for n in data["nodes"]] == [("n1", True), ("n2", True)]
    assert data["digests_agree"] == {"web": True}
    assert data["outcomes"]["drop_no_backend"] == {"packets": 2, "bytes": 120}
    assert data["outcomes"]["drop_malformed"]["packets"] == 0
    assert yaml.safe_load(web.ok("status", "-o", "yaml").out) == data


def test_status_shows_who_is_behind_and_who_disagrees(web, nodes):
    nodes.put("n1", 4, digests={"web": "a"})
    nodes.put("n2", 3, digests={"web": "b"})
    text = web.ok("status").out
    assert "3, BEHIND" in text
    assert web.json("status")["digests_agree"] == {"web": True}  # n2 is behind: that is all
    nodes.put("n2", 4, digests={"web": "b"})
    assert web.json("status")["digests_agree"] == {"web": False}
    assert "DISAGREE on the slot tables of web" in web.ok("status").out
    # Of a pool that rules send clients to, too.
    nodes.put("n1", 4, digests={"web": "a", "web/canary": "c"})
    nodes.put("n2", 4, digests={"web": "a", "web/canary": "d"})
    assert web.json("status")["digests_agree"] == {"web": False}
    nodes.put("n2", 4, digests={"web": "a", "web/canary": "c"})
    assert web.json("status")["digests_agree"] == {"web": True}


def test_full_backends_are_shown_apart_and_are_no_disagreement(web, nodes):
    full = {"web/b2": {"connections": 1200, "limit": 1000}}
    nodes.put("n1", 4, digests={"web": "a"})
    nodes.put("n2", 4, digests={"web": "b"}, full=full)
    nodes.put("n3", 4, digests={"web": "a"})
    assert web.json("status")["digests_agree"] == {"web": True}
    nodes.put("n3", 4, digests={"web": "c"})
    assert web.json("status")["digests_agree"] == {"web": False}
    text = web.ok("backend", "list", "web").out
    [line] = [line for line in text.splitlines() if "full" in line]
    assert " b2 " in line
    assert "full: 1,200 of 1,000 connections" in line
    assert "n2: full, with 1,200 of 1,000 connections" in web.ok("backend", "show", "web", "b2").out
    rows = {row["name"]: row["full_on"] for row in web.json("backend", "list", "web")}
    assert rows == {"b1": {}, "b2": {"n2": full["web/b2"]}, "b3": {}}


def test_status_without_tables(web, nodes):
    nodes.put("n1", 4)
    assert web.json("status")["digests_agree"] == {"web": None}


def test_status_shows_what_is_quarantined(web, nodes, store):
    key = keys.backend("web", "b1")
    store.commit([Put(key, '{"service": "web", "name": "b1", "address": "x"}')])
    [problem] = web.json("status")["quarantined"]
    assert problem["where"] == key
    assert key in web.ok("status").out
    # A node knows better what is in force: then its words are shown, once.
    nodes.put("n1", 9, problems=({"where": key, "message": "the last good version stays in force"},))
    text = web.ok("status").out
    assert text.count(key) == 1
    assert "the last good version" in text


def test_status_shows_rollouts_that_cannot_be_read_and_keys_that_nobody_reads(web, nodes, store):
    nodes.follow("n1")
    strange = (f"{keys.ROOT}servics/s7", f"{keys.EVERYTHING}v2/x", f"{keys.REPORTS}stray")
    broken = {keys.rollout("web"): '{"service": "web"}', keys.rollout("x"): "no json"}
    store.commit([*(Put(key, "{}") for key in strange), *(Put(*each) for each in broken.items())])
    found = {each["where"]: each for each in web.json("status")["quarantined"]}
    assert found.keys() == {*strange, *broken}
    text = web.ok("status").out
    for key in (*strange, *broken):
        assert text.count(key) >= 1
        assert found[key]["hint"] in text
    assert "id: Field required" in found[keys.rollout("web")]["message"]
    assert found[keys.rollout("web")]["hint"].startswith("lbctl rollout abort web ")


def test_status_with_a_rollout_and_reports_of_nodes_has_nothing_stray(canary, nodes):
    nodes.follow("n1")
    canary.ok("rollout", "start", "web", "--to", "canary", "--no-analysis")
    assert canary.json("status")["quarantined"] == []


def test_status_check(web, nodes, store):
    nobody = web("status", "--check")
    assert (nobody.code, "WRONG: no node is running" in nobody.out) == (1, True)
    assert web("status").code == 0  # without it, it only shows
    nodes.follow("n1", problems=({"where": "n1", "message": "only so", "hint": "", "warning": True},))
    web.ok("backend", "weight", "web", "b1", "9", "--wait")
    assert web.json("status", "--check")["wrong"] == []

    nodes.put("n2", 1)
    behind = web("status", "--check", "-o", "json")
    assert (behind.code, behind.json["ok"]) == (1, False)
    assert [each.partition(":")[0] for each in behind.json["wrong"]] == ["node n2 is behind"]
    nodes.put("n2", 99, problems=({"where": "web/b1", "message": "no way to it", "hint": "a route"},))
    assert web("status", "--check", "-o", "json").json["wrong"] == ["node n2: web/b1: no way to it"]
    nodes.put("n2", 99)
    assert web("status", "--check").code == 0

    store.commit([Put(keys.member("n3"), Member(node="n3", since=0.0).model_dump_json())])
    assert web("status", "--check", "-o", "json").json["wrong"] == ["node n3 is lost"]
    store.commit([Delete(keys.member("n3")), Put(keys.service("bad"), "{}")])
    assert web("status", "--check").code == 1


def test_unresolved_backends_are_marked(web, nodes):
    nodes.put("n1", 4, unresolved=("web/b2",))
    rows = {row["name"]: row["unresolved_on"] for row in web.json("backend", "list")}
    assert rows == {"b1": [], "b2": ["n1"], "b3": []}
    assert "up, unresolved" in web.ok("backend", "show", "web", "b2").out
    assert "no way to 10.0.1.2 was found on node n1" in web.ok("backend", "show", "web", "b2").out


def test_what_has_no_room_is_marked(web, nodes):
    nodes.put("n1", 4, left_out=("web", "web/b2"))
    rows = {row["name"]: row["left_out_on"] for row in web.json("backend", "list")}
    assert rows == {"b1": [], "b2": ["n1"], "b3": []}
    shown = web.ok("backend", "show", "web", "b2").out
    assert "up, no room" in shown
    assert "node n1 has no room for it: `lbctl status` says which map is full" in shown
    assert [row["left_out_on"] for row in web.json("service", "list")] == [["n1"]]
    assert "node n1 has no room for all of it" in web.ok("service", "show", "web").out


def trace(**fields):
    values = {
        "service": "web",
        "pool": None,
        "slot": 77,
        "slot_backend": "b1",
        "tracked_backend": None,
        "backend": "b1",
        "why": ["the VIP belongs to service 'web'", "slot 77 names b1"],
        "verdict": "sent out of interface 3",
    }
    return SimpleNamespace(**{**values, **fields})


def test_trace(web, kernel):
    kernel.answer = trace()
    text = web.ok("trace", "10.9.0.1:1000", "10.0.0.1:80", "--protocol", "udp").out
    assert "10.9.0.1:1000 -> 10.0.0.1:80/udp: backend web/b1" in text
    assert "2. slot 77 names b1" in text
    [(protocol, client, client_port, vip, vip_port)] = kernel.traced
    assert (protocol, str(client), client_port, str(vip), vip_port) == (
        *("udp", "10.9.0.1", 1000, "10.0.0.1", 80),
    )
    data = web.json("trace", "[2001:db8::9]:1000", "[2001:db8::1]:80")
    assert (data["client"], data["slot"], data["backend"]) == ("2001:db8::9", 77, "b1")
    assert data["why"] == kernel.answer.why


def test_trace_tells_what_this_nodes_checks_found(web, kernel, nodes, store, monkeypatch):
    """b1 has the slot in the shared table; b2 stands in for it."""
    found = {
        "web/b1": BackendHealth(state="unhealthy", since=time.time() - 200, share=0, error="refused"),
        "web/b2": BackendHealth(state="healthy", since=time.time() - 7, share=1),
    }
    nodes.put("other", 1, health={"web/b1": found["web/b2"]})
    nodes.put("this", 1, health=found)
    monkeypatch.setenv("LB_NODE", "this")
    for pool, runs in ((None, ((1, 77), (0, 65459))), ("canary", ((1, 65536),))):
        document = TableDocument(service="web", pool=pool, backends=("b1", "b2"), parts={}, runs=runs)
        store.commit([Put(keys.table(document.path), document.model_dump_json())])
    kernel.answer = trace(slot_backend="b2", backend="b2")
    asked, named = web.json("trace", "10.9.0.1:1000", "10.0.0.1:80")["why"][2:]
    assert asked.startswith("the shared table has b1 in slot 77, and b1 is unhealthy on this node since")
    assert asked.endswith("(3m): refused")
    assert named.startswith("b2 is healthy on this node since")
    # A rule's clients are placed by another table.
    kernel.answer = trace(slot_backend="b2", backend="b2", pool="canary")
    [named] = web.json("trace", "10.9.0.1:1000", "10.0.0.1:80")["why"][2:]
    assert named.startswith("b2 is healthy")


def test_trace_of_what_is_not_ours(web, kernel):
    kernel.answer = trace(service=None, slot=None, slot_backend=None, backend=None, why=["no VIP"])
    assert ": no backend" in web.ok("trace", "10.9.0.1:1000", "10.0.0.9:80").out


@pytest.mark.parametrize(
    ("client", "vip", "message"),
    [
        ("10.9.0.1", "10.0.0.1:80", "CLIENT:PORT: '10.9.0.1' has no port"),
        ("10.9.0.1:0", "10.0.0.1:80", "CLIENT:PORT: port must be 1 to 65535, not 0"),
        ("10.9.0.1:1", "10.0.0.1:http", "VIP:PORT: port must be 1 to 65535, not http"),
        ("10.9.0.1:1", "example.org:80", "VIP:PORT: 'example.org' is not an IPv4 or IPv6 address"),
        ("10.9.0.1:1", "[2001:db8::1]:80", "10.9.0.1 is IPv4, but 2001:db8::1 is IPv6"),
    ],
)
def test_trace_refuses(web, kernel, client, vip, message):
    result = web("trace", client, vip)
    assert result.code == 2
    assert message in result.err
    assert kernel.traced == []


@pytest.mark.parametrize(("last", "code"), [(True, 0), (None, 0), (False, 1)])
def test_doctor(lbctl, monkeypatch, last, code):
    checks = [
        SimpleNamespace(name="kernel", ok=True, detail="6.1", hint=""),
        SimpleNamespace(name="headers", ok=last, detail="looked", hint="apt install linux-headers"),
    ]
    seen = []
    module = SimpleNamespace(run=lambda settings: seen.append(settings) or checks)
    monkeypatch.setitem(sys.modules, "lb.node.doctor", module)
    result = lbctl("doctor")
    assert result.code == code
    assert seen[0].store.endswith("store.db")
    assert "6.1" in result.out
    assert ("apt install linux-headers" in result.out) is (last is not True)
    data = lbctl("doctor", "-o", "json")
    assert (data.code, data.json[1]["ok"]) == (code, last)


def test_tables_on_a_terminal(web, monkeypatch):
    """rich lays them out; brackets of IPv6 addresses are no markup to it."""
    web.ok("service", "add", "six", "--vip", "[2001:db8::1]:80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert "[2001:db8::1]:80/tcp" in web.ok("service", "list").out
