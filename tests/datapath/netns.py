"""A network namespace of its own for the data path's tests: interfaces, routes and neighbours, and the
same routing as a Python function. Nothing in it is connected to anything outside.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from lb.core.reference import Route, RouteQuery, RouteResult
from lb.model.objects import Address

CLONE_NEWNET = 0x40000000
HERE = "/proc/thread-self/ns/net"

# Interfaces: name -> ifindex. Each is one end of a veth pair whose other end is there only so that
# it has a carrier.
LO = 1
A, B, C = 10, 20, 30
LINKS = {"vea": A, "veb": B, "vec": C}
MAC = {LO: bytes(6)} | {n: bytes([2, 0, 0, 0, 1, n]) for n in LINKS.values()}
NEIGHBOUR_MAC = bytes([2, 0, 0, 0, 2, 1])
GATEWAY_MAC = bytes([2, 0, 0, 0, 2, 254])


@dataclass(frozen=True)
class Way:
    """A destination prefix, and how the namespace routes it."""

    prefix: IPv4Network | IPv6Network
    result: RouteResult
    commands: tuple[str, ...]
    mtu: int = 65535


def _ways() -> tuple[Way, ...]:
    """The longest prefixes first."""
    neighbour_a = RouteResult(Route.NEIGHBOUR, A, NEIGHBOUR_MAC, MAC[A])
    gateway_a = RouteResult(Route.NEIGHBOUR, A, GATEWAY_MAC, MAC[A])
    gateway_b = RouteResult(Route.NEIGHBOUR, B, GATEWAY_MAC, MAC[B])
    gateway_c = RouteResult(Route.NEIGHBOUR, C, GATEWAY_MAC, MAC[C])
    kernel, local, unknown = map(RouteResult, (Route.KERNEL, Route.LOCAL, Route.NO_NEIGHBOUR))
    neigh = "neigh add {0} dev {1} lladdr {2} nud permanent"
    near, far = NEIGHBOUR_MAC.hex(":"), GATEWAY_MAC.hex(":")
    rows: tuple[tuple[str, RouteResult, int, tuple[str, ...]], ...] = (
        # IPv4
        ("198.51.100.1/32", local, 65535, ("addr add 198.51.100.1/24 dev vea",)),
        ("198.51.100.2/32", neighbour_a, 1500, (neigh.format("198.51.100.2", "vea", near),)),
        ("198.51.100.254/32", gateway_a, 1500, (neigh.format("198.51.100.254", "vea", far),)),
        ("198.51.100.255/32", local, 65535, ()),  # broadcast
        ("198.51.100.0/24", unknown, 1500, ()),  # nobody has been asked yet
        ("203.0.113.0/24", gateway_a, 1500, ("route add {p} via 198.51.100.254",)),
        (
            "192.0.2.0/24",
            gateway_b,
            600,
            (
                neigh.format("10.99.0.254", "veb", far),
                "route add {p} via 10.99.0.254 dev veb onlink mtu lock 600",
            ),
        ),
        (
            "10.88.0.0/16",
            gateway_c,
            1500,
            (
                neigh.format("10.99.0.253", "vec", far),
                "route add {p} via 10.99.0.253 dev vec onlink",
            ),
        ),
        (
            "10.89.0.0/16",  # an IPv6 router: RFC 8950
            gateway_c,
            1500,
            (neigh.format("fe80::fc", "vec", far), "route add {p} via inet6 fe80::fc dev vec"),
        ),
        ("10.66.0.0/16", kernel, 65535, ("route add blackhole {p}",)),
        ("10.67.0.0/16", kernel, 65535, ("route add prohibit {p}",)),
        # IPv6
        ("2001:db8:a::1/128", local, 65535, ("addr add 2001:db8:a::1/64 dev vea nodad",)),
        ("2001:db8:a::2/128", neighbour_a, 1500, (neigh.format("2001:db8:a::2", "vea", near),)),
        ("2001:db8:a::fe/128", gateway_a, 1500, (neigh.format("2001:db8:a::fe", "vea", far),)),
        ("2001:db8:a::/128", local, 65535, ()),  # the routers' anycast address
        ("2001:db8:a::/64", unknown, 1500, ()),
        ("2001:db8:c::/64", gateway_a, 1500, ("route add {p} via 2001:db8:a::fe",)),
        (
            "2001:db8:d::/64",
            gateway_b,
            1300,
            (
                neigh.format("fe80::fe", "veb", far),
                "route add {p} via fe80::fe dev veb mtu lock 1300",
            ),
        ),
        (
            "2001:db8:e::/64",
            gateway_c,
            1500,
            (neigh.format("fe80::fd", "vec", far), "route add {p} via fe80::fd dev vec"),
        ),
        ("2001:db8:f::/64", kernel, 65535, ("route add blackhole {p}",)),
    )
    return tuple(
        Way(ip_network(p), result, tuple(c.format(p=p) for c in commands), mtu)
        for p, result, mtu, commands in rows
    )


WAYS = _ways()


def route(query: RouteQuery) -> RouteResult:
    """What the namespace's routing says."""
    for way in WAYS:
        if way.prefix.version == query.destination.version and query.destination in way.prefix:
            # Too large for the way: to be fragmented or refused, which the kernel does.
            fits = query.length <= way.mtu
            return way.result if fits else RouteResult(Route.KERNEL)
    return RouteResult(Route.LOCAL)


def clients(version: int) -> list[Address]:
    """An address in each prefix."""
    return [
        way.prefix[min(77, way.prefix.num_addresses - 1)]
        for way in WAYS
        if way.prefix.version == version
    ]


class Namespace:
    """A new namespace. It is left again when built; `with namespace:` runs this thread in it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._home = os.open(HERE, os.O_RDONLY)
        if self._libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            self._there = os.open(HERE, os.O_RDONLY)
            _build()
        finally:
            self._enter(self._home)

    def __enter__(self) -> None:
        self._enter(self._there)

    def __exit__(self, *_: object) -> None:
        self._enter(self._home)

    def _enter(self, fd: int) -> None:
        if self._libc.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    def close(self) -> None:
        """With the last descriptor the namespace is gone."""
        os.close(self._there)
        os.close(self._home)


def _build() -> None:
    for name in ("all", "default", "lo"):
        for family in ("ipv4", "ipv6"):
            _sysctl(f"net/{family}/conf/{name}/forwarding", "1")
    # No solicitations and reports of the kernel's own among our packets.
    _sysctl("net/ipv6/conf/default/addr_gen_mode", "1")
    lines = ["link set lo up"]
    for name, index in LINKS.items():
        lines += [
            f"link add name {name} index {index} address {MAC[index].hex(':')}"
            f" type veth peer name {name}-far",
            f"link set {name} up",
            f"link set {name}-far up",
        ]
    for way in WAYS:
        lines += [("-6 " if way.prefix.version == 6 else "") + c for c in way.commands]
    for line in lines:
        subprocess.run(["ip", *line.split()], check=True)


def _sysctl(name: str, value: str) -> None:
    with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
        file.write(value)
