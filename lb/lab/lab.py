"""`with Lab(): …`: one node, with everything around it."""

from __future__ import annotations

import sys

from lb.lab.base import Namespaces, remove
from lb.lab.node import Node, program
from lb.lab.shell import environment, in_namespace, run, wait_until
from lb.lab.topology import VIP4, VIP6, Topology

UDP_PORT = 9000


class Lab(Namespaces, Node):
    """A client, a node and backends with real nginx. What a node does, the lab does."""

    def __init__(self, *, prefix: str = "lb-", backends: int = 4, mtu: int = 1500) -> None:
        self.topology = Topology(prefix, backends, mtu)
        Namespaces.__init__(self, self.topology)
        Node.__init__(self, self, self.topology.node, ("front0", "back0"))
        self._udp_ports: set[int] = set()
        self._has_open_tunnels = False

    def _settle(self) -> None:
        self.write_config()

    def open_tunnels(self, *, together: bool = False) -> None:
        """Let the backends take modes ipip and gue, without tunnel devices. `together`: they share one
        program and its counters, so that it is compiled once."""
        if self._has_open_tunnels:
            return
        self._has_open_tunnels = True
        vips = [option for vip in (VIP4, VIP6) for option in ("--vip", str(vip))]
        for name in self.topology.backends:
            owner = self.topology.backends[0] if together else name
            if owner == name:
                self.bpf_mount(name)
            pins = ["--pin-dir", str(self.folder / owner / "bpf" / "lb")]
            command = [*program("lbctl"), "backend-node", "attach", "--interface", "back0"]
            run(in_namespace(name, [*command, *vips, *pins]), env=environment(self.lb_environment))

    def start_udp_servers(self, port: int = UDP_PORT) -> None:
        """Have a server on each backend that answers datagrams with the backend's name."""
        if port in self._udp_ports:
            return
        self._udp_ports.add(port)
        topology = self.topology
        for name in topology.backends:
            addresses = [VIP4, VIP6, *topology.back_addresses(name)]
            command = [sys.executable, "-m", "lb.lab.udp_name", name, str(port)]
            self.popen(name, [*command, *map(str, addresses)])
        for name in topology.backends:
            wait_until(
                f"the UDP server of {name}",
                lambda n=name: self._udp_sockets(n, port) == 4,  # type: ignore[misc]
            )

    def _udp_sockets(self, name: str, port: int) -> int:
        listing = self.run(name, ["ss", "-Huln", "sport", "=", f":{port}"]).stdout
        return len(listing.splitlines())


def tear_down(prefix: str = "lb-") -> bool:
    """Remove a lab that was kept, or left by a killed process. Returns whether there was one."""
    return remove(Lab(prefix=prefix))
