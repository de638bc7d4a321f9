"""`with Fleet(): …`: a router, three nodes, and three members of etcd, with everything around them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import IO

from lb.lab.base import Namespaces, ip_batch, remove
from lb.lab.etcd import Etcd, Member
from lb.lab.fleet_topology import FleetTopology
from lb.lab.node import Node
from lb.lab.shell import Completed

PREFIX = "lb-"

# etcd's own default, instead of the haste of the tests on loopback: here servers, nodes and traffic
# share the processors, and an election for want of one is not what is looked for.
_PACE = ("--heartbeat-interval=100", "--election-timeout=1000")


class Fleet(Namespaces):
    """What `lbctl` does here, it does on node1, unless another node is asked."""

    def __init__(self, *, prefix: str = PREFIX, backends: int = 4, mtu: int = 1500) -> None:
        self.topology = FleetTopology(prefix, backends, mtu)
        # A folder of its own, so that what is in the way is told by the names of namespaces.
        super().__init__(self.topology, folder=f"{prefix.rstrip('-')}-fleet")
        topology = self.topology
        self.etcd = Etcd(
            self.folder / "etcd",
            options=_PACE,
            places=[(name, str(topology.control_address(name))) for name in topology.members],
            launch=self._launch_member,
        )
        self.nodes = [Node(self, name, ("front0",)) for name in topology.nodes]

    def _settle(self) -> None:
        self.etcd.start()
        for node in self.nodes:
            node.store = self.etcd.url
            node.write_config()

    def _unsettle(self) -> None:
        self.etcd.stop()  # members that are asked to end wait for each other, for seconds

    def _launch_member(self, member: Member, command: list[str], log: IO[str]) -> subprocess.Popen[str]:
        return self.popen(member.namespace, command, output=log)

    def start(self, hook: str = "auto") -> None:
        """Start lbd on all nodes, and wait until each serves."""
        launched = [(node, *node.launch_lbd(hook)) for node in self.nodes]
        for node, lbd, begin in launched:
            node.await_lbd(lbd, begin)

    def lbctl(self, *arguments: str, check: bool = True, text: str | None = None) -> Completed:
        """Run lbctl on the first node."""
        return self.nodes[0].lbctl(*arguments, check=check, text=text)

    def route_over(self, nodes: Sequence[Node]) -> None:
        """Have the router spread the VIP's packets over these nodes."""
        topology = self.topology
        for family, line in topology.ways_to_vip([node.name for node in nodes]):
            ip_batch([family, "-n", topology.router], [line])

    def add_vip(self, address: IPv4Address) -> None:
        """Have another address (a route to it is there) on all nodes and backends."""
        for name in (*self.topology.nodes, *self.topology.backends):
            ip_batch(["-n", name], [f"addr replace {address}/32 dev lo"])

    def cut_off(self, node: Node, is_off: bool = True, segment: str = "control") -> None:
        """Take a node's link to a segment (etcd's) away, at the far end: nothing tells the node, and
        nobody else; or give it back."""
        port = self.topology.link(node.name, segment).port
        change = "nomaster" if is_off else f"master {segment}"
        ip_batch(["-n", self.topology.switch], [f"link set dev {port} {change}"])

    def revive(self, node: Node) -> None:
        """Give a node that was cut off from clients its link back, and have the router know it."""
        self.cut_off(node, False, "front")
        for address in self.topology.router_addresses:
            self.run(node.name, ["ping", "-c1", "-W5", str(address)])


def tear_down(prefix: str = PREFIX) -> bool:
    """Remove a fleet that was kept, or left by a killed process. Returns whether there was one."""
    return remove(Fleet(prefix=prefix))
