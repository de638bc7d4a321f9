"""The ways to backends: interfaces that lbd is attached to, next hops, and what fits on the way."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from pyroute2 import IPRoute

from lb.core.pathmtu import PathMtus, TooBig
from lb.core.plan import Observed
from lb.datapath import lifecycle, neighbours
from lb.datapath.lifecycle import Attachment
from lb.datapath.maps import Maps
from lb.datapath.neighbours import Resolver
from lb.errors import DatapathError
from lb.model.reports import Problem
from lb.node.forwarding import Forwarding
from lb.node.happenings import NetlinkChanged, Timer
from lb.settings import Settings

log = logging.getLogger("lbd")

REFRESH_SECONDS = 15.0  # well below the kernel's gc_stale_time of 60 s
TOPOLOGY_SECONDS = 1.0  # at most one look at all routes in this time, however many change


@dataclass
class Ways:
    """What of the network decides where packets go. Methods say whether something is different now."""

    ip: IPRoute
    maps: Maps
    settings: Settings
    attachment: Attachment
    problems: tuple[Problem, ...] = ()  # an interface that was lost, and can't be had back
    _path_mtus: PathMtus = field(default_factory=PathMtus)
    _refresh: Timer = field(default_factory=lambda: Timer(REFRESH_SECONDS))
    _topology: Timer = field(default_factory=lambda: Timer(TOPOLOGY_SECONDS))
    _topology_changed: bool = False

    def __post_init__(self) -> None:
        self.resolver = Resolver(self.ip)
        self.forwarding = Forwarding(self.settings.node)
        self._refresh.is_due(time.monotonic())

    @property
    def due(self) -> float:
        """When look_if_due() has something to do next (monotonic clock)."""
        due = self._refresh.due
        return min(due, self._topology.due) if self._topology_changed else due

    @property
    def names(self) -> list[str]:
        """Of the interfaces that lbd is attached to."""
        return [link.name for link in self.attachment.interfaces]

    def observed(self) -> Observed:
        """All of it, for the planner."""
        attached = frozenset(link.index for link in self.attachment.interfaces)
        return Observed(self._path_mtus.lower(self.resolver.hops()), attached)

    def notice(self, change: NetlinkChanged) -> bool:
        """A notification. Links and routes change in bursts: those are looked at when it is due."""
        if neighbours.is_topology(change.message):
            self._topology_changed = True
            return False
        return self.resolver.notify(change.message)

    def learn(self, error: TooBig, now: float) -> bool:
        """A router says that less fits on the way to a backend than was known."""
        learned = self._path_mtus.learn(error, self.resolver.hops(), now)
        if learned is self._path_mtus:
            return False
        mtu, _ = learned.known[error.destination]
        log.info("the way to %s takes packets of %d bytes only", error.destination, mtu)
        self._path_mtus = learned
        return True

    def look_if_due(self, now: float) -> bool:
        """What changed meanwhile, and what no notification told of."""
        is_new = False
        if self._topology_changed and self._topology.is_due(now):
            self._topology_changed = False
            try:
                is_new |= self.resolver.reroute()
                is_new |= self.reattach()
            except BaseException:  # the kernel had no answer: look again
                self._topology_changed = True
                raise
        if self._refresh.is_due(now):
            is_new |= self.resolver.refresh()
            is_new |= self.forwarding.look(self.names)
            fresh = self._path_mtus.forget(now)
            is_new |= fresh is not self._path_mtus
            self._path_mtus = fresh
        return is_new

    def doubt(self) -> bool:
        """The audit: look at the next hops of some, and at what lbd is attached to, unasked."""
        changed = self.resolver.doubt()
        return self.reattach() or changed

    def reattach(self) -> bool:
        """True if an interface was attached again, or can't be, or can again. What can't be is no reason
        to hold up everything else: it is said, and tried again."""
        before, self.problems = self.problems, ()
        try:
            now = lifecycle.reattach(self.ip, self.maps, self.settings, self.attachment)
        except DatapathError as error:
            self._topology_changed = True
            problem = Problem(where=self.settings.node, message=error.message, hint=error.hint)
            self.problems = (problem,)
            if before != self.problems:
                log.error("%s; trying again every %g s", error, TOPOLOGY_SECONDS)
            return before != self.problems
        if now is self.attachment:
            return bool(before)
        log.warning("attached again to %s", ", ".join(link.name for link in now.interfaces))
        self.attachment = now
        return True
