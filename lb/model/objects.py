"""The documents of the store, one pydantic model each. In what people write unknown keys are errors.

Each model is one JSON document in the store (keys: lb/model/keys.py) and one entry of the YAML that
`lbctl apply` reads (lb/model/manifest.py).
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from lb.model.document import LATEST
from lb.model.document import Document as Document
from lb.model.health import DURATION, ExecCheck, Health, NoCheck, Overrides, Via

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# RFC 1123 labels: safe in store keys, file names, metrics and DNS alike.
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", max_length=63),
]

MAX_WEIGHT = 65535
DEFAULT_POOL = "stable"
DEFAULT_WINDOW = 900
MAX_WINDOW = 7 * 86400
MAX_RULES = 1024  # of one service
MAX_QUIC_ID_BYTES = 8
GUE_PORT = 6080  # UDP, registered with IANA


class Protocol(StrEnum):
    """Transport protocol of a VIP."""

    TCP = "tcp"
    UDP = "udp"


class Mode(StrEnum):
    """How a packet travels to its backend.

    dsr: unchanged but for the MAC addresses, on a shared segment. nat: with the backend's address;
    answers come back through the node. ipip: in an IP packet of either family (RFC 2003, 2473, 4213).
    gue: in UDP to port 6080 (GUE, variant 1). fullnat: between the node's own address and the backend's.
    """

    DSR = "dsr"
    NAT = "nat"
    IPIP = "ipip"
    GUE = "gue"
    FULLNAT = "fullnat"


TUNNELS = frozenset({Mode.IPIP, Mode.GUE})
TRANSLATIONS = frozenset({Mode.NAT, Mode.FULLNAT})  # that write the backend's address into packets
_DIRECT = "servers answer clients themselves, so nobody could drop what answers a copy"
_NO_MIRROR = {  # why copies of traffic are impossible
    Mode.DSR: _DIRECT,
    Mode.IPIP: _DIRECT,
    Mode.GUE: _DIRECT,
    Mode.FULLNAT: "each flow needs a port of the node's, and copies have none",
}


class Affinity(StrEnum):
    """What the flow hash covers: the 5-tuple, or the client's address alone."""

    FLOW = "flow"
    CLIENT = "client"


class Tracking(StrEnum):
    """Which flows are remembered, so that they stay on their backend while the slots move.

    moving: those whose slot moved lately, and only while that matters. always: each flow.
    never: none; a change of weights moves flows.
    """

    MOVING = "moving"
    ALWAYS = "always"
    NEVER = "never"


class NoBackend(StrEnum):
    """What a client gets while no backend is usable: TCP RST / ICMP unreachable, or nothing."""

    REJECT = "reject"
    DROP = "drop"


class Admin(StrEnum):
    """What a person wants of a backend.

    up: takes new flows by weight. drain: no new flows, established ones go on.
    down: no flow at all; established ones are placed anew with their next packet.
    """

    UP = "up"
    DRAIN = "drain"
    DOWN = "down"


QuicId = Annotated[
    str, StringConstraints(pattern=rf"^([0-9a-fA-F]{{2}}){{1,{MAX_QUIC_ID_BYTES}}}$", to_lower=True)
]


def _written(value: object) -> object:
    # ipaddress takes integers too: 5 would be 0.0.0.5.
    if isinstance(value, int | bytes):
        raise ValueError(f"{value!r} is not an address; write it as text")
    return value


def _unicast(address: Address) -> Address:
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise ValueError(f"{address} is not a unicast address that packets can be sent to")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise ValueError(f"{address} is an IPv4-mapped address; write {address.ipv4_mapped}")
    if isinstance(address, IPv6Address) and address.is_link_local:
        raise ValueError(f"{address} is link-local; lb needs an address that can be routed")
    if isinstance(address, IPv4Address) and int(address) == 0xFFFFFFFF:
        raise ValueError(f"{address} is the broadcast address")
    return address


class Mirror(Document):
    """A copy of a share of a service's traffic, for a pool whose answers nobody gets."""

    pool: Name = Field(description="Pool that gets the copies. It must have no other traffic.")
    percent: float = Field(ge=0, le=100, description="Share of the flows that are copied, in per cent.")


