"""The lab's plan: names, addresses and the commands that make them. Nothing is run here.

              front: 198.51.100.0/24, 2001:db8:1::/64     back: 203.0.113.0/24, 2001:db8:2::/64
    client    front0 .10 (IPv4 also .11 .12 .13)
    node1     front0 .1, VIP .100                         back0 .1
    backendN  front0 .(20+N), VIP on lo                   back0 .(10+N)

Each segment is a bridge in the namespace `switch`, so that nothing at all appears in the root
namespace. A backend answers from its VIP straight out of front0 (direct server return) and from
its back address through the node (NAT needs to see the way back).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from lb.errors import UserError

Address = IPv4Address | IPv6Address

VIP4 = IPv4Address("198.51.100.100")
VIP6 = IPv6Address("2001:db8:1::100")

# A routing table of the backends' own; any number that is not 253 to 255 would do.
VIA_NODE = 100

# Backend N has .(20+N) on the front segment, and the VIP is .100.
MAX_BACKENDS = 64

CLIENT4 = tuple(IPv4Address(f"198.51.100.{host}") for host in (10, 11, 12, 13))
CLIENT6 = IPv6Address("2001:db8:1::10")


def front(host: int) -> tuple[IPv4Address, IPv6Address]:
    """A host's addresses on the front segment; its number reads the same in both families."""
    return IPv4Address(f"198.51.100.{host}"), IPv6Address(f"2001:db8:1::{host}")


def back(host: int) -> tuple[IPv4Address, IPv6Address]:
    """A host's addresses on the back segment."""
    return IPv4Address(f"203.0.113.{host}"), IPv6Address(f"2001:db8:2::{host}")


def own(addresses: tuple[IPv4Address, IPv6Address], interface: str, bits: int = 24) -> list[str]:
    """Lines that give an interface its addresses."""
    v4, v6 = addresses
    return [f"addr add {v4}/{bits} dev {interface}", f"addr add {v6}/64 dev {interface} nodad"]


def vip(interface: str) -> list[str]:
    """Lines that give an interface the VIPs."""
    return [
        f"addr add {VIP4}/32 dev {interface}",
        # Deprecated from the start: never taken as the source of somebody else's traffic.
        f"addr add {VIP6}/128 dev {interface} nodad preferred_lft 0",
    ]


@dataclass(frozen=True)
class Link:
    """A veth pair from a namespace to a bridge of the switch."""

    namespace: str
    interface: str
    port: str
    bridge: str


