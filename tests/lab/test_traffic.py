"""Real packets through the real program: every hook and mode, and what must not break a connection."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from helpers import ENOUGH, create, held, outcomes, service
from transfers import ask_udp

from lb.lab.lab import UDP_PORT, Lab
from lb.lab.load import Client, finish
from lb.lab.shell import wait_until
from lb.lab.topology import VIP4, VIP6, Address


@pytest.mark.parametrize("hook", ["xdp", "xdp-generic", "tc"])
@pytest.mark.parametrize("mode", ["dsr", "nat", "fullnat"])
def test_every_hook_and_mode_reaches_every_backend(
    node: Callable[[str], Lab], hook: str, mode: str
) -> None:
    lab = node(hook)
    lab.start_udp_servers()
    create(
        lab,
        service(lab, "web", VIP4, mode=mode),
        service(lab, "web6", VIP6, mode=mode),
        # Only where each is remembered, UDP flows can be counted.
        service(lab, "udp", VIP4, mode=mode, port=UDP_PORT, protocol="udp", tracking="always"),
    )
    everybody = set(lab.topology.backends)
    for vip in (VIP4, VIP6):
        with held(lab, vip, ENOUGH) as connections:
            answers = connections.ask()
            assert set(answers) == everybody
            assert connections.ask() == answers
        assert " 0% packet loss" in lab.run("client", ["ping", "-c", "2", "-i", "0.2", str(vip)]).stdout
    assert ask_udp(lab, VIP4, range(20000, 20000 + ENOUGH)) == everybody
    counters = json.loads(lab.lbctl("service", "list", "-o", "json").stdout)
    flows = {each["name"]: each["flows"] for each in counters}
    assert flows == dict.fromkeys(("web", "web6", "udp"), ENOUGH)
    # SYN, ACK, request, ACK of the answer, and the end of each.
    assert next(each["packets"] for each in counters if each["name"] == "web") >= 5 * ENOUGH


def test_the_same_flows_reach_the_same_backends_under_xdp_and_tc(node: Callable[[str], Lab]) -> None:
    lab = node("xdp")
    create(lab, service(lab, "web", VIP4))
    with held(lab, VIP4, 60, 30000) as connections:
        under_xdp = connections.ask()
    lab.kill_lbd()
    lab.start_lbd("tc")
    wait_until("an answer", lambda: lab.answer(VIP4) != "")
    with held(lab, VIP4, 60, 30000) as connections:
        assert connections.ask() == under_xdp
    assert len(set(under_xdp)) == 4


def test_a_backend_on_the_clients_own_segment_is_sent_back_out(running: Lab) -> None:
    lab = running
    web = service(lab, "web", VIP4)
    for backend in web["backends"]:
        backend["address"] = str(lab.topology.front_addresses(backend["name"])[0])
    create(lab, web)
    before = outcomes(lab)
    with held(lab, VIP4, ENOUGH) as connections:
        assert set(connections.ask()) == set(lab.topology.backends)
    after = outcomes(lab)
    assert after["forward_tx"] - before["forward_tx"] >= ENOUGH
    assert after["forward_redirect"] == before["forward_redirect"]


@pytest.mark.parametrize("mode", ["dsr", "nat", "fullnat"])
def test_weights_drain_and_moves_break_no_connection(node: Callable[[str], Lab], mode: str) -> None:
    lab = node("auto")
    create(lab, service(lab, "web", VIP4, mode=mode))
    one, two, *_ = lab.topology.backends
    with held(lab, VIP4, ENOUGH) as connections:
        before = connections.ask()
        assert one in before
        lab.lbctl("backend", "drain", "web", one, "--wait")
        assert connections.ask() == before
        lab.lbctl("backend", "weight", "web", two, "0", "--wait")
        assert connections.ask() == before
        with held(lab, VIP4, ENOUGH) as newer:
            assert set(newer.ask()) == {*lab.topology.backends} - {one, two}
        lab.lbctl("backend", "up", "web", one, "--wait")
        lab.lbctl("backend", "weight", "web", two, "100", "--wait")
        assert connections.ask() == before


def test_down_places_established_flows_anew(running: Lab) -> None:
    lab = running
    create(lab, service(lab, "web", VIP4))
    one = lab.topology.backends[0]
    with held(lab, VIP4, ENOUGH) as connections:
        before = connections.ask()
        lab.lbctl("backend", "down", "web", one, "--wait")
        after = connections.ask()
        # The new backend knows nothing of the connection and resets it: a client can reconnect.
        for was, now in zip(before, after, strict=True):
            assert now.startswith("!") if was == one else now == was


@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_killed_and_started_again_breaks_nothing_and_forgets_nothing(
    node: Callable[[str], Lab], hook: str
) -> None:
    lab = node(hook)
    create(lab, service(lab, "web", VIP4, mode="nat"))
    one = lab.topology.backends[0]
    with held(lab, VIP4, ENOUGH) as connections:
        before = connections.ask()
        # These flows now live on their conntrack entries alone.
        lab.lbctl("backend", "weight", "web", one, "0", "--wait")
        packets = _packets(lab)
        lab.kill_lbd(signal.SIGKILL)
        assert connections.ask() == before
        lab.lbctl("backend", "weight", "web", one, "50")
        lab.start_lbd(hook)
        assert connections.ask() == before
        assert _packets(lab) > packets
        wait_until("the change made meanwhile", lambda: _slots(lab, one) > 0)
        assert connections.ask() == before


def _packets(lab: Lab) -> int:
    (service,) = json.loads(lab.lbctl("service", "list", "-o", "json").stdout)
    return int(service["packets"])


def _slots(lab: Lab, backend: str) -> int:
    listed = json.loads(lab.lbctl("backend", "list", "web", "-o", "json").stdout)
    return int(next(each["slots"] or 0 for each in listed if each["name"] == backend))


def test_sigterm_leaves_the_data_path_and_detach_removes_it(running: Lab) -> None:
    lab = running
    create(lab, service(lab, "web", VIP4))
    lab.kill_lbd(signal.SIGTERM)
    assert lab.answer(VIP4) in lab.topology.backends
    lab.detach_lbd()
    assert lab.answer(VIP4) == ""
    links = lab.run("node1", ["ip", "-details", "link"]).stdout
    assert "xdp" not in links.replace("qdisc noqueue", "")
    assert "clsact" not in lab.run("node1", ["tc", "qdisc"]).stdout
    assert not (lab.node_folder / "bpf/lb").exists()


def test_detach_stops_a_running_lbd(running: Lab) -> None:
    lab = running
    lbd = lab.lbd
    assert lbd
    lab.detach_lbd()
    assert lbd.wait(timeout=10) == 0
    lab.lbd = None


@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_without_a_usable_backend_clients_are_told_or_not(node: Callable[[str], Lab], hook: str) -> None:
    lab = node(hook)
    wanted = [
        service(lab, f"{protocol}{vip.version}", vip, port=port, protocol=protocol)
        for vip in (VIP4, VIP6)
        for protocol, port in (("tcp", 80), ("udp", UDP_PORT))
    ]
    for each in wanted:
        for backend in each["backends"]:
            backend["admin"] = "down"
    create(lab, *wanted)
    before = outcomes(lab)
    for vip in (VIP4, VIP6):
        assert _refused(lab, vip, "STREAM", 80)
        assert _refused(lab, vip, "DGRAM", UDP_PORT)
    after = outcomes(lab)
    assert after["reject_rst"] - before["reject_rst"] == 2
    assert after["reject_unreach"] - before["reject_unreach"] == 2
    lab.lbctl("service", "set", "tcp4", "--no-backend", "drop", "--wait")
    assert not _refused(lab, VIP4, "STREAM", 80)
    assert outcomes(lab)["drop_no_backend"] > after["drop_no_backend"]


def _refused(lab: Lab, vip: Address, kind: str, port: int) -> bool:
    """Is a client told that nobody serves? (False: it waits for 3 s in vain.)"""
    code = (
        f"import socket; s = socket.socket(socket.AF_INET{'6' if vip.version == 6 else ''},"
        f" socket.SOCK_{kind}); s.settimeout(3)\n"
        f"try: s.connect(('{vip}', {port})); s.send(b'?'); s.recv(1); print('answered')\n"
        "except ConnectionRefusedError: print('refused')\n"
        "except TimeoutError: print('silence')"
    )
    said = lab.run("client", [sys.executable, "-c", code]).stdout.strip()
    assert said in ("refused", "silence")
    return said == "refused"


def test_traffic_for_others_passes_untouched(running: Lab) -> None:
    lab = running
    # Where flows are remembered, an answer to somebody else can be told from one of ours.
    create(lab, service(lab, "web", VIP4, mode="nat", tracking="always"))
    for backend in lab.topology.backends:
        v4, v6 = lab.topology.back_addresses(backend)
        # Straight to a backend's own address, through the node as a router: not the balancer's.
        assert lab.answer(v4) == backend
        assert lab.answer(v6) == backend
    assert " 0% packet loss" in lab.run("client", ["ping", "-c", "1", "198.51.100.1"]).stdout


def test_trace_tells_where_flows_go(running: Lab) -> None:
    lab = running
    create(lab, service(lab, "web", VIP4))
    told = []
    for port in range(31000, 31010):
        arguments = ["trace", "--protocol", "tcp", f"198.51.100.10:{port}", f"{VIP4}:80", "-o", "json"]
        told.append(json.loads(lab.lbctl(*arguments).stdout)["backend"])
    with held(lab, VIP4, 10, 31000) as connections:
        assert connections.ask() == told


def test_what_was_changed_by_hand_is_put_right(running: Lab) -> None:
    lab = running
    create(lab, service(lab, "web", VIP4))
    pins = lab.node_folder / "bpf/lb/maps"
    dumped = json.loads(
        subprocess.run(
            ["bpftool", "-j", "map", "dump", "pinned", str(pins / "vips")],
            capture_output=True, text=True, check=True,
        ).stdout
    )  # fmt: skip
    assert dumped
    for entry in dumped:
        subprocess.run(
            ["bpftool", "map", "delete", "pinned", str(pins / "vips"), "key", "hex",
             *(byte.removeprefix("0x") for byte in entry["key"])],
            check=True,
        )  # fmt: skip
    lab.run("node1", ["ip", "link", "set", "front0", "xdp", "off"])
    assert lab.lbd
    lab.lbd.send_signal(signal.SIGHUP)
    wait_until("the repair", lambda: lab.answer(VIP4) in lab.topology.backends)

    def problems() -> str:
        (node,) = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
        return str(node["problems"])

    wait_until("the report", lambda: "somebody else had changed the kernel's maps" in problems())
    assert "changed by somebody else: put right entries=" in lab.lbd_log.read_text()
    # An audit that finds nothing says nothing.
    before = lab.lbd_log.read_text().count("put right entries=")
    lab.lbd.send_signal(signal.SIGHUP)
    lab.lbctl("backend", "weight", "web", lab.topology.backends[0], "7", "--wait")
    lab.lbd.send_signal(signal.SIGHUP)
    lab.lbctl("backend", "weight", "web", lab.topology.backends[0], "8", "--wait")
    assert lab.lbd_log.read_text().count("put right entries=") == before


def test_a_lost_store_does_not_stop_the_traffic(running: Lab) -> None:
    lab = running
    create(lab, service(lab, "web", VIP4))
    lab.kill_lbd()
    store = lab.node_folder / "store.db"
    kept = lab.node_folder / "kept"
    kept.mkdir()
    for file in lab.node_folder.glob("store.db*"):
        file.rename(kept / file.name)
    try:
        lab.start_lbd()
        assert lab.answer(VIP4) in lab.topology.backends
        (node,) = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
        assert "store is new and empty, but the kernel holds 1 services" in str(node["problems"])
        lab.kill_lbd()
    finally:
        for file in lab.node_folder.glob("store.db*"):
            file.unlink()
        for file in kept.iterdir():
            file.rename(store.with_name(file.name))
        kept.rmdir()
    lab.start_lbd()
    assert lab.answer(VIP4) in lab.topology.backends


def test_a_new_mac_address_of_the_nodes_interface_is_followed(running: Lab) -> None:
    lab = running
    create(lab, service(lab, "web", VIP4))
    lab.run("node1", ["ip", "link", "set", "front0", "address", "02:00:00:00:01:01"])
    lab.run("client", ["ip", "neigh", "flush", "dev", "front0"])
    wait_until("an answer", lambda: lab.answer(VIP4) in lab.topology.backends)
    before = outcomes(lab)
    assert lab.answer(VIP4) in lab.topology.backends
    assert outcomes(lab)["forward_redirect"] > before["forward_redirect"]


def test_a_new_mac_address_of_a_backend_is_followed(running: Lab) -> None:
    lab = running
    create(lab, service(lab, "web", VIP4))
    with held(lab, VIP4, ENOUGH) as connections:
        before = connections.ask()
        for backend in lab.topology.backends:
            mac = f"02:00:00:00:00:0{lab.topology.number(backend)}"
            lab.run(backend, ["ip", "link", "set", "back0", "address", mac])
            # What a real server does when it moves: it announces itself.
            address = str(lab.topology.back_addresses(backend)[0])
            lab.run(backend, [sys.executable, "-c", _ANNOUNCE, "back0", address])

        def answers() -> bool:
            return connections.ask() == before

        wait_until("the connections on the new addresses", answers)


# A gratuitous ARP (RFC 5944, 4.6), by hand: Debian's arping is a package of its own.
_ANNOUNCE = """
import socket, sys
interface, address = sys.argv[1:]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((interface, 0x0806))
mac, ip = s.getsockname()[4], socket.inet_aton(address)
arp = b"\\x00\\x01\\x08\\x00\\x06\\x04\\x00\\x01" + mac + ip + b"\\xff" * 6 + ip
s.send(b"\\xff" * 6 + mac + b"\\x08\\x06" + arp)
"""


def test_a_long_run_of_changes_under_load_fails_no_request(running: Lab) -> None:
    """Real load (wrk) while weights change again and again."""
    lab = running
    create(lab, service(lab, "web", VIP4))
    run = Client(lab).start(1_000_000, 4)
    turn = 0
    while run.poll() is None:
        weights = [str(10 * ((turn + i) % 4)) for i in range(4)]
        pairs = [f"{b}={w}" for b, w in zip(lab.topology.backends, weights, strict=True)]
        lab.lbctl("backend", "weight", "web", *pairs, "--wait")
        turn += 1
    tally = finish(run)
    assert turn >= 1  # 15 on a quiet machine
    assert tally.requests > 200
    assert tally.failed == 0


_SERVE = """
import socket
s = socket.create_server(("", 8080))
while True:
    c, _ = s.accept()
    with c:
        c.sendall(b"x" * 5_000_000)
