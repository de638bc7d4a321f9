"""Modes ipip and gue with real packets: every pair of families, every hook, opened by our own program at
the servers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ENOUGH, backend_node, create, held, outcomes, service
from transfers import forget_path_mtu

from lb.datapath.release import OTHER_FAMILY
from lb.lab.lab import UDP_PORT, Lab
from lb.lab.shell import LabError
from lb.lab.topology import VIP4, VIP6

HOOKS = ["xdp", "xdp-generic", "tc"]

# Sends datagrams in one go (UDP_SEGMENT, uapi/linux/udp.h), as QUIC stacks do; prints what comes back.
SEND_SEVERAL = """
import socket, sys
address, port, size, count = sys.argv[1], *map(int, sys.argv[2:])
client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(5)
client.connect((address, port))
client.setsockopt(socket.IPPROTO_UDP, 103, size)
client.send(bytes(size * count))
for _ in range(count):
    print(len(client.recv(65535)))
"""


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("mode", ["ipip", "gue"])
def test_every_pair_of_families_reaches_every_backend(
    node: Callable[[str], Lab], hook: str, mode: str
) -> None:
    lab = node(hook)
    lab.open_tunnels()
    everybody = set(lab.topology.backends)
    for via in (4, 6):
        create(
            lab,
            service(lab, "web", VIP4, mode=mode, via=via),
            service(lab, "web6", VIP6, mode=mode, via=via),
        )
        for vip in (VIP4, VIP6):
            if via != vip.version and not OTHER_FAMILY.is_here():
                continue  # its kernel refuses; tunnel devices do (test_tunnel_devices.py)
            with held(lab, vip, ENOUGH) as connections:
                answers = connections.ask()
                assert set(answers) == everybody
                assert connections.ask() == answers
    one = lab.topology.backends[0]
    seen = json.loads(backend_node(lab, one, "show", "-o", "json"))["counters"]
    assert seen["opened"]["packets"] > 0
    assert seen["failed"]["packets"] == seen["congested"]["packets"] == 0


@pytest.mark.parametrize("hook", ["xdp", "tc"])
@pytest.mark.parametrize("mode", ["ipip", "gue"])
def test_who_sends_too_much_is_told_what_fits(node: Callable[[str], Lab], hook: str, mode: str) -> None:
    """A client that uploads fills its packets to the MTU; with the outer header they are too long."""
    lab = node(hook)
    lab.open_tunnels()
    create(
        lab,
        service(lab, "web", VIP4, mode=mode),
        service(lab, "web6", VIP6, mode=mode),
    )
    before = outcomes(lab)
    for vip in (VIP4, VIP6):
        forget_path_mtu(lab, "client")
        upload(lab, str(vip), 300_000)
    after = outcomes(lab)
    assert after["reject_too_big"] > before["reject_too_big"]
    assert after["drop_too_big"] == before["drop_too_big"]


@pytest.fixture
def offloading(lab: Lab) -> Iterator[None]:
    """Every interface leaves checksums, and the cutting of several packets in one, to the next."""
    ends = [
        *((link.namespace, link.interface) for link in lab.topology.links),
        *((lab.topology.switch, link.port) for link in lab.topology.links),
    ]
    for namespace, name in ends:
        lab.run(namespace, ["ethtool", "-K", name, "tx", "on"])
    yield
    for namespace, name in ends:
        lab.run(namespace, ["ethtool", "-K", name, "tx", "off"])


@pytest.mark.usefixtures("offloading")
@pytest.mark.parametrize("mode", ["ipip", "gue"])
def test_datagrams_that_are_sent_in_one_go_arrive_as_they_were(
    node: Callable[[str], Lab], mode: str
) -> None:
    lab = node("tc")
    lab.open_tunnels()
    lab.start_udp_servers()
    for vip in (VIP4, VIP6):
        create(lab, service(lab, "udp", vip, mode=mode, port=UDP_PORT, protocol="udp"))
        before = outcomes(lab)["forward_redirect"]
        argv = [sys.executable, "-c", SEND_SEVERAL, str(vip), str(UDP_PORT), "1000", "3"]
        assert lab.run("client", argv).stdout.split() == ["1000"] * 3
        assert outcomes(lab)["forward_redirect"] - before == 1  # the node saw all three as one
        lab.lbctl("service", "rm", "udp", "--cascade", "--wait")


def test_clients_that_hear_no_errors_upload_if_servers_ask_for_short_segments(
    running: Lab, tmp_path: Path
) -> None:
    lab = running
    lab.open_tunnels()
    create(lab, service(lab, "web", VIP4, mode="gue"), service(lab, "web6", VIP6, mode="gue", via=6))
    page = (Path(__file__).parents[2] / "docs/howto/tunnel-backend.md").read_text()
    _, rules, _ = re.split(r"^sudo nft -f - <<'EOF'\n|^EOF\n", page, flags=re.M)
    file = tmp_path / "rules"
    file.write_text(rules.replace("192.0.2.100", str(VIP4)).replace("2001:db8::100", str(VIP6)))
    deaf = "ip protocol icmp drop; icmpv6 type packet-too-big drop;"
    chain = "type filter hook input priority 0;"
    lab.run("client", ["nft", f"table inet deaf {{ chain in {{ {chain} {deaf} }} ; }}"])
    try:
        for vip in (VIP4, VIP6):
            forget_path_mtu(lab, "client")
            with pytest.raises(LabError, match="timed out"):
                upload(lab, str(vip), 300_000, seconds=2)
        for name in lab.topology.backends:
            lab.run(name, ["nft", "-f", str(file)])
        for vip in (VIP4, VIP6):
            upload(lab, str(vip), 300_000)
    finally:
        lab.run("client", ["nft", "delete table inet deaf"])
        for name in lab.topology.backends:
            lab.run(name, ["nft", "delete table inet lb_mss"], check=False)


def upload(lab: Lab, vip: str, size: int, seconds: int = 20) -> None:
    """Has curl send a body, all of which nginx reads."""
    host = f"[{vip}]" if ":" in vip else vip
    script = (
        f"head -c {size} /dev/zero | curl -sS --noproxy '*' --max-time {seconds} -o /dev/null"
        f" -w '%{{http_code}} %{{size_upload}}' --data-binary @- http://{host}/"
    )
    code, sent = lab.run("client", ["sh", "-c", script]).stdout.split()
    assert (int(sent), code) == (size, "200")


def test_a_tunnel_is_opened_for_the_named_vips_only(running: Lab) -> None:
    lab = running
    lab.open_tunnels()
    create(lab, service(lab, "web", VIP4, mode="ipip"))
    one = lab.topology.backends[0]
    backend_node(lab, one, "attach", "--interface", "back0", "--vip", str(VIP6))
    try:
        with held(lab, VIP4, 20) as connections:
            answers = connections.ask()
        assert one not in answers
        assert json.loads(backend_node(lab, one, "show", "-o", "json"))["vips"] == [str(VIP6)]
    finally:
        both = ["--vip", str(VIP4), "--vip", str(VIP6)]
        backend_node(lab, one, "attach", "--interface", "back0", *both)
    with held(lab, VIP4, ENOUGH) as connections:
        assert one in connections.ask()


def test_detached_and_asked(running: Lab) -> None:
    lab = running
    one = lab.topology.backends[0]
    said = backend_node(lab, one, "attach", "--interface", "back0", "--vip", "203.0.113.99")
    assert "attached to back0 for 203.0.113.99" in said
    assert "detached from back0" in backend_node(lab, one, "detach")
    with pytest.raises(LabError, match="lbctl backend-node attach"):
        backend_node(lab, one, "show")
    both = ["--vip", str(VIP4), "--vip", str(VIP6)]
    backend_node(lab, one, "attach", "--interface", "back0", *both)
