"""Flows as people ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from lb.model.objects import Address


class Kind(StrEnum):
    """What the kernel knows of a flow."""

    BEGUN = "begun"  # its first packet was seen
    ESTABLISHED = "established"  # packets after that, too
    TRANSLATED = "translated"  # mode fullnat: it holds a port of ours


@dataclass(frozen=True)
class Filter:
    """Which flows are meant; None = any."""

    service: str | None = None
    backend: str | None = None
    client: IPv4Network | IPv6Network | None = None
    kind: Kind | None = None


@dataclass(frozen=True)
class Flow:
    """One flow. `backend` is None if the one that it went to is gone; `idle` is in seconds; `source` and
    `source_port` are ours, as a fullnat server sees them."""

    kind: Kind
    service: str
    client: Address
    client_port: int
    vip_port: int
    backend: str | None
    idle: float
    source: Address | None = None
    source_port: int | None = None
