"""Addresses and keys of maps, as the kernel programs want them (structs.py says how they lie there)."""

from __future__ import annotations

import ctypes
import socket
from ipaddress import IPv4Address, IPv6Address, ip_network

import numpy as np
from numpy.typing import NDArray

from lb.core import ports
from lb.datapath import consts, structs
from lb.model.objects import Address, Network


def address_bytes(address: Address) -> bytes:
    """16 bytes in network order; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2)."""
    if address.version == 4:
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def address_from(raw: bytes) -> Address:
    """The address in 16 bytes as address_bytes() writes them."""
    address = IPv6Address(raw)
    mapped: IPv4Address | None = address.ipv4_mapped
    return mapped or address


def endpoint(address: Address, port: int, protocol: int) -> bytes:
    """A key of the vips and nat_back maps; port in host order, protocol an IPPROTO_* number."""
    return bytes(
        structs.Endpoint(
            addr=(ctypes.c_uint8 * 16)(*address_bytes(address)),
            port=socket.htons(port),
            proto=protocol,
        )
    )


def rule_key(service: int, prefix: Network) -> bytes:
    """A key of the rules map."""
    key = structs.RuleKey(
        prefixlen=32 + prefix.prefixlen + (96 if prefix.version == 4 else 0), service=service
    )
    key.client[:] = address_bytes(prefix.network_address)
    return bytes(key)


def rule_key_from(raw: bytes) -> tuple[int, Network]:
    """Service and prefix of a key of the rules map."""
    key = structs.RuleKey.from_buffer_copy(raw)
    address = address_from(bytes(key.client))
    length = key.prefixlen - 32 - (96 if address.version == 4 else 0)
    return key.service, ip_network((address, length))


def port_range(address: Address, first: int, last: int, protocol: int) -> list[bytes]:
    """The keys of the ranges map that together cover the ports from first to last (host order, both
    within): the fewest prefixes that do."""
    return [
        bytes(
            structs.Range(
                prefixlen=consts.RANGE_BITS + 16 - free,
                addr=(ctypes.c_uint8 * 16)(*address_bytes(address)),
                proto=protocol,
                port=socket.htons(start),
            )
        )
        for start, free in ports.prefixes(first, last)
    ]


def within(clients: NDArray[np.uint64], network: Network) -> NDArray[np.bool_]:
    """Which of the addresses, as rows of two words of 64 bits, are in it."""
    bits = network.prefixlen + (96 if network.version == 4 else 0)
    mask = (1 << 128) - (1 << 128 - bits)
    wanted = int.from_bytes(address_bytes(network.network_address), "big") & mask
    words = np.array([mask >> 64, mask & 2**64 - 1], dtype=np.uint64)
    same = clients.astype(np.uint64) & words == np.array([wanted >> 64, wanted & 2**64 - 1], np.uint64)
    whole: NDArray[np.bool_] = same.all(axis=1)
    return whole
