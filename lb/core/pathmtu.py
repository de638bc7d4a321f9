"""How long a packet may be on the way to a backend, as routers on that way tell. Pure.

Where a router between node and server can't pass on a tunnel's packet, its ICMP error is about the outer
packet and comes to the node, not to the client that sent too much. So the node remembers what fits, and
the data path tells the next client that sends more (RFC 2003, 5.1; RFC 4459, 3.1). What was learned is
forgotten after some minutes, as the way may have got better (RFC 1191, 6.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address

from lb.core.nexthop import NextHop
from lb.model.objects import GUE_PORT, Address

LIFETIME_SECONDS = 600.0
# Less is never believed: anybody can write such an error.
LEAST = {4: 552, 6: 1280}  # Linux: net.ipv4.route.min_pmtu; RFC 8200, 5

_UNREACHABLE, _FRAGMENTATION_NEEDED = 3, 4  # RFC 792, RFC 1191
_PACKET_TOO_BIG = 2  # RFC 4443
_IPIP, _IPV6, _UDP = 4, 41, 17


@dataclass(frozen=True)
class TooBig:
    """A router's word: packets from `source` to `destination` may have `mtu` bytes."""

    source: Address
    destination: Address
    mtu: int


def read_ipv4(packet: bytes) -> TooBig | None:
    """Of an ICMP packet with its IP header, as a raw socket gives it. None: it says nothing about a
    tunnel's packet that is too big."""
    error = packet[(packet[0] & 15) * 4 :] if packet else b""
    quoted = error[8:]
    if error[:2] != bytes([_UNREACHABLE, _FRAGMENTATION_NEEDED]) or len(quoted) < 20:
        return None
    if not _is_tunnel(quoted[9], quoted[(quoted[0] & 15) * 4 :]):
        return None
    source, destination = IPv4Address(quoted[12:16]), IPv4Address(quoted[16:20])
    return TooBig(source, destination, int.from_bytes(error[6:8]))


def read_ipv6(error: bytes) -> TooBig | None:
    """Of an ICMPv6 message without its IP header, as a raw socket gives it."""
    quoted = error[8:]
    if error[:2] != bytes([_PACKET_TOO_BIG, 0]) or len(quoted) < 40:
        return None
    if not _is_tunnel(quoted[6], quoted[40:]):
        return None
    source, destination = IPv6Address(quoted[8:24]), IPv6Address(quoted[24:40])
    return TooBig(source, destination, int.from_bytes(error[4:8]))


def _is_tunnel(proto: int, payload: bytes) -> bool:
    if proto == _UDP:
        return payload[2:4] == GUE_PORT.to_bytes(2)
    return proto in (_IPIP, _IPV6)


@dataclass(frozen=True)
class PathMtus:
    """What was learned: by destination, the bytes that fit and until when (s) that counts."""

    known: Mapping[Address, tuple[int, float]] = field(default_factory=dict)

    def learn(self, error: TooBig, hops: Mapping[Address, NextHop], now: float) -> PathMtus:
        """With a router's word, if it can be about a packet of ours and is news."""
        hop = hops.get(error.destination)
        if hop is None or hop.source != error.source:
            return self
        mtu = max(error.mtu, LEAST[error.destination.version])
        held, until = self.known.get(error.destination, (hop.mtu or mtu + 1, now))
        if (until > now and mtu >= held) or mtu >= (hop.mtu or mtu + 1):
            return self
        return PathMtus({**self.known, error.destination: (mtu, now + LIFETIME_SECONDS)})

    def forget(self, now: float) -> PathMtus:
        """Without what is too old."""
        known = {address: each for address, each in self.known.items() if each[1] > now}
        return self if len(known) == len(self.known) else PathMtus(known)

    def lower(self, hops: Mapping[Address, NextHop]) -> Mapping[Address, NextHop]:
        """The next hops, with what fits on the whole way behind them."""
        if not self.known:
            return hops
        lowered = {
            address: replace(hops[address], mtu=min(mtu, hops[address].mtu or mtu))
            for address, (mtu, _) in self.known.items()
            if address in hops
        }
        return {**hops, **lowered}
