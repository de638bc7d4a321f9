"""What real clients do with a service: download, hold many connections, ask by UDP and DNS; and a client
that sits behind a hop of small MTU."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from helpers import create, service

from lb.lab.lab import UDP_PORT, Lab
from lb.lab.shell import LabError, wait_until
from lb.lab.topology import CLIENT4, CLIENT6, VIA_NODE, VIP4, VIP6, Address, front

MODES = ("dsr", "nat", "ipip", "gue", "fullnat")
DNS_PORT = 53
PIECE_MTU, LARGE = 1400, 9000
FILE = "download"

# The far client's links: a part of the front segment, and a network of its own.
FAR_MTU = 1280  # the least that IPv6 allows
_FAR4 = (IPv4Address("198.51.100.201"), IPv4Address("198.51.100.202"))
_FAR6 = (IPv6Address("2001:db8:9::1"), IPv6Address("2001:db8:9::2"))


def everything(lab: Lab, mode: str) -> None:
    """Services for TCP, UDP and DNS on both VIPs, in this mode."""
    if mode in ("ipip", "gue"):
        lab.open_tunnels()
    services = []
    for vip in (VIP4, VIP6):
        tail = "" if vip is VIP4 else "6"
        services += [
            service(lab, f"web{tail}", vip, mode=mode),
            service(lab, f"udp{tail}", vip, mode=mode, port=UDP_PORT, protocol="udp"),
            service(lab, f"dns{tail}", vip, mode=mode, port=DNS_PORT, protocol="udp"),
        ]
    create(lab, *services)


def publish(lab: Lab, size: int) -> str:
    """Have all servers offer a file of so many bytes; returns its SHA-256."""
    folder = lab.folder / "files"
    folder.mkdir(exist_ok=True)
    data = random.Random(size).randbytes(size)
    (folder / FILE).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def download(lab: Lab, vip: Address, timeout: float = 60) -> str:
    """Get the file; returns the SHA-256 of what came. Raises LabError if it didn't come to its end."""
    return _download(lab, "client", vip, timeout)


def download_through_small_hop(lab: Lab, far: str, vip: Address, timeout: float = 60) -> tuple[str, int]:
    """The same by the far client, as if for the first time; and how many "too big" its router sent."""
    forget_path_mtu(lab, *lab.topology.backends)
    before = _too_bigs(lab, vip)
    return _download(lab, far, vip, timeout), _too_bigs(lab, vip) - before


def _download(lab: Lab, namespace: str, vip: Address, timeout: float) -> str:
    script = (
        f"set -o pipefail; curl -sSf --noproxy '*' --max-time {timeout:g} http://{_host(vip)}/files/{FILE}"
        " | sha256sum"
    )
    return lab.run(namespace, ["bash", "-c", script], timeout=timeout + 5).stdout.split()[0]


