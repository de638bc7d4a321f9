"""The service `web` that demo, `make lab` and `make fleet` begin with."""

from __future__ import annotations

from collections.abc import Callable

from lb.lab.fleet import Fleet
from lb.lab.lab import Lab
from lb.lab.shell import wait_until
from lb.lab.topology import VIP4
from lb.model.objects import TUNNELS

SERVICE = "web"
WEIGHTS = (50, 30, 20, 0)

Say = Callable[[str], None]


def lbctl(lab: Lab | Fleet, say: Say, *arguments: str) -> str:
    """Run lbctl, and say so in words that can be copied."""
    say("$ lbctl " + " ".join(arguments))
    return lab.lbctl(*arguments).stdout


def weights(lab: Lab | Fleet) -> dict[str, int]:
    """Each backend's first weight; backends beyond the fourth get what the fourth has."""
    names = lab.topology.backends
    padded = (*WEIGHTS, *(WEIGHTS[-1:] * len(names)))
    return dict(zip(names, padded, strict=False))


def create_web(lab: Lab, mode: str, say: Say) -> dict[str, int]:
    """Create the service with its backends, and wait until it answers; returns the weights."""
    if mode in TUNNELS:
        say("the backends get a program that opens the tunnels: lbctl backend-node attach")
        lab.open_tunnels()
    return add_web(lab, mode, say)


def add_web(lab: Lab | Fleet, mode: str, say: Say) -> dict[str, int]:
    """As create_web, where nothing is to be done to the backends."""
    asked = weights(lab)
    lbctl(lab, say, "service", "add", SERVICE, "--vip", f"{VIP4}:80", "--protocol", "tcp",
          "--mode", mode)  # fmt: skip
    for name, weight in asked.items():
        address, _ = lab.topology.back_addresses(name)
        lbctl(lab, say, "backend", "add", SERVICE, name, str(address), "--weight", str(weight),
              "--wait")  # fmt: skip
    wait_until("an answer from the VIP", lambda: lab.answer(VIP4) in asked)
    return asked
