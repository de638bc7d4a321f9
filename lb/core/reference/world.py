"""What the data path knows (the kernel's maps) and what it says about one frame.

Addresses and ports are plain values here; how they lie in memory is lb/datapath/structs.py's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, Flag, auto

from lb.core.flowhash import Seed
from lb.model.objects import Address, Affinity, Mode, Network, NoBackend, Tracking

TCP = 6
UDP = 17


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and port of one protocol (IANA number)."""

    address: Address
    port: int
    proto: int


@dataclass(frozen=True, slots=True)
class Range:
    """An address and the ports from `first` to `last` of one protocol."""

    address: Address
    first: int
    last: int
    proto: int


@dataclass(frozen=True, slots=True)
class Service:
    """A VIP with its policies."""

    seed: Seed
    vip: Address
    port: int  # 0 = a range of them
    proto: int
    mode: Mode = Mode.DSR
    affinity: Affinity = Affinity.FLOW
    tracking: Tracking = Tracking.MOVING
    no_backend: NoBackend = NoBackend.REJECT
    quic_bytes: int = 0  # length of the server ID in connection IDs; 0 = not steered by them
    quic_config: int = 0  # their first three bits


@dataclass(frozen=True, slots=True)
class Backend:
    """A server: where it is, and how frames get there."""

    address: Address
    port: int = 0  # 0 = the VIP's; in gue, of the tunnel
    generation: int = 1  # of the id; starts at 1
    usable: bool = True
    resolved: bool = True
    ifindex: int = 0
    dmac: bytes = bytes(6)
    smac: bytes = bytes(6)
    source: Address | None = None  # ours, on the way there; tunnels only
    mtu: int = 0  # of the way there; 0 = not known
    resets: bool = False  # not usable, and clients of its TCP flows are told


@dataclass(frozen=True, slots=True)
class FlowKey:
    """What makes a flow of a service."""

    client: Address
    service: int
    client_port: int
    vip_port: int


@dataclass(frozen=True, slots=True)
class Flow:
    """Where a flow went."""

    backend: int
    generation: int
    seen: int  # low 32 bits of jiffies


class NatState(Flag):
    """What was seen of a translated connection (fullnat)."""

    ANSWERED = auto()
    FIN = auto()
    RST = auto()
    OPENING = auto()  # the client has sent nothing but what begins a flow


NOTHING_SEEN = NatState(0)


@dataclass(frozen=True, slots=True)
class Binding:
    """Mode fullnat: what a flow is bound to. `seen` and `state` are of the client's packets."""

    source: Address | None  # ours: what the backend takes for the client
    backend: int
    generation: int
    seen: int
    port: int  # ours
    state: NatState = NOTHING_SEEN


@dataclass(frozen=True, slots=True)
class Translated:
    """Mode fullnat: the ends of a flow as its backend sees them."""

    backend: Address
    backend_port: int
    source: Address | None
    port: int
    proto: int


@dataclass(frozen=True, slots=True)
class Client:
    """Mode fullnat: whose flow that is. `seen` and `state` are of the backend's packets."""

    flow: FlowKey
    backend: int
    seen: int
    state: NatState = NOTHING_SEEN


@dataclass(frozen=True, slots=True)
class Past:
    """What a slot that moved lately remembers: the backend that it had (0 = none) when it last was not
    moving, and when its window closes (ns)."""

    origin: int
    closes: int


@dataclass(frozen=True, slots=True)
class Rule:
    """Which table some clients' flows are placed by. While the window is open (`closes`, in ns; 0 = it
    changed long ago), older flows are where the table `before` has them."""

    table: int
    before: int = 0
    closes: int = 0


@dataclass(frozen=True, slots=True)
class FragmentKey:
    """What the pieces of one datagram have in common."""

    source: Address
    destination: Address
    identification: bytes
    proto: int  # 0 in IPv6


@dataclass(frozen=True, slots=True)
class Fragment:
    """Where the first of them went. `until`: in ns, the others follow."""

    service: int
    backend: int
    generation: int
    mode: Mode
    address: Address | None  # of an answer, the client; else in fullnat our source
    is_answer: bool
    until: int


@dataclass(frozen=True, slots=True)
class Sender:
    """Where a client's frames come from."""

    ifindex: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class NatBack:
    """Which service and backend an answer from a `nat` backend's endpoint belongs to."""

    service: int
    backend: int


class Route(Enum):
    """What the kernel's routing says of a destination."""

    NEIGHBOUR = auto()  # goes out of `ifindex`, with these MAC addresses
    LOCAL = auto()  # to this machine itself, or no route at all: nothing that is forwarded
    NO_NEIGHBOUR = auto()  # forwarded, but the next hop's MAC address isn't known
    KERNEL = auto()  # forwarded, but only the kernel can: fragment, refuse


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """What the routing is asked."""

    ifindex: int
    source: Address
    destination: Address
    length: int  # of the IP packet: is it larger than the path's MTU?


