"""Next hops as values: what the planner knows of the way to a backend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NextHop:
    """The way to a backend: egress interface and MAC addresses (6 bytes each). With a gateway, the
    destination MAC is a router's."""

    ifindex: int
    source_mac: bytes
    destination_mac: bytes
    gateway: bool = False
