"""What user space and the kernel programs share: xdp/include/lb_structs.h and lb_consts.h, mirrored.

tests/datapath/test_layout.py compiles the headers and proves both sides equal. Addresses are 16 bytes
in network order, IPv4 mapped into ::ffff:0:0/96; ports are in network order; the rest in host order.
"""

from __future__ import annotations

import ctypes
import socket
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address, ip_network

import numpy as np
from numpy.typing import NDArray

from lb.core import histogram
from lb.model.objects import Address, Affinity, Mode, Network, NoBackend, Protocol, Tracking

SLOTS = 65536
LINKS = 4096
EPOCHS = 128
SCRATCH = 128  # bytes: room for what the programs note of a packet while they look at it
SLOT_BACKEND = 0x00FFFFFF  # the bits of a slot that are its backend's id
SLOT_STIRRED = 0x80000000
LOOKUPS = 4096
RANGE_BITS = 144  # of a struct lb_range's prefix, in front of the port
EPOCH_SHIFT = 24
PROBE_MARK = 0x6C000000  # of a check's socket (`via: vip`), besides its backend's id
PROBE_MARK_MASK = 0xFF000000
MIRROR_MARK = 0x6D000000  # of a copy of mirrored traffic, besides its backend's id
MIRROR_MARK_MASK = 0xFF000000
MIRROR_SALT = 0x6D6972726F72

PROTOCOL_NUMBER = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
MODE_NUMBER = {Mode.DSR: 0, Mode.NAT: 1, Mode.IPIP: 2, Mode.GUE: 3, Mode.FULLNAT: 4}
AFFINITY_NUMBER = {Affinity.FLOW: 0, Affinity.CLIENT: 1}
TRACKING_NUMBER = {Tracking.NEVER: 0, Tracking.ALWAYS: 1, Tracking.MOVING: 2}
NO_BACKEND_NUMBER = {NoBackend.REJECT: 0, NoBackend.DROP: 1}
VIP_BIT = {Protocol.TCP: 1, Protocol.UDP: 2}


class BackendFlag(IntFlag):
    """LB_BACKEND_*."""

    USABLE = 1
    RESOLVED = 2
    RESETS = 4
    MIRROR = 8


class Has(IntFlag):
    """LB_HAS_*: maps that aren't empty."""

    RANGES = 1
    NAT_BACK = 2


class Outcome(IntEnum):
    """enum lb_outcome: how a packet's way through the program ended."""

    PASS_NOT_OURS = 0
    PASS_UNRESOLVED = 1
    FORWARD_TX = 2
    FORWARD_REDIRECT = 3
    REPLY_REDIRECT = 4
    REPLY_PASS = 5
    ECHO_REPLY = 6
    REJECT_RST = 7
    REJECT_UNREACH = 8
    DROP_NO_BACKEND = 9
    DROP_MALFORMED = 10
    DROP_FRAGMENT = 11
    DROP_TTL = 12
    DROP_NO_SPACE = 13
    DROP_UNRESOLVED = 14
    REJECT_TOO_BIG = 15
    DROP_TOO_BIG = 16
    REJECT_NAT_FULL = 17
    DROP_NAT_FULL = 18


class NatState(IntFlag):
    """LB_NAT_*: what was seen of a translated connection."""

    ANSWERED = 1
    FIN = 2
    RST = 4


class Event(IntEnum):
    """enum lb_event: what happened to a connection of an observed service. The names are those of
    FlowTotals' fields."""

    OPENED = 0
    ESTABLISHED = 1
    REFUSED = 2
    SYN_RETRANSMISSIONS = 3
    RESETS_BY_CLIENT = 4
    RESETS_BY_SERVER = 5
    RETRANSMITS_BY_CLIENT = 6
    RETRANSMITS_BY_SERVER = 7
    REQUESTS = 8
    UNSERVED = 9
    HTTP_1XX = 10
    HTTP_2XX = 11
    HTTP_3XX = 12
    HTTP_4XX = 13
    HTTP_5XX = 14