@dataclass(frozen=True)
class Plan(ABC):
    """What all labs have: a client, nodes and backends, on segments that are bridges of `switch`."""

    prefix: str = "lb-"
    backend_count: int = 4
    mtu: int = 1500

    def __post_init__(self) -> None:
        if not 1 <= self.backend_count <= MAX_BACKENDS:
            raise UserError(
                f"a lab of {self.backend_count} backends is not possible",
                hint=f"ask for 1 to {MAX_BACKENDS}",
            )

    @property
    @abstractmethod
    def namespaces(self) -> tuple[str, ...]:
        """All of them."""

    @property
    @abstractmethod
    def nodes(self) -> tuple[str, ...]:
        """Namespaces of the load balancers."""

    @property
    @abstractmethod
    def links(self) -> tuple[Link, ...]:
        """Every veth pair."""

    @property
    @abstractmethod
    def routers(self) -> tuple[str, ...]:
        """Namespaces that forward packets."""

    @property
    def quiet(self) -> tuple[str, ...]:
        """Namespaces that have the VIP, and must not say so."""
        return self.backends

    @abstractmethod
    def _addresses(self, namespace: str) -> list[str]:
        """Lines that give a namespace its addresses."""

    @abstractmethod
    def _routes(self, namespace: str) -> list[str]:
        """Lines that give it its routes."""

    @abstractmethod
    def more_commands(self, namespace: str) -> list[tuple[str, str]]:
        """What `ip -batch` takes for IPv4 unless it was started with -6: pairs of option and line."""

    @abstractmethod
    def back_addresses(self, backend: str) -> tuple[IPv4Address, IPv6Address]:
        """Where a node reaches a backend; what `lbctl backend add` is given."""

    @abstractmethod
    def client_routes(self, source: IPv4Address) -> list[str]:
        """What `ip route replace` makes of the client's ways, so that it comes from this address."""

    @property
    def client(self) -> str:
        """Namespace of the client."""
        return f"{self.prefix}client"

    @property
    def switch(self) -> str:
        """Namespace of the bridges."""
        return f"{self.prefix}switch"

    @property
    def backends(self) -> tuple[str, ...]:
        """Namespaces of the backends, in the order of their numbers from 1."""
        return tuple(f"{self.prefix}backend{i}" for i in range(1, self.backend_count + 1))

    @property
    def client_addresses(self) -> tuple[IPv4Address, ...]:
        """Of the client, by IPv4."""
        return CLIENT4

    def number(self, backend: str) -> int:
        """The N of backendN."""
        return self.backends.index(backend) + 1

    def link(self, namespace: str, side: str) -> Link:
        """The pair between a namespace and a bridge."""
        return Link(namespace, f"{side}0", f"{namespace.removeprefix(self.prefix)}-{side[0]}", side)

    def sysctls(self, namespace: str) -> list[str]:
        """Settings of a namespace, for sysctl(8). Made before its links, which inherit them."""
        settings: dict[str, str | int] = {}
        for scope in ("all", "default"):
            v4, v6 = f"net.ipv4.conf.{scope}", f"net.ipv6.conf.{scope}"
            settings[f"{v6}.accept_dad"] = 0  # an address is usable at once
            settings[f"{v6}.accept_ra"] = 0
            settings[f"{v6}.router_solicitations"] = 0
            # A VIP's packets may be answered on another interface than they came by.
            settings[f"{v4}.rp_filter"] = 0
            if namespace == self.switch:
                settings[f"{v6}.disable_ipv6"] = 1
            if namespace in self.routers:
                settings[f"{v4}.send_redirects"] = 0
            if namespace in self.quiet:
                # Never answer ARP for an address on lo, nor ask with it as the source. IPv6 needs
                # no such thing: it answers only for addresses of the interface that is asked.
                settings[f"{v4}.arp_ignore"] = 1
                settings[f"{v4}.arp_announce"] = 2
        if namespace in self.routers:
            settings["net.ipv4.ip_forward"] = 1
            settings["net.ipv6.conf.all.forwarding"] = 1
        if namespace == self.client:
            settings["net.ipv4.ip_local_port_range"] = "1024 65535"
        if namespace in self.backends:
            settings["net.core.somaxconn"] = 4096
            settings["net.ipv4.tcp_max_syn_backlog"] = 8192
        return [f"{key}={value}" for key, value in settings.items()]

    def commands(self, namespace: str) -> list[str]:
        """Lines for `ip -n NAMESPACE -batch`: addresses, routes, and everything up."""
        if namespace == self.switch:
            return self._switch_commands()
        up = [f"link set {link.interface} up" for link in self.links if link.namespace == namespace]
        return [*self._addresses(namespace), "link set lo up", *up, *self._routes(namespace)]

    def link_commands(self) -> list[str]:
        """Lines for `ip -batch` that make every veth pair, each end in its own namespace."""
        return [
            f"link add name {link.interface} mtu {self.mtu} netns {link.namespace}"
            f" type veth peer name {link.port} mtu {self.mtu} netns {self.switch}"
            for link in self.links
        ]

    def _switch_commands(self) -> list[str]:
        sides = list(dict.fromkeys(link.bridge for link in self.links))
        # Without snooping a bridge floods neighbour solicitations from the first packet on.
        bridges = [f"link add {name} type bridge mcast_snooping 0" for name in sides]
        ports = [f"link set {link.port} master {link.bridge} up" for link in self.links]
        return [*bridges, *(f"link set {name} up" for name in sides), *ports]

    def offloads(self, namespace: str) -> list[list[str]]:
        """Arguments of `ethtool -K`, one command each.

        A veth leaves checksums to be finished by a card that never comes, and XDP would see them
        half done: off. And a packet that XDP sends into a veth is lost unless the other end runs
        NAPI, which generic receive offload makes it do (drivers/net/veth.c, since Linux 5.13).
        """
        if namespace != self.switch:
            own = [link.interface for link in self.links if link.namespace == namespace]
            return [[interface, "tx", "off"] for interface in own]
        return [
            [link.port, "tx", "off", *(["gro", "on"] if link.namespace in self.nodes else [])]
            for link in self.links
        ]