@dataclass(frozen=True, slots=True)
class RouteResult:
    """What it answers."""

    route: Route
    ifindex: int = 0
    dmac: bytes = bytes(6)
    smac: bytes = bytes(6)


def nowhere(_query: RouteQuery) -> RouteResult:
    """Routing of a machine without routes."""
    return RouteResult(Route.LOCAL)


@dataclass(frozen=True)
class World:
    """All that a frame's fate depends on. Backends and services are named by their ids."""

    links: Mapping[int, bytes] = field(default_factory=dict)  # attached: ifindex -> MAC address
    ports: Mapping[int, int] = field(default_factory=dict)  # of bonds: ifindex -> the bond's
    vips: Mapping[Endpoint, int] = field(default_factory=dict)  # -> service
    ranges: Mapping[Range, int] = field(default_factory=dict)  # -> service; they don't overlap
    services: Mapping[int, Service] = field(default_factory=dict)
    # By service, then by prefix of the client's address.
    rules: Mapping[int, Mapping[Network, Rule]] = field(default_factory=dict)
    tables: Mapping[int, Sequence[int]] = field(default_factory=dict)  # slot -> backend, 0 = empty
    pasts: Mapping[int, Mapping[int, Past]] = field(default_factory=dict)  # slots that aren't quiet
    backends: Mapping[int, Backend] = field(default_factory=dict)
    nat_back: Mapping[Endpoint, NatBack] = field(default_factory=dict)
    conntrack: Mapping[FlowKey, Flow] = field(default_factory=dict)
    embryonic: Mapping[FlowKey, Flow] = field(default_factory=dict)  # only their begin was seen
    senders: Mapping[Address, Sender] = field(default_factory=dict)
    bindings: Mapping[FlowKey, Binding] = field(default_factory=dict)
    translations: Mapping[Translated, Client] = field(default_factory=dict)
    fragments: Mapping[FragmentKey, Fragment] = field(default_factory=dict)
    quic: Mapping[tuple[int, int], int] = field(default_factory=dict)  # service, server ID -> backend
    route: Callable[[RouteQuery], RouteResult] = nowhere
    # Interfaces that this hook can send a routed frame to; None = all of them. (XDP reaches only
    # attached ones, tc any.)
    reachable: frozenset[int] | None = None
    may_send_errors: bool = True  # has this CPU ICMP errors left in this second?
    now: int = 0  # low 32 bits of jiffies
    clock: int = 0  # ns; what windows close by

    def served(self, address: Address) -> frozenset[int]:
        """The protocols of the services at an address; none = it isn't a VIP."""
        vips: list[Endpoint | Range] = [*self.vips, *self.ranges]
        return frozenset(vip.proto for vip in vips if vip.address == address)


class Verdict(Enum):
    """What becomes of the frame."""

    PASS = auto()  # to the kernel's stack
    DROP = auto()
    TX = auto()  # back out of the interface that it came in by
    REDIRECT = auto()  # out of another one


class Outcome(Enum):
    """Why. Every frame has exactly one; the kernel counts them under the same names."""

    PASS_NOT_OURS = auto()
    PASS_UNRESOLVED = auto()
    FORWARD_TX = auto()
    FORWARD_REDIRECT = auto()
    REPLY_REDIRECT = auto()
    REPLY_PASS = auto()
    ECHO_REPLY = auto()
    REJECT_RST = auto()
    REJECT_UNREACH = auto()
    DROP_NO_BACKEND = auto()
    DROP_MALFORMED = auto()
    DROP_FRAGMENT = auto()
    DROP_TTL = auto()
    DROP_NO_SPACE = auto()  # by this model, whose buffers always have room, only for a tag in the way
    DROP_UNRESOLVED = auto()
    REJECT_TOO_BIG = auto()
    DROP_TOO_BIG = auto()
    REJECT_NAT_FULL = auto()
    DROP_NAT_FULL = auto()


@dataclass(frozen=True, slots=True)
class Stats:
    """What a frame adds to the counters of a service or a backend. Bytes are of the whole frame."""

    packets: int = 0
    bytes: int = 0
    flows: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """One frame's fate, and what it changed."""

    verdict: Verdict
    outcome: Outcome
    frame: bytes
    ifindex: int | None = None  # that it leaves by
    conntrack: Mapping[FlowKey, Flow | None] = field(default_factory=dict)  # written; None = deleted
    embryonic: Mapping[FlowKey, Flow | None] = field(default_factory=dict)
    senders: Mapping[Address, Sender] = field(default_factory=dict)
    bindings: Mapping[FlowKey, Binding | None] = field(default_factory=dict)
    translations: Mapping[Translated, Client | None] = field(default_factory=dict)
    fragments: Mapping[FragmentKey, Fragment] = field(default_factory=dict)
    service: tuple[int, Stats] | None = None
    backend: tuple[int, Stats] | None = None
