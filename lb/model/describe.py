"""Addresses and VIPs in words."""

from __future__ import annotations

from lb.model.objects import Address, Service


def describe_socket(address: Address, port: int | str) -> str:
    """address:port, IPv6 in brackets (RFC 3986)."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def describe_vip(service: Service) -> str:
    """address:port/protocol of a service; a range as first-last or any."""
    return f"{describe_socket(service.vip, service.ports)}/{service.protocol}"
