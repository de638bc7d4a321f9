"""Sizes, limits and enumerations that user space and the kernel programs share: xdp/include/lb_consts.h,
mirrored. tests/datapath/test_layout.py compiles the header and proves both sides equal."""

from __future__ import annotations

import socket
from enum import IntEnum, IntFlag

from lb.model.objects import Affinity, Mode, NoBackend, Protocol, Tracking

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

ERRORS_PER_SECOND = 1000  # ICMP errors of each kind that one CPU sends

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


class Error(IntEnum):
    """enum lb_error: kinds of ICMP errors that have an allowance of their own."""

    UNREACH = 0
    TOO_BIG = 1


class NatState(IntFlag):
    """LB_NAT_*: what was seen of a translated connection."""

    ANSWERED = 1
    FIN = 2
    RST = 4
    OPENING = 8


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
