"""Many clients of one service with affinity `client`: where each of them gets to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from helpers import create, service

from lb.cli.session import state_of
from lb.core import flowhash
from lb.core.plan import seed_of
from lb.lab.lab import Lab
from lb.lab.topology import VIP4
from lb.model import keys
from lb.model.objects import Affinity
from lb.store.opening import open_store

CLIENTS = [IPv4Address("198.51.100.140") + n for n in range(100)]
STEPS = [5, 25, 50, 100]
_SCRIPT = Path(__file__).with_name("clients.py")


@dataclass
class Sticky:
    """A service `web` in which the first two backends are stable, the others canary."""

    lab: Lab

    vip = VIP4

    @property
    def canary(self) -> tuple[str, ...]:
        return self.lab.topology.backends[2:]

    def split(self, canary: float) -> None:
        """Have this split, in force in the kernel."""
        entry = service(self.lab, "web", VIP4, affinity="client")
        for backend in entry["backends"]:
            backend["pool"] = "canary" if backend["name"] in self.canary else "stable"
        entry["split"] = {"stable": 100 - canary, "canary": canary}
        create(self.lab, entry)

    def ask(self) -> dict[IPv4Address, str]:
        """Who answers each client, on a new connection."""
        sources = [str(client) for client in CLIENTS]
        argv = [sys.executable, str(_SCRIPT), str(VIP4), "80", *sources]
        answers: list[str] = json.loads(self.lab.run("client", argv).stdout)
        return dict(zip(CLIENTS, answers, strict=True))

    def slots(self, *options: str) -> dict[str, Any]:
        """What `lbctl service slots` says."""
        data: dict[str, Any] = json.loads(
            self.lab.lbctl("service", "slots", "web", *options, "-o", "json").stdout
        )
        return data

    def slot_of(self, client: IPv4Address) -> int:
        """Where the flow hash puts a client."""
        with open_store(str(self.lab.node_folder / "store.db")) as store:
            config = state_of(store.read(keys.ROOT)).config
        assert config is not None
        return flowhash.slot(seed_of(config.seed, "web"), client, 0, 80, Affinity.CLIENT)

    def grow(self) -> tuple[int, int]:
        """The canary grows step by step: (clients that were on it and went back, clients on it at the
        last step)."""
        back = 0
        on_it: set[IPv4Address] = set()
        for step in STEPS:
            self.split(step)
            now = {client for client, name in self.ask().items() if name in self.canary}
            back += len(on_it - now)
            on_it |= now
        return back, len(on_it)

    def misplaced(self) -> int:
        """Slots that the kernel holds otherwise than planned, and clients that get elsewhere."""
        held, planned = self.slots()["slots"], self.slots("--planned")["slots"]
        answers = self.ask()
        return sum(a != b for a, b in zip(held, planned, strict=True)) + sum(
            held[self.slot_of(client)] != name for client, name in answers.items()
        )


@contextmanager
def many_clients(lab: Lab) -> Iterator[Sticky]:
    """The lab's client has some more addresses meanwhile."""
    route = json.loads(lab.run("client", ["ip", "-json", "route", "get", str(VIP4)]).stdout)
    device = route[0]["dev"]
    for client in CLIENTS:
        lab.run("client", ["ip", "address", "add", f"{client}/24", "dev", device])
    try:
        yield Sticky(lab)
    finally:
        for client in CLIENTS:
            lab.run("client", ["ip", "address", "del", f"{client}/24", "dev", device])
