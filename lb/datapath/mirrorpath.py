"""Mirrored traffic: two small programs that copy what clients send, and drop what answers a copy.

tc/mirror.h says how. They are attached to the balancer's interfaces while some service asks for copies.
A node whose balancer is not at tc can't make any, as XDP takes packets before tc sees them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from lb.datapath import beside
from lb.datapath.attach import Interface
from lb.datapath.maps import Maps
from lb.errors import DatapathError
from lb.model import keys
from lb.model.reports import Problem
from lb.settings import Hook

# How long they stay when nobody asks for copies any more: servers that got some still answer, and what
# nobody drops would be translated and reach the clients.
LINGER_SECONDS = 60.0


@dataclass
class MirrorPath:
    """The programs, and where they are attached. `problems`: why nothing is copied."""

    ip: IPRoute
    maps: Maps
    pin_dir: Path
    name: str  # of the filters: they are ours
    problems: tuple[Problem, ...] = ()
    _attached: tuple[Interface, ...] = ()
    _is_sure: bool = False
    _asked: float = float("-inf")  # when somebody last did (monotonic clock)

    def update(self, services: Iterable[str], hook: str, interfaces: Sequence[Interface]) -> None:
        """Have these services' traffic copied as the maps say. What can't be done is in `problems`."""
        asking, now = sorted(services), time.monotonic()
        self.problems = ()
        if asking and hook != Hook.TC:
            self.problems = tuple(_wrong_hook(service, hook) for service in asking)
            asking = []
            self._asked = float("-inf")
        if asking:
            self._asked = now
        if not asking and self._attached and now < self._asked + LINGER_SECONDS:
            return
        places = tuple(interfaces) if asking else ()
        if self._is_sure and places == self._attached:
            return
        try:
            self._attach(interfaces, is_used=bool(asking))
        except DatapathError as error:
            self.problems = (
                Problem(
                    where="mirror", message=f"nothing is mirrored: {error.message}", hint=error.hint
                ),
            )
            return
        self._attached, self._is_sure = places, True

    def doubt(self) -> None:
        """Look at the kernel with the next update: somebody may have changed it by hand."""
        self._is_sure = False

    def _attach(self, interfaces: Sequence[Interface], *, is_used: bool) -> None:
        if not is_used:
            for interface in interfaces:
                beside.MIRRORS.release(self.ip, interface, self.name)
            return
        if not any(beside.MIRRORS.is_attached(self.ip, each, self.name) for each in interfaces):
            # Nobody has looked after what is left from last time: a connection that is new on an old
            # port pair would be taken for a copy.
            for key in list(self.maps.mirrored.keys()):
                self.maps.mirrored.delete(key)
        beside.MIRRORS.attach(self.ip, interfaces, self.maps, self.pin_dir, self.name)


def _wrong_hook(service: str, hook: str) -> Problem:
    return Problem(
        where=keys.service(service),
        message=f"nothing is mirrored on this node: its hook is {hook}, and copies are made at tc",
        hint="lbd --hook tc, or hook in lb.toml; or: lbctl service set " + service + " --no-mirror",
        warning=True,
    )
