"""Next hops as values: what the planner knows of the way to a backend."""

from __future__ import annotations

from dataclasses import dataclass

from lb.model.objects import Address


@dataclass(frozen=True)
class NextHop:
    """The way to a backend: egress interface and MAC addresses (6 bytes each). With a gateway, the
    destination MAC is a router's. `source` is our address on that way, `mtu` how long an IP packet may
    be, in bytes; 0 = not known."""

    ifindex: int
    source_mac: bytes
    destination_mac: bytes
    gateway: bool = False
    source: Address | None = None
    mtu: int = 0