"""

_FETCH = f"""
import socket
s = socket.create_connection(("{VIP4}", 8080), timeout=5)
total = 0
while data := s.recv(65536):
    assert data == b"x" * len(data)
    total += len(data)
print(total)
"""


def test_answers_in_large_segments_come_back_under_tc(node: Callable[[str], Lab]) -> None:
    """With offload on, tc sees several segments as one packet (GSO), larger than the MTU, and with
    checksums that are still to be filled in."""
    lab = node("tc")
    web = service(lab, "web", VIP4, mode="nat", port=8080)
    one = lab.topology.backends[0]
    web["backends"] = [each for each in web["backends"] if each["name"] == one]
    ends = [(one, "back0"), ("client", "front0"), ("switch", "node1-b"), ("switch", "node1-f")]
    for namespace, interface in ends:
        lab.run(namespace, ["ethtool", "-K", interface, "tx", "on", "tso", "on"])
    server = lab.popen(one, [sys.executable, "-c", _SERVE])
    try:
        wait_until(
            "the server", lambda: "8080" in lab.run(one, ["ss", "-Htln", "sport", "=", ":8080"]).stdout
        )
        create(lab, web)
        before = outcomes(lab)
        assert lab.run("client", [sys.executable, "-c", _FETCH]).stdout.strip() == "5000000"
        after = outcomes(lab)
        packets = after["reply_redirect"] - before["reply_redirect"]
        # As single segments of 1,448 bytes it would have been 3,453 packets.
        assert 0 < packets < 2000
        assert after["reply_pass"] == before["reply_pass"]
    finally:
        server.kill()
        for namespace, interface in ends:
            lab.run(namespace, ["ethtool", "-K", interface, "tx", "off"])


def test_changing_the_hook_leaves_only_the_new_one(node: Callable[[str], Lab]) -> None:
    for hook in ("xdp", "tc", "xdp"):
        lab = node(hook)
        link = lab.run("node1", ["ip", "link", "show", "front0"]).stdout
        filters = lab.run("node1", ["tc", "filter", "show", "dev", "front0", "ingress"]).stdout
        assert ("prog/xdp" in link) == (hook == "xdp")
        assert ("direct-action" in filters) == (hook == "tc")