class Service(Document):
    """A named VIP with its forwarding mode and policies. Key: /lb/v1/services/<name>."""

    name: Name = Field(description="Name of the service; an RFC 1123 label.")
    vip: Address = Field(description="IPv4 or IPv6 address that clients connect to.")
    port: int = Field(
        ge=1, le=65535, description="Port that clients connect to, or the first one of a range."
    )
    end_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Last port of the range; none = only `port`. 1 to 65535 is any port. A service that"
        " names a port alone goes before one whose range covers it.",
    )
    protocol: Protocol = Field(default=Protocol.TCP, description="Transport protocol.")
    mode: Mode = Field(default=Mode.DSR, description="How packets travel to the backend.")
    affinity: Affinity = Field(default=Affinity.FLOW, description="What the flow hash covers.")
    tracking: Tracking = Field(default=Tracking.MOVING, description="Which flows are remembered.")
    window: Annotated[int, Field(ge=1, le=MAX_WINDOW), DURATION] = Field(
        default=DEFAULT_WINDOW,
        description="Seconds for which a slot that moved remembers where it was. With tracking"
        " `moving`, an established flow that says nothing for so long is lost to the move.",
    )
    no_backend: NoBackend = Field(
        default=NoBackend.REJECT, description="Answer while no backend is usable."
    )
    split: dict[Name, Annotated[float, Field(ge=0, le=100)]] = Field(
        default={DEFAULT_POOL: 100.0},
        description="Share of new flows for each pool, in per cent; sums to 100.",
    )
    rules: dict[Network, Name] = Field(
        default={},
        max_length=MAX_RULES,
        description="Source prefixes whose clients go to a pool of their own, whatever the split says;"
        " of several that cover a client the longest counts. While nobody in that pool can be used,"
        " they go by the split.",
    )
    backup: Name | None = Field(
        default=None,
        description="Pool that new flows go to while no backend of the pools in the split can be used;"
        " none = nobody.",
    )
    mirror: Mirror | None = Field(
        default=None,
        description="Pool that gets a copy of a share of the flows, and whose answers are dropped (mode"
        " nat, hook tc); none = no copies. It rests while that pool has a share in the split.",
    )
    quic_id_bytes: int = Field(
        default=0,
        ge=0,
        le=MAX_QUIC_ID_BYTES,
        description="Length of the server ID that servers write into their QUIC connection IDs"
        " (draft-ietf-quic-load-balancers, unencrypted); 0 = packets aren't steered by them.",
    )
    quic_config: int = Field(
        default=0, ge=0, le=6, description="The first three bits of such a connection ID."
    )
    health: Health | None = Field(
        default=None, description="How its backends are checked; none = not at all."
    )
    observe: bool = Field(
        default=False,
        description="Whether the nodes count what becomes of its connections, and how long it takes.",
    )

    _check_text = field_validator("vip", mode="before")(_written)
    _check_vip = field_validator("vip")(_unicast)

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if abs(sum(self.split.values()) - 100.0) > 1e-6:
            raise ValueError(f"split sums to {sum(self.split.values()):g} %, not to 100 %")
        return self

    @model_validator(mode="after")
    def _check_backup(self) -> Self:
        if self.backup and self.split.get(self.backup):
            raise ValueError(
                f"backup: pool {self.backup!r} has a share in the split, so it is in use anyway"
            )
        return self

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for prefix in self.rules:
            if prefix.version != self.vip.version:
                raise ValueError(f"rules: {prefix} is of another IP version than the VIP {self.vip}")
            if prefix.version == 6 and prefix.network_address.ipv4_mapped:
                raise ValueError(f"rules: {prefix} stands for IPv4 addresses, which no IPv6 client has")
        return self

    @model_validator(mode="after")
    def _check_mirror(self) -> Self:
        if self.mirror is None:
            return self
        pool = self.mirror.pool
        if self.mode is not Mode.NAT:
            raise ValueError(f"mirror: in mode {self.mode} {_NO_MIRROR[self.mode]}; use mode nat")
        if self.quic_id_bytes:
            raise ValueError(
                "mirror: QUIC is encrypted with keys of one server, so copies mean nothing to another"
            )
        if pool == self.backup:
            raise ValueError(f"mirror: pool {pool!r} is the backup, whose answers clients may need")
        if pool in self.rules.values():
            raise ValueError(f"mirror: rules send clients to pool {pool!r}, who need its answers")
        return self

    @property
    def mirrored(self) -> Mirror | None:
        """What is copied, and where to; none while it rests, as that pool has clients of its own."""
        rests = self.mirror is None or self.split.get(self.mirror.pool)
        return None if rests else self.mirror

    @property
    def pools_alone(self) -> frozenset[str]:
        """The pools that are placed by a table of their own: rules send clients there, or it gets
        copies."""
        copies = {self.mirror.pool} if self.mirror else set()
        return frozenset({*self.rules.values(), *copies})

    @model_validator(mode="after")
    def _check_quic(self) -> Self:
        if self.quic_id_bytes and self.protocol is not Protocol.UDP:
            raise ValueError("quic_id_bytes: QUIC runs over UDP, and this is a TCP service")
        return self

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.end_port is not None and self.end_port <= self.port:
            raise ValueError(
                f"end_port {self.end_port} is not above port {self.port}; for one port leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_health(self) -> Self:
        check = self.health and self.health.check
        if check and self.end_port and not check.port and not isinstance(check, ExecCheck | NoCheck):
            raise ValueError("health: a service with several ports has to say which one is checked")
        if check and self.health and self.health.via is Via.VIP:
            if self.end_port:
                raise ValueError("health: via vip, a service of one port only can be checked")
            if check.port not in (None, self.port):
                raise ValueError(
                    f"health: via vip, only the VIP's port {self.port} can be asked, not {check.port}"
                )
        return self

    @model_validator(mode="after")
    def _check_passive(self) -> Self:
        if self.health is None or self.health.passive is None:
            return self
        if self.mode not in TRANSLATIONS:
            raise ValueError(
                f"health.passive: in mode {self.mode} answers don't come by the node, so it can't see"
                " what fails; use a check, or mode nat or fullnat"
            )
        if self.protocol is not Protocol.TCP:
            raise ValueError(
                "health.passive: a datagram need not be answered, so nobody can tell what fails; use a"
                " check"
            )
        return self

    @property
    def endpoint(self) -> tuple[Address, int, int | None, Protocol]:
        """What must be unique among services."""
        return self.vip, self.port, self.end_port, self.protocol

    @property
    def one_port(self) -> int | None:
        """The port; none if it is a range."""
        return None if self.end_port else self.port

    @property
    def ports(self) -> str:
        """80, 8000-8100 or any: as the command line takes it."""
        if self.end_port is None:
            return str(self.port)
        return "any" if (self.port, self.end_port) == (1, 65535) else f"{self.port}-{self.end_port}"


class Backend(Document):
    """One server of a service. Key: /lb/v1/backends/<service>/<name>."""

    service: Name = Field(description="Service that this backend belongs to.")
    name: Name = Field(description="Name of the backend, unique within its service.")
    address: Address = Field(description="IPv4 or IPv6 address of the server.")
    port: int | None = Field(
        default=None, ge=1, le=65535, description="Port of the server; none = the VIP's port."
    )
    weight: int = Field(
        default=100, ge=0, le=MAX_WEIGHT, description="Share of new flows, relative to the others."
    )
    admin: Admin = Field(default=Admin.UP, description="What a person wants of it.")
    pool: Name = Field(default=DEFAULT_POOL, description="Pool of the service that it belongs to.")
    quic_id: QuicId | None = Field(
        default=None,
        description="Its server ID in QUIC connection IDs, in hexadecimal, of quic_id_bytes bytes.",
    )
    max_connections: int | None = Field(
        default=None,
        ge=1,
        le=(1 << 32) - 1,
        description="While a node has as many connections to it, it gets no new ones there, unless all"
        " of its pool are full; mode fullnat only; none = no limit.",
    )
    health: Overrides | None = Field(
        default=None, description="What is different in its checks; none = nothing."
    )
    drain_until: float | None = Field(
        default=None,
        ge=0,
        le=LATEST,
        description="When a drain ends and it becomes `down`, in Unix seconds.",
    )

    _check_text = field_validator("address", mode="before")(_written)
    _check_address = field_validator("address")(_unicast)

    @property
    def takes_flows(self) -> bool:
        """Does anybody want new flows to go there?"""
        return self.admin is Admin.UP and self.weight > 0


class ClusterConfig(Document):
    """What all nodes must agree on. Key: /lb/v1/config. Made once, with the first change."""

    seed: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] = Field(
        description="128-bit key of the flow hash, in hexadecimal; keep it secret from clients."
    )


