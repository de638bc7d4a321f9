"""The fleet's plan: as topology.py, with a router before three nodes, and etcd on a segment of its own.

    clients   203.0.113.0/25, 2001:db8:2::/64     client .10 to .13, router .1
    front     198.51.100.0/24, 2001:db8:1::/64    router .254, nodeN .N, backendN .(20+N)
    control   203.0.113.128/25                    nodeN .(128+N), etcdN .(138+N)

The router has a route to the VIP (198.51.100.100, 2001:db8:1::100) over all nodes (ECMP, by addresses
and ports). Nodes and backends have it on lo. A backend answers by the router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from lb.lab.topology import VIP4, VIP6, Link, Plan, back, front, own, vip

NODES = 3
MEMBERS = 3

_ROUTER = 254

OTHER_VIP4 = VIP4 + 1  # the lab has it nowhere; see Fleet.add_vip
_CLIENTS = (10, 11, 12, 13)

# The router leaves a node that is silent (Linux 4.7: fib_multipath_use_neigh), and finds that out in a
# second and a half: an address is sure for 0.25 to 0.75 s, then it is asked for three times. With IPv6 a
# Linux router has no such thing, and goes on sending to who is gone. Others have BFD, or a node's BGP.
_NEXT_HOP_CHECKS = "dev front0 base_reachable 500 delay_probe 0 retrans 200"  # ms


@dataclass(frozen=True)
class FleetTopology(Plan):
    """A fleet in namespaces."""

    @property
    def router(self) -> str:
        """Namespace of the router."""
        return f"{self.prefix}router"

    @property
    def nodes(self) -> tuple[str, ...]:
        """Namespaces of the load balancers."""
        return tuple(f"{self.prefix}node{n}" for n in range(1, NODES + 1))

    @property
    def members(self) -> tuple[str, ...]:
        """Namespaces of the members of the etcd cluster."""
        return tuple(f"{self.prefix}etcd{n}" for n in range(1, MEMBERS + 1))

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All of them."""
        return (self.switch, self.client, self.router, *self.nodes, *self.backends, *self.members)

    @property
    def routers(self) -> tuple[str, ...]:
        """The one, and the nodes: the kernel's FIB gives modes nat and fullnat the way back to a client
        only where it forwards."""
        return (self.router, *self.nodes)

    @property
    def quiet(self) -> tuple[str, ...]:
        """Nodes have the VIP on lo, too: it is the route that brings it to them."""
        return (*self.nodes, *self.backends)

    @property
    def links(self) -> tuple[Link, ...]:
        """Every veth pair."""
        return (
            self.link(self.client, "clients"),
            self.link(self.router, "clients"),
            self.link(self.router, "front"),
            *(self.link(name, side) for name in self.nodes for side in ("front", "control")),
            *(self.link(name, "front") for name in self.backends),
            *(self.link(name, "control") for name in self.members),
        )

    @property
    def client_addresses(self) -> tuple[IPv4Address, ...]:
        """Of the client, by IPv4."""
        return tuple(back(host)[0] for host in _CLIENTS)

    def back_addresses(self, backend: str) -> tuple[IPv4Address, IPv6Address]:
        """Where a node reaches a backend."""
        return front(20 + self.number(backend))

    def node_addresses(self, node: str) -> tuple[IPv4Address, IPv6Address]:
        """Where the router reaches a node."""
        return front(self.nodes.index(node) + 1)

    @property
    def router_addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """Where nodes and backends reach the router."""
        return front(_ROUTER)

    def control_address(self, namespace: str) -> IPv4Address:
        """Of a node or a member of etcd, on the segment between them."""
        if namespace in self.nodes:
            return IPv4Address(f"203.0.113.{129 + self.nodes.index(namespace)}")
        return IPv4Address(f"203.0.113.{139 + self.members.index(namespace)}")

    def client_routes(self, source: IPv4Address) -> list[str]:
        """To all that is behind the router."""
        return [f"198.51.100.0/24 via {back(1)[0]} src {source}"]

    def sysctls(self, namespace: str) -> list[str]:
        """As everywhere; and the router looks at ports, too, so that it spreads one client's flows, and
        at whether its next hops are there."""
        more = [f"net.ipv{version}.fib_multipath_hash_policy=1" for version in (4, 6)]
        more += ["net.ipv4.fib_multipath_use_neigh=1"]
        return [*super().sysctls(namespace), *(more if namespace == self.router else [])]

    def more_commands(self, namespace: str) -> list[tuple[str, str]]:
        """The router's ways to the VIP, and how soon it knows that one is closed."""
        if namespace != self.router:
            return []
        caches = (("-4", "arp_cache"), ("-6", "ndisc_cache"))
        checks = [(version, f"ntable change name {name} {_NEXT_HOP_CHECKS}") for version, name in caches]
        return [*checks, *self.ways_to_vip(self.nodes)]

    def ways_to_vip(self, nodes: Sequence[str]) -> list[tuple[str, str]]:
        """Lines for the router: the VIP is reached by these nodes."""
        hops = [self.node_addresses(node) for node in nodes]
        ways4, ways6 = ([f"nexthop via {each[index]}" for each in hops] for index in (0, 1))
        return [
            *(("-4", " ".join([f"route replace {each}/32", *ways4])) for each in (VIP4, OTHER_VIP4)),
            ("-6", " ".join([f"route replace {VIP6}/128", *ways6])),
        ]

    def _addresses(self, namespace: str) -> list[str]:
        if namespace == self.client:
            more = [f"addr add {each}/25 dev clients0" for each in self.client_addresses[1:]]
            return [*own(back(_CLIENTS[0]), "clients0", 25), *more]
        if namespace == self.router:
            return [*own(back(1), "clients0", 25), *own(front(_ROUTER), "front0")]
        if namespace in self.backends:
            return [*own(self.back_addresses(namespace), "front0"), *vip("lo")]
        control = f"addr add {self.control_address(namespace)}/25 dev control0"
        if namespace in self.members:
            return [control]
        return [control, *own(self.node_addresses(namespace), "front0"), *vip("lo")]

    def _routes(self, namespace: str) -> list[str]:
        ways: dict[str, tuple[IPv4Address, IPv6Address]] = {self.client: back(1)}
        ways |= dict.fromkeys((*self.nodes, *self.backends), front(_ROUTER))
        return [f"route add default via {gateway}" for gateway in ways.get(namespace, ())]