@dataclass(frozen=True)
class Topology(Plan):
    """One lab: its size, and what its namespaces are called."""

    @property
    def node(self) -> str:
        """Namespace of the load balancer."""
        return f"{self.prefix}node1"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The one."""
        return (self.node,)

    @property
    def routers(self) -> tuple[str, ...]:
        """The node: mode nat needs it, and servers answer by it."""
        return self.nodes

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All of them."""
        return (self.switch, self.client, self.node, *self.backends)

    def back_addresses(self, backend: str) -> tuple[IPv4Address, IPv6Address]:
        """Where the node reaches a backend; what `lbctl backend add` is given."""
        return back(10 + self.number(backend))

    def front_addresses(self, backend: str) -> tuple[IPv4Address, IPv6Address]:
        """A backend's own addresses on the segment of the clients."""
        return front(20 + self.number(backend))

    @property
    def links(self) -> tuple[Link, ...]:
        """Every veth pair."""
        sides = [(self.client, "front"), (self.node, "front"), (self.node, "back")]
        sides += [(name, side) for name in self.backends for side in ("front", "back")]
        return tuple(self.link(name, side) for name, side in sides)

    def _addresses(self, namespace: str) -> list[str]:
        if namespace == self.client:
            more = [f"addr add {address}/24 dev front0" for address in CLIENT4[1:]]
            return [*own((CLIENT4[0], CLIENT6), "front0"), *more]
        if namespace == self.node:
            return [*own(front(1), "front0"), *own(back(1), "back0"), *vip("front0")]
        return [
            *own(self.front_addresses(namespace), "front0"),
            *own(self.back_addresses(namespace), "back0"),
            *vip("lo"),
        ]

    def _routes(self, namespace: str) -> list[str]:
        if namespace == self.client:
            v4, v6 = front(1)
            return [f"route add 203.0.113.0/24 via {v4}", f"route add 2001:db8:2::/64 via {v6}"]
        if namespace == self.node:
            return []
        node4, node6 = back(1)
        return [
            f"route add 203.0.113.0/24 dev back0 table {VIA_NODE}",
            f"route add 0.0.0.0/0 via {node4} dev back0 table {VIA_NODE}",
            f"route add 2001:db8:2::/64 dev back0 table {VIA_NODE}",
            f"route add ::/0 via {node6} dev back0 table {VIA_NODE}",
        ]

    def more_commands(self, namespace: str) -> list[tuple[str, str]]:
        """What sends a backend's answers back through the node."""
        if namespace not in self.backends:
            return []
        v4, v6 = self.back_addresses(namespace)
        line = f"rule add from {{}} table {VIA_NODE}"
        return [("-4", line.format(v4)), ("-6", line.format(v6))]

    def client_routes(self, source: IPv4Address) -> list[str]:
        """To the VIP, and to the backends' other addresses."""
        ways = (f"{VIP4}/32 dev front0", f"203.0.113.0/24 via {front(1)[0]}")
        return [f"{way} src {source}" for way in ways]
