"""The reference model of the data path: its specification, in Python.

`process(frame, ifindex, world)` says what the kernel programs must do with one frame. It is written
from the RFCs and from DESIGN.md (section 4), reads in the order in which a packet lives, and has no
state of its own: what the kernel keeps in maps is the `World` that goes in, and what a packet
changes there is part of the `Result` that comes out.

    parse.py    bytes -> addresses, protocol, ports, or why not
    pick.py     service, slot and its past, conntrack -> backend
    rewrite.py  NAT, hop, MAC addresses, VLAN tags; with the checksums of checksum.py
    answer.py   what we answer ourselves: echo, RST, ICMP unreachable
    process.py  the story that joins them

tests/unit/test_reference.py holds it against scapy; tests/datapath holds the kernel against it.
The two hooks differ only in names: XDP_TX and XDP_REDIRECT are both TC_ACT_REDIRECT under tc.
"""

from lb.core.reference.process import process
from lb.core.reference.world import (
    Backend,
    Endpoint,
    Flow,
    FlowKey,
    NatBack,
    Outcome,
    Past,
    Result,
    Route,
    RouteQuery,
    RouteResult,
    Sender,
    Service,
    Stats,
    Verdict,
    World,
)

__all__ = [
    "Backend",
    "Endpoint",
    "Flow",
    "FlowKey",
    "NatBack",
    "Outcome",
    "Past",
    "Result",
    "Route",
    "RouteQuery",
    "RouteResult",
    "Sender",
    "Service",
    "Stats",
    "Verdict",
    "World",
    "process",
]
