"""The structs that user space and the kernel programs share: xdp/include/lb_structs.h, mirrored.

tests/datapath/test_layout.py compiles the header and proves both sides equal. Addresses are 16 bytes in
network order, IPv4 mapped into ::ffff:0:0/96; ports are in network order; the rest in host order.
"""

from __future__ import annotations

import ctypes

from lb.core import histogram
from lb.datapath import consts


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

    _fields_ = (("closes", ctypes.c_uint64 * consts.EPOCHS), ("slot", ctypes.c_uint32 * consts.SLOTS))


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
        ("event", ctypes.c_uint64 * consts.EVENTS),
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
