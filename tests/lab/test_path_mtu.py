"""A router between node and server that takes less than the node's own link: its word is about the
tunnel's packets, and clients have to hear it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest
from helpers import create, outcomes
from test_tunnels import upload
from transfers import forget_path_mtu

from lb.datapath import structs
from lb.datapath.mapkeys import address_from
from lb.datapath.maps import Maps
from lb.lab import nginx
from lb.lab.lab import Lab
from lb.lab.node import program
from lb.lab.shell import environment, in_namespace, run, wait_until
from lb.lab.topology import CLIENT4, CLIENT6, VIP4, VIP6, back, front

NARROW = 1400
_HOP = 60  # host number of the router on the lab's own segments
_HOP4, _FAR4 = (IPv4Address(f"198.51.100.{host}") for host in (209, 210))
_HOP6, _FAR6 = (IPv6Address(f"2001:db8:8::{host}") for host in (1, 2))


@pytest.fixture(scope="module")
def far(lab: Lab) -> Iterator[None]:
    """A server behind a router; its answers go straight to the client."""
    server, hop, switch = lab.add_namespace("farserver"), lab.add_namespace("hop"), lab.topology.switch

    def ip(namespace: str, *lines: str) -> None:
        for line in lines:
            lab.run(namespace, ["ip", *line.split()])

    for segment, addresses in (("back", back(_HOP)), ("front", front(_HOP))):
        port = f"hop-{segment[0]}"
        ip(switch, f"link add {port} type veth peer name {segment}0 netns {hop}")
        ip(switch, f"link set {port} master {segment} up")
        ip(hop, f"link set {segment}0 up", f"addr add {addresses[0]}/24 dev {segment}0")
        ip(hop, f"addr add {addresses[1]}/64 dev {segment}0 nodad")
        lab.run(hop, ["ethtool", "-K", f"{segment}0", "tx", "off"])
    ip(hop, f"link add far0 mtu {NARROW} type veth peer name back0 mtu {NARROW} netns {server}")
    ip(hop, f"addr add {_HOP4}/30 dev far0", f"addr add {_HOP6}/64 dev far0 nodad", "link set far0 up")
    ip(server, f"addr add {_FAR4}/30 dev back0", f"addr add {_FAR6}/64 dev back0 nodad")
    ip(server, f"addr add {VIP4}/32 dev lo", f"addr add {VIP6}/128 dev lo nodad preferred_lft 0")
    ip(server, "link set back0 up", f"route add default via {_HOP4}", f"route add default via {_HOP6}")
    for namespace in (hop, server):
        lab.run(namespace, ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0"])
    lab.run(hop, ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    ip("node1", f"route add 198.51.100.208/30 via {back(_HOP)[0]}")
    ip("node1", f"route add 2001:db8:8::/64 via {back(_HOP)[1]}")
    lab.popen(server, nginx.prepare("farserver", lab.folder / server))
    wait_until(
        "the far server",
        lambda: "farserver" in lab.run("node1", ["curl", "-s", f"http://{_FAR4}/"]).stdout,
    )
    lab.bpf_mount(server)
    vips = [option for vip in (VIP4, VIP6) for option in ("--vip", str(vip))]
    pins = ["--pin-dir", str(lab.folder / server / "bpf" / "lb")]
    command = [*program("lbctl"), "backend-node", "attach", "--interface", "back0", *vips, *pins]
    run(in_namespace(server, command), env=environment(lab.lb_environment))
    yield
    for namespace in (hop, "node1"):
        forget_path_mtu(lab, namespace)


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("via", [4, 6])
@pytest.mark.parametrize("mode", ["ipip", "gue"])
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_a_client_that_uploads_hears_what_fits(
    node: Callable[[str], Lab], hook: str, mode: str, via: int
) -> None:
    lab = node(hook)
    lab.kill_lbd()  # which forgets what it learned
    lab.start_lbd(hook)
    for vip, client in ((VIP4, CLIENT4[0]), (VIP6, CLIENT6)):
        forget_path_mtu(lab, "client", "hop")
        server = _FAR4 if via == 4 else _FAR6
        backend = {"name": "far", "address": str(server)}
        service = {"name": "web", "vip": str(vip), "port": 80, "mode": mode, "backends": [backend]}
        create(lab, service)
        before = outcomes(lab)
        upload(lab, str(vip), 300_000)
        assert outcomes(lab)["reject_too_big"] > before["reject_too_big"]
        # The client now knows what fits behind the router, less the tunnel's headers.
        route = json.loads(lab.run("client", ["ip", "-json", "route", "get", str(vip)]).stdout)
        overhead = (20 if via == 4 else 40) + (8 if mode == "gue" else 0)
        mtus = [metric["mtu"] for metric in route[0]["metrics"]]
        assert mtus == [NARROW - overhead], client
        lab.lbctl("service", "rm", "web", "--cascade", "--wait")
    assert f"takes packets of {NARROW} bytes only" in lab.lbd_log.read_text()


@pytest.mark.usefixtures("far")
def test_what_the_nodes_own_packets_taught_its_kernel_counts_for_as_long(running: Lab) -> None:
    """Nobody is notified of that: the audit finds it."""
    lab = running
    forget_path_mtu(lab, "node1")
    lab.kill_lbd()  # which forgets what it heard itself
    lab.start_lbd()
    backend = {"name": "far", "address": str(_FAR4)}
    create(lab, {"name": "web", "vip": str(VIP4), "port": 80, "mode": "ipip", "backends": [backend]})
    link = known_mtu(lab)
    assert link > NARROW
    lab.run(
        "node1", ["ping", "-M", "do", "-s", str(NARROW), "-c", "2", "-W", "1", str(_FAR4)], check=False
    )
    for mtu in (NARROW, link):
        assert lab.lbd
        lab.lbd.send_signal(signal.SIGHUP)
        wait_until(f"an MTU of {mtu}", lambda mtu=mtu: known_mtu(lab) == mtu)
        lab.run("node1", ["ip", "-4", "route", "flush", "cache"])


def known_mtu(lab: Lab) -> int:
    """What fits on the way to the far server, as the data path has it."""
    rows = Maps.open(lab.node_folder / "bpf/lb").backends.items()
    backends = [structs.Backend.from_buffer_copy(raw) for _, raw in rows]
    (mtu,) = (each.mtu for each in backends if address_from(bytes(each.addr)) == _FAR4)
    return mtu