def _host(address: Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def ask_udp(lab: Lab, vip: Address, ports: Iterable[int], size: int = 1) -> set[str]:
    """Who answers datagrams of so many bytes from these source ports; each answer must come from the
    VIP, and be as long."""
    code = f"""
import socket
for port in {list(ports)!r}:
    s = socket.socket({"socket.AF_INET6" if vip.version == 6 else "socket.AF_INET"}, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.bind(("", port))
    s.sendto(bytes({size}), ("{vip}", {UDP_PORT}))
    data, peer = s.recvfrom(65535)
    assert peer[:2] == ("{vip}", {UDP_PORT}), peer
    assert len(data) >= {size}, len(data)
    print(data.decode().strip())
"""
    return set(lab.run("client", [sys.executable, "-c", code]).stdout.split())


def ask_in_pieces(lab: Lab, vip: Address, ports: Iterable[int]) -> set[str]:
    """The same with datagrams that have to be cut, into pieces that fit into a tunnel, too."""
    route = [f"{vip}/{32 if vip.version == 4 else 128}", "dev", "front0"]
    lab.run("client", ["ip", "route", "replace", *route, "mtu", "lock", str(PIECE_MTU)])
    try:
        return ask_udp(lab, vip, ports, LARGE)
    finally:
        lab.run("client", ["ip", "route", "del", *route])


def start_dns_servers(lab: Lab) -> None:
    """Have dnsmasq on each backend answer who.test with the backend's name."""
    for name in lab.topology.backends:
        addresses = [VIP4, VIP6, *lab.topology.back_addresses(name)]
        lab.popen(
            name,
            [
                *(
                    "dnsmasq",
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                ),
                *("--pid-file=", "--user=root", "--bind-interfaces", f"--txt-record=who.test,{name}"),
                *(f"--listen-address={address}" for address in addresses),
            ],
        )
    for name in lab.topology.backends:
        for address in lab.topology.back_addresses(name):
            wait_until(f"DNS at {name}", lambda a=address: bool(_dig(lab, a)))  # type: ignore[misc]


def ask_dns(lab: Lab, vip: Address, times: int) -> set[str]:
    """Who answers queries, each from a port of its own."""
    return {_dig(lab, vip) for _ in range(times)}


def _dig(lab: Lab, server: Address) -> str:
    try:
        done = lab.run(
            "client", ["dig", "+short", "+tries=1", "+time=2", "TXT", "who.test", f"@{server}"]
        )
    except LabError:
        return ""
    return done.stdout.strip().strip('"')


def put_client_behind_small_hop(lab: Lab) -> str:
    """One more client, whose router (the lab's client) reaches it by a link of FAR_MTU, which nobody but
    the router knows: servers have to be told. Returns its namespace."""
    far, client, mtu = lab.add_namespace("far"), lab.topology.client, lab.topology.mtu
    lab.run(client, ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    _ip(lab, client, f"link add far0 mtu {FAR_MTU} type veth peer name far0 mtu {mtu} netns {far}")
    for namespace, number in ((client, 0), (far, 1)):
        _ip(lab, namespace, f"addr add {_FAR4[number]}/30 dev far0")
        _ip(lab, namespace, f"addr add {_FAR6[number]}/64 dev far0 nodad")
        _ip(lab, namespace, "link set far0 up")
        lab.run(namespace, ["ethtool", "-K", "far0", "tx", "off"])
    _ip(lab, far, f"route add default via {_FAR4[0]}")
    _ip(lab, far, f"route add default via {_FAR6[0]}")
    node4, node6 = front(1)
    for namespace in (lab.topology.node, *lab.topology.backends):
        _ip(lab, namespace, f"route add 198.51.100.200/30 via {CLIENT4[0]}")
        _ip(lab, namespace, f"route add 2001:db8:9::/64 via {CLIENT6}")
    # So that the router's errors go to the node, where the VIP's packets go.
    for vip, via in ((VIP4, node4), (VIP6, node6)):
        _ip(lab, client, f"route add {vip} via {via}")
    return far


def _too_bigs(lab: Lab, vip: Address) -> int:
    """How often the router of the far client has told somebody that a packet is too big (IPv4: or that
    it can't deliver it)."""
    if vip.version == 6:
        lines = lab.run("client", ["cat", "/proc/net/snmp6"]).stdout.splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Icmp6OutPktTooBigs"))
    lines = lab.run("client", ["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(values[names.index("OutDestUnreachs")])


def forget_path_mtu(lab: Lab, *namespaces: str) -> None:
    """Have them learn the MTU of every path anew."""
    for namespace in namespaces:
        _ip(lab, namespace, "-4 route flush cache")
        # For IPv6 that leaves what other tables than main learned; a route that is replaced doesn't.
        for table in ("main", str(VIA_NODE)):
            routes = lab.run(
                namespace, ["ip", "-6", "route", "show", "table", table], check=False
            ).stdout
            for route in routes.splitlines():
                _ip(lab, namespace, f"-6 route replace {route} table {table}")


def _ip(lab: Lab, namespace: str, line: str) -> None:
    lab.run(namespace, ["ip", *line.split()])
