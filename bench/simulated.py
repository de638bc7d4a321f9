"""Nodes without kernels: `python -m bench.simulated STORE FOLDER PROCESS COUNT`, until the input ends.

Each is lbd's loop (lb/node/daemon.py) with its store, planner, tables, copy and report; what it would
put into the kernel is only noted. Prints, at the end, when which table (its digest) came to be planned,
as JSON (by CLOCK_MONOTONIC, which all processes share).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

from pyroute2 import IPRoute

from bench.control import fleet
from lb.core.nexthop import NextHop
from lb.core.plan import Wanted
from lb.core.state import DesiredState
from lb.datapath.attach import Interface
from lb.datapath.kernel import Kernel
from lb.datapath.lifecycle import Attachment
from lb.datapath.maps import Maps
from lb.datapath.neighbours import Resolver
from lb.model.objects import Address
from lb.node.daemon import Daemon
from lb.node.happenings import Stop
from lb.node.main import keep_memory
from lb.node.ways import Ways
from lb.settings import Hook, Limits, Settings
from lb.store.opening import open_store

SERVICE, BACKEND = "service-0", "b3"
_HOP = NextHop(1, bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2]))
_LIMITS = Limits(services=2, vips=2, backends=16, conntrack=1024, embryonic=1024, translations=1024)
_LINK = Interface("sim0", _HOP.ifindex, _HOP.source_mac, 1500, True, False, 0, False, "")
_ATTACHED = Attachment((_LINK,), Hook.XDP, "simulated")

Applied = list[tuple[str, float]]


def state_of_simulation() -> DesiredState:
    """What the simulated nodes serve at first."""
    return fleet(1)[0]


class NoKernel(Kernel):
    """Notes what it is given."""

    def __init__(self, maps: Maps, applied: Applied) -> None:
        super().__init__(maps)
        self._applied = applied
        self._digest = ""

    def adopt(self) -> None:
        """There is nothing."""

    def apply(self, wanted: Wanted, keep: Collection[str] = ()) -> int:
        """Notes the table, when it is another one."""
        del keep
        digest = wanted.services[SERVICE].table.digest
        if digest == self._digest:
            return 0
        self._digest = digest
        self._applied.append((digest, time.monotonic()))
        return 1

    @property
    def remembers(self) -> bool:
        """No flows."""
        return False

    @property
    def translates(self) -> bool:
        """No flows."""
        return False


class NoNetlink(Resolver):
    """Every address has the same next hop."""

    def watch(self, wanted: frozenset[Address]) -> None:
        """See Resolver."""
        self._watched = wanted

    def pending(self) -> bool:
        """See Resolver."""
        return False

    def refresh(self) -> bool:
        """See Resolver."""
        return False

    def hops(self) -> dict[Address, NextHop]:
        """See Resolver."""
        return dict.fromkeys(self._watched, _HOP)


class NoNetwork(Ways):
    """Nothing is attached, and nothing changes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resolver = NoNetlink(self.ip)

    def look_if_due(self, now: float) -> bool:
        """See Ways."""
        self._refresh.is_due(now)
        return False

    def reattach(self) -> bool:
        """See Ways."""
        return False


class Node(Daemon):
    """lbd's loop, without what it has to do with the kernel."""

    def simulate(self, applied: Applied) -> None:
        """As Daemon.run()."""
        self.kernel = self.upkeep.kernel = NoKernel(self.maps, applied)
        self.ways = NoNetwork(self.ip, self.maps, self.settings, self.ways.attachment)
        self.desired.read()
        self.follower.start(self.state.revision)
        self._audit.is_due(time.monotonic())
        self._guarded([], stale=True)
        while True:
            happened = self._collect()
            if any(isinstance(each, Stop) for each in happened):
                return
            self._guarded(happened)


def main() -> None:
    """See above."""
    url, folder, process, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    nodes: list[tuple[Node, threading.Thread]] = []
    applied: list[Applied] = []
    keep_memory()
    maps = Maps.create(_LIMITS)  # whose sizes are part of the report
    with IPRoute() as ip:
        for number in range(count):
            name = f"p{process}n{number}"
            settings = Settings(store=url, node=name, last_known=folder / f"{name}.json")
            node = Node(settings, open_store(url), ip, maps, _ATTACHED)
            own: Applied = []
            thread = threading.Thread(target=node.simulate, args=(own,), daemon=True)
            thread.start()
            nodes.append((node, thread))
            applied.append(own)
        sys.stdin.read()
        for node, thread in nodes:
            node.inbox.put(Stop())
            thread.join(10)
    print(json.dumps([each for own in applied for each in own]), flush=True)


if __name__ == "__main__":
    main()
