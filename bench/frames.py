"""The packets that suite `packet` sends, and the services that they are for."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address

from bench.load import WORDS
from bench.netns import INGRESS, MAC, OTHER
from lb.core.nexthop import NextHop
from lb.core.plan import Observed
from lb.core.state import BackendKey, DesiredState
from lb.model.objects import Address, Backend, ClusterConfig, Mode, Protocol, Service, Tracking

PORT = 80
GROWN = ip_address("198.18.0.1")  # the first of them; all have the upper half in common
BACKENDS = 10  # of each service
LENGTH = 8 * WORDS
RETURNED = (Mode.DSR, Mode.IPIP, Mode.GUE)
_NEIGHBOUR = bytes([2, 0, 0, 0, 2, 1])
_SYN, _DATA = 0x02, 0x18  # flags: SYN; PSH and ACK


@dataclass(frozen=True)
class Target:
    """One service to measure."""

    mode: Mode
    version: int
    tracking: Tracking
    protocol: Protocol = Protocol.TCP

    @property
    def name(self) -> str:
        """Of the service."""
        return f"{self.mode}-ipv{self.version}-{self.tracking}-{self.protocol}"


def targets() -> list[Target]:
    """Every mode, family and way of tracking that there is."""
    return [Target(m, v, t, p) for m in Mode for v in (4, 6) for t in Tracking for p in Protocol]


def vip(target: Target) -> Address:
    """Each service has an address of its own."""
    number = targets().index(target) + 1
    return ip_address(f"198.51.100.{number}" if target.version == 4 else f"2001:db8:1::{number}")


def elsewhere(version: int) -> Address:
    """An address that is no VIP."""
    return ip_address("203.0.113.9" if version == 4 else "2001:db8:2::9")


def world(returned: Collection[Mode] = RETURNED) -> tuple[DesiredState, Observed]:
    """The services with their backends, and the ways there: modes in `returned` back out of the
    interface that the packet came by (XDP_TX), the others out of the other one (XDP_REDIRECT)."""
    services: dict[str, Service] = {}
    backends: dict[BackendKey, Backend] = {}
    hops: dict[Address, NextHop] = {}
    for number, target in enumerate(targets(), 1):
        services[target.name] = Service(
            name=target.name,
            vip=vip(target),
            port=PORT,
            protocol=target.protocol,
            mode=target.mode,
            tracking=target.tracking,
        )
        out = INGRESS if target.mode in returned else OTHER
        for i in range(1, BACKENDS + 1):
            address = ip_address(
                f"10.99.{number}.{i}" if target.version == 4 else f"2001:db8:99:{number:x}::{i:x}"
            )
            backends[target.name, f"b{i}"] = Backend(
                service=target.name, name=f"b{i}", address=address, weight=10 * i
            )
            own = ip_address("10.99.0.1" if target.version == 4 else "2001:db8:99::1")
            hops[address] = NextHop(out, MAC[out], _NEIGHBOUR, source=own)
    config = ClusterConfig(seed="000102030405060708090a0b0c0d0e0f")
    state = DesiredState(config=config, services=services, backends=backends)
    return state, Observed(hops, frozenset({INGRESS, OTHER}))


def grown(services: int, backends: int) -> tuple[DesiredState, Observed]:
    """So many services of so many backends each, mode dsr, at GROWN and the addresses after it. Their
    names tell how many backends they have: a service that got others would remember its flows."""
    found: dict[str, Service] = {}
    members: dict[BackendKey, Backend] = {}
    hops: dict[Address, NextHop] = {}
    for number in range(services):
        name = grown_name(number, backends)
        found[name] = Service(
            name=name, vip=GROWN + number, port=PORT, mode=Mode.DSR, tracking=Tracking.MOVING
        )
        for i in range(backends):
            address = ip_address(f"10.{128 + number // 250}.{number % 250}.0") + i
            members[name, f"b{i}"] = Backend(service=name, name=f"b{i}", address=address)
            hops[address] = NextHop(INGRESS, MAC[INGRESS], _NEIGHBOUR)
    config = ClusterConfig(seed="000102030405060708090a0b0c0d0e0f")
    state = DesiredState(config=config, services=found, backends=members)
    return state, Observed(hops, frozenset({INGRESS, OTHER}))


def grown_name(number: int, backends: int) -> str:
    """Of a service."""
    return f"service-{number}-of-{backends}"


def tcp(destination: Address, *, syn: bool = False) -> bytes:
    """A TCP segment; source address and port are filled in by the wrapper."""
    header = struct.pack("!HHIIBBHHH", 0, PORT, 1, 0, 5 << 4, _SYN if syn else _DATA, 512, 0, 0)
    return _frame(destination, socket.IPPROTO_TCP, header)


def udp(destination: Address) -> bytes:
    """A UDP datagram that fills the frame."""
    l3 = 20 if destination.version == 4 else 40
    header = struct.pack("!HHHH", 0, PORT, LENGTH - 14 - l3, 0xBEEF)
    return _frame(destination, socket.IPPROTO_UDP, header)


def echo(destination: Address) -> bytes:
    """An ICMP echo request."""
    if destination.version == 4:
        return _frame(destination, socket.IPPROTO_ICMP, struct.pack("!BBHHH", 8, 0, 0, 1, 1))
    return _frame(destination, socket.IPPROTO_ICMPV6, struct.pack("!BBHHH", 128, 0, 0, 1, 1))


def _frame(destination: Address, protocol: int, payload: bytes) -> bytes:
    """Ethernet and IP around it, padded to LENGTH. Layer 4 checksums are left wrong: they are updated
    as differences, and nobody on the way checks them."""
    source = bytes([10, 0, 0, 1])
    if destination.version == 4:
        total = LENGTH - 14
        ip = struct.pack("!BBHHHBBH", 0x45, 0, total, 1, 0x4000, 64, protocol, 0)
        ip += source + destination.packed
        kind = 0x0800
    else:
        ip = struct.pack("!IHBB", 6 << 28, LENGTH - 54, protocol, 64)
        ip += ip_address("2001:db8:c::").packed + destination.packed
        kind = 0x86DD
    frame = MAC[INGRESS] + _NEIGHBOUR + kind.to_bytes(2) + ip + payload
    return frame.ljust(LENGTH, b"\0")