EVENTS = 16


class Stage(IntEnum):
    """enum lb_watch_stage: what a connection awaits."""

    OPENING = 0
    OPEN = 1
    ASKED = 2


class MirrorStage(IntEnum):
    """enum lb_mirror_stage: how far the copies of a connection have come."""

    OPENING = 0
    OPEN = 1
    LOST = 2


class End(IntFlag):
    """enum lb_watch_end: who has sent a FIN."""

    CLIENT = 1
    SERVER = 2


class Endpoint(ctypes.Structure):
    """struct lb_endpoint."""

    _fields_ = (
        ("addr", ctypes.c_uint8 * 16),
        ("port", ctypes.c_uint16),
        ("proto", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
    )


class Range(ctypes.Structure):
    """struct lb_range."""

    _fields_ = (
        ("prefixlen", ctypes.c_uint32),
        ("addr", ctypes.c_uint8 * 16),
        ("proto", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("port", ctypes.c_uint16),
    )


class Service(ctypes.Structure):
    """struct lb_service."""

    _fields_ = (
        ("seed", ctypes.c_uint64 * 2),
        ("vip", ctypes.c_uint8 * 16),
        ("port", ctypes.c_uint16),
        ("proto", ctypes.c_uint8),
        ("mode", ctypes.c_uint8),
        ("affinity", ctypes.c_uint8),
        ("tracking", ctypes.c_uint8),
        ("no_backend", ctypes.c_uint8),
        ("has_rules", ctypes.c_uint8),
        ("quic_bytes", ctypes.c_uint8),
        ("quic_config", ctypes.c_uint8),
        ("patience", ctypes.c_uint16),
        ("mirror_table", ctypes.c_uint32),
        ("mirror_limit", ctypes.c_uint32),
        ("pad", ctypes.c_uint8 * 4),
    )


class RuleKey(ctypes.Structure):
    """struct lb_rule_key."""

    _fields_ = (
        ("prefixlen", ctypes.c_uint32),
        ("service", ctypes.c_uint32),
        ("client", ctypes.c_uint8 * 16),
    )


class Rule(ctypes.Structure):
    """struct lb_rule."""

    _fields_ = (
        ("table", ctypes.c_uint32),
        ("before", ctypes.c_uint32),
        ("closes", ctypes.c_uint64),
    )


class Backend(ctypes.Structure):
    """struct lb_backend."""

    _fields_ = (
        ("addr", ctypes.c_uint8 * 16),
        ("source", ctypes.c_uint8 * 16),
        ("ifindex", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("dmac", ctypes.c_uint8 * 6),
        ("smac", ctypes.c_uint8 * 6),
        ("port", ctypes.c_uint16),
        ("mtu", ctypes.c_uint16),
        ("flags", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 7),
    )


class Owner(ctypes.Structure):
    """struct lb_owner."""

    _fields_ = (("uid", ctypes.c_uint64),)


class FlowKey(ctypes.Structure):
    """struct lb_flow_key."""

    _fields_ = (
        ("client", ctypes.c_uint8 * 16),
        ("service", ctypes.c_uint32),
        ("client_port", ctypes.c_uint16),
        ("vip_port", ctypes.c_uint16),
    )


class Flow(ctypes.Structure):
    """struct lb_flow."""

    _fields_ = (
        ("backend", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("seen", ctypes.c_uint32),
    )


class Table(ctypes.Structure):
    """struct lb_table."""

    _fields_ = (("closes", ctypes.c_uint64 * EPOCHS), ("slot", ctypes.c_uint32 * SLOTS))


class Sender(ctypes.Structure):
    """struct lb_sender."""

    _fields_ = (("addr", ctypes.c_uint8 * 16),)


class NatBack(ctypes.Structure):
    """struct lb_nat_back."""

    _fields_ = (("service", ctypes.c_uint32), ("backend", ctypes.c_uint32))


class Binding(ctypes.Structure):
    """struct lb_binding."""

    _fields_ = (
        ("source", ctypes.c_uint8 * 16),
        ("backend", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("seen", ctypes.c_uint32),
        ("port", ctypes.c_uint16),
        ("state", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
    )


class Edition(ctypes.Structure):
    """struct lb_edition."""

    _fields_ = (("number", ctypes.c_uint32), ("has", ctypes.c_uint32))


class Lookup(ctypes.Structure):
    """struct lb_lookup."""

    _fields_ = (
        ("addr", ctypes.c_uint8 * 16),
        ("what", ctypes.c_uint32),
        ("edition", ctypes.c_uint32),
        ("service", ctypes.c_uint32),
        ("backend", ctypes.c_uint32),
    )


class Translated(ctypes.Structure):
    """struct lb_translated."""

    _fields_ = (
        ("backend", ctypes.c_uint8 * 16),
        ("source", ctypes.c_uint8 * 16),
        ("backend_port", ctypes.c_uint16),
        ("port", ctypes.c_uint16),
        ("proto", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


class Client(ctypes.Structure):
    """struct lb_client."""

    _fields_ = (
        ("flow", FlowKey),
        ("backend", ctypes.c_uint32),
        ("seen", ctypes.c_uint32),
        ("state", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


class QuicKey(ctypes.Structure):
    """struct lb_quic_key."""

    _fields_ = (
        ("server_id", ctypes.c_uint64),
        ("service", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class FragmentKey(ctypes.Structure):
    """struct lb_fragment_key."""

    _fields_ = (
        ("src", ctypes.c_uint8 * 16),
        ("dst", ctypes.c_uint8 * 16),
        ("id", ctypes.c_uint8 * 4),
        ("proto", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


class Fragment(ctypes.Structure):
    """struct lb_fragment."""

    _fields_ = (
        ("addr", ctypes.c_uint8 * 16),
        ("service", ctypes.c_uint32),
        ("backend", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("mode", ctypes.c_uint8),
        ("is_answer", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 2),
        ("until", ctypes.c_uint64),
    )


class Place(ctypes.Structure):
    """struct lb_place."""

    _fields_ = (
        ("ifindex", ctypes.c_uint32),
        ("mac", ctypes.c_uint8 * 6),
        ("pad", ctypes.c_uint8 * 2),
    )


class ProbeKey(ctypes.Structure):
    """struct lb_probe_key."""

    _fields_ = (
        ("peer", ctypes.c_uint8 * 16),
        ("own", ctypes.c_uint8 * 16),
        ("peer_port", ctypes.c_uint16),
        ("own_port", ctypes.c_uint16),
        ("proto", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


class Probe(ctypes.Structure):
    """struct lb_probe."""

    _fields_ = (
        ("peer", ctypes.c_uint8 * 16),
        ("own", ctypes.c_uint8 * 16),
        ("peer_port", ctypes.c_uint16),
        ("pad", ctypes.c_uint8 * 2),
    )


class Link(ctypes.Structure):
    """struct lb_link."""

    _fields_ = (
        ("ifindex", ctypes.c_uint32),
        ("master", ctypes.c_uint32),
        ("mac", ctypes.c_uint8 * 6),
        ("pad", ctypes.c_uint8 * 2),
    )


class Watched(ctypes.Structure):
    """struct lb_watched."""

    _fields_ = (
        ("owner", ctypes.c_uint64),
        ("since", ctypes.c_uint64),
        ("client_next", ctypes.c_uint32),
        ("server_next", ctypes.c_uint32),
        ("stage", ctypes.c_uint8),
        ("ended", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 6),
    )


class Totals(ctypes.Structure):
    """struct lb_totals."""

    _fields_ = (
        ("service", ctypes.c_uint64),
        ("epoch", ctypes.c_uint64),
        ("event", ctypes.c_uint64 * EVENTS),
        ("handshake", ctypes.c_uint64 * histogram.BUCKETS),
        ("first_byte", ctypes.c_uint64 * histogram.BUCKETS),
    )


class Overdue(ctypes.Structure):
    """struct lb_overdue."""

    _fields_ = (("unanswered", ctypes.c_uint64), ("unserved", ctypes.c_uint64))


class Mirrored(ctypes.Structure):
    """struct lb_mirrored."""

    _fields_ = (
        ("backend", ctypes.c_uint32),
        ("client_first", ctypes.c_uint32),
        ("client_next", ctypes.c_uint32),
        ("server_next", ctypes.c_uint32),
        ("time", ctypes.c_uint16 * 2),
        ("stage", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


class MirrorStats(ctypes.Structure):
    """struct lb_mirror_stats."""

    _fields_ = (
        ("copies", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("flows", ctypes.c_uint64),
        ("given_up", ctypes.c_uint64),
        ("answers", ctypes.c_uint64),
    )


class WatchVip(ctypes.Structure):
    """struct lb_watch_vip."""

    _fields_ = (
        ("owner", ctypes.c_uint64),
        ("service", ctypes.c_uint32),
        ("patience", ctypes.c_uint32),
    )


class Counter(ctypes.Structure):
    """struct lb_counter."""

    _fields_ = (("packets", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


class Stats(ctypes.Structure):
    """struct lb_stats."""

    _fields_ = (
        ("packets", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("flows", ctypes.c_uint64),
        ("reply_packets", ctypes.c_uint64),
        ("reply_bytes", ctypes.c_uint64),
    )


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
        Endpoint(
            addr=(ctypes.c_uint8 * 16)(*address_bytes(address)),
            port=socket.htons(port),
            proto=protocol,
        )
    )


def rule_key(service: int, prefix: Network) -> bytes:
    """A key of the rules map."""
    key = RuleKey(prefixlen=32 + prefix.prefixlen + (96 if prefix.version == 4 else 0), service=service)
    key.client[:] = address_bytes(prefix.network_address)
    return bytes(key)


def rule_key_from(raw: bytes) -> tuple[int, Network]:
    """Service and prefix of a key of the rules map."""
    key = RuleKey.from_buffer_copy(raw)
    address = address_from(bytes(key.client))
    length = key.prefixlen - 32 - (96 if address.version == 4 else 0)
    return key.service, ip_network((address, length))


def port_range(address: Address, first: int, last: int, protocol: int) -> list[bytes]:
    """The keys of the ranges map that together cover the ports from first to last (host order, both
    within): the fewest prefixes that do."""
    keys = []
    while first <= last:
        # As large as its alignment, and the ports that are left, allow.
        bits = min(
            (first & -first).bit_length() - 1 if first else 16, (last - first + 1).bit_length() - 1
        )
        key = Range(
            prefixlen=RANGE_BITS + 16 - bits,
            addr=(ctypes.c_uint8 * 16)(*address_bytes(address)),
            proto=protocol,
            port=socket.htons(first),
        )
        keys.append(bytes(key))
        first += 1 << bits
    return keys


def within(clients: NDArray[np.uint64], network: Network) -> NDArray[np.bool_]:
    """Which of the addresses, as rows of two words of 64 bits, are in it."""
    bits = network.prefixlen + (96 if network.version == 4 else 0)
    mask = (1 << 128) - (1 << 128 - bits)
    wanted = int.from_bytes(address_bytes(network.network_address), "big") & mask
    words = np.array([mask >> 64, mask & 2**64 - 1], dtype=np.uint64)
    same = clients.astype(np.uint64) & words == np.array([wanted >> 64, wanted & 2**64 - 1], np.uint64)
    whole: NDArray[np.bool_] = same.all(axis=1)
    return whole
