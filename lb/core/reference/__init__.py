"""The reference model of the data path: its specification, in Python.

`process(frame, ifindex, world)` says what the kernel programs must do with one frame. It is written
from the RFCs and from DESIGN.md (section 4), reads in the order in which a packet lives, and has no
state of its own: what the kernel keeps in maps is the `World` that goes in, and what a packet
changes there is part of the `Result` that comes out.

    parse.py    bytes -> addresses, protocol, ports, or why not
    pick.py     service, slot and its past, conntrack -> backend
    rewrite.py  NAT, hop, MAC addresses, VLAN tags; with the checksums of checksum.py
    pieces.py   datagrams in several fragments
    quic.py     the backend that a QUIC connection ID names
    fullnat.py  the ports that mode fullnat gives to flows
    tunnel.py   the outer headers of modes ipip and gue
    quote.py    what an ICMP error is about, and its translation
    answer.py   what we answer ourselves: echo, RST, ICMP errors
    process.py  the story that joins them

tests/unit/test_reference.py holds it against scapy; tests/datapath holds the kernel against it.
The two hooks differ only in names: XDP_TX and XDP_REDIRECT are both TC_ACT_REDIRECT under tc.
"""

from lb.core.reference.process import process
from lb.core.reference.world import (
    Backend,
    Binding,
    Client,
    Endpoint,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    NatBack,
    NatState,
    Outcome,
    Past,
    Range,
    Result,
    Route,
    RouteQuery,
    RouteResult,
    Rule,
    Sender,
    Service,
    Stats,
    Translated,
    Verdict,
    World,
)

__all__ = [
    "Backend",
    "Binding",
    "Client",
    "Endpoint",
    "Flow",
    "FlowKey",
    "Fragment",
    "FragmentKey",
    "NatBack",
    "NatState",
    "Outcome",
    "Past",
    "Range",
    "Result",
    "Route",
    "RouteQuery",
    "RouteResult",
    "Rule",
    "Sender",
    "Service",
    "Stats",
    "Translated",
    "Verdict",
    "World",
    "process",
]