def table_path(service: str, pool: str | None) -> str:
    """What a table is called: "web", or "web/canary" of that pool alone."""
    return f"{service}/{pool}" if pool else service


_Index = Annotated[int, Field(ge=-1, le=(1 << 31) - 1)]  # int32, as in lb/core/slots.py
_Slot = Annotated[int, Field(ge=0, le=65535)]
_Length = Annotated[int, Field(ge=1, le=65536)]
_Closes = Annotated[int, Field(ge=0, le=LATEST)]


class TableDocument(Document):
    """A service's slot table as shared state. Key: /lb/v1/tables/<service>, and
    /lb/v1/tables/<service>/<pool> for a pool that rules send clients to, or that is its backup.

    `runs` covers the slots 0..65535 in order: [index into backends, or -1 for empty; length].
    `moves` lists those that moved lately: [first slot; how many; their origin, as an index into
    backends, or -1 for none; when their window closes, in Unix seconds]. The origin is the backend
    that they had when they last were not moving. `steers` are the rules that it was planned with, and
    those that went lately: [prefix; pool, or null for the split's; the same before, and when that no
    longer counts, in Unix seconds, 0 = it counts no more].
    """

    # What a newer node adds is ignored, and lost when this one writes the table anew. One that counted
    # as unreadable would be begun anew, which moves flows. So add only what nodes can do without.
    model_config = ConfigDict(extra="ignore")

    service: Name
    pool: Name | None = Field(
        default=None,
        description="Of a table of this pool alone: for the clients that rules send there, or for all"
        " while it stands in as the backup. none = of the split.",
    )
    backends: tuple[Name, ...]
    parts: dict[Name, Annotated[int, Field(ge=0, le=100_000_000)]] = Field(
        description="Share of each pool that it was planned for, in millionths of a per cent."
    )
    runs: tuple[tuple[_Index, _Length], ...]
    moves: tuple[tuple[_Slot, _Length, _Index, _Closes], ...] = ()
    steers: tuple[tuple[Network, Name | None, Name | None, _Closes], ...] = ()

    @property
    def path(self) -> str:
        """Its key below /lb/v1/tables/."""
        return table_path(self.service, self.pool)
