"""Services whose servers are checked, and nodes that do not reach them: of the tests of health."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import create, service
from slots import Slots

from lb.lab.base import Namespaces
from lb.lab.lab import Lab
from lb.lab.topology import VIP4, Address

INTERVAL, FALL, RISE, TIMEOUT = 0.5, 2, 2, 0.3
HEALTH = {
    "check": {"kind": "http"},
    "interval": INTERVAL,
    "fall": FALL,
    "rise": RISE,
    "timeout": TIMEOUT,
}


def checked(lab: Lab, **health: Any) -> dict[str, Any]:
    """The service `web` with such checks, as an entry of a manifest. `health`: what is different."""
    return service(lab, "web", VIP4, health={**HEALTH, **health})


def serve(lab: Lab, entry: dict[str, Any], config: Path | None = None) -> Slots:
    """Create a service, and wait until all of its servers have been found healthy. `config`: of the
    node whose slots are returned, if it isn't the lab's own."""
    create(lab, entry)
    slots = Slots(lab, entry["name"], config)
    slots.until(lambda held: all(held[each["name"]] for each in entry["backends"]))
    return slots


@contextmanager
def out_of_reach(place: Namespaces, namespace: str, *addresses: Address) -> Iterator[None]:
    """Checks that this namespace makes of these servers are refused on their way. What its programs
    forward doesn't come by there."""
    rules = (
        "add table inet cut; add chain inet cut out { type filter hook output priority 0; };"
        f" add rule inet cut out ip daddr {{ {', '.join(map(str, addresses))} }} tcp dport 80"
        " reject with tcp reset"
    )
    place.run(namespace, ["nft", rules])
    try:
        yield
    finally:
        place.run(namespace, ["nft", "delete table inet cut"])
