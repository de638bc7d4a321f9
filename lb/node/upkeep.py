"""What the kernel remembers of flows is looked through now and then, and what is of no use forgotten."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from lb.core.state import BackendKey
from lb.datapath.kernel import Kernel
from lb.node.happenings import Timer
from lb.settings import Timeouts

log = logging.getLogger("lbd")

EXPIRY_SECONDS = 2.0  # between two looks at which flows in mode fullnat are over
SWEEP_SECONDS = 10.0  # between two looks at which flows still need to be remembered


@dataclass
class Upkeep:
    """The looks at flows."""

    kernel: Kernel
    timeouts: Timeouts
    _sweep: Timer = field(default_factory=lambda: Timer(SWEEP_SECONDS))
    _expiry: Timer = field(default_factory=lambda: Timer(EXPIRY_SECONDS))

    @property
    def due(self) -> float:
        """When look_if_due() has something to do next (monotonic clock)."""
        due = float("inf")
        if self.kernel.remembers:
            due = min(due, self._sweep.due)
        if self.kernel.translates:
            due = min(due, self._expiry.due)
        return due

    def look_if_due(self, now: float) -> Mapping[BackendKey, int] | None:
        """Calm slots, drop what is idle, end what is over. Returns how many connections each backend in
        mode fullnat has, if that was counted."""
        if self.kernel.remembers and self._sweep.is_due(now):
            if self.kernel.is_stirred and (quiet := self.kernel.calm()):
                log.info("quiet slots=%d", quiet)
            self.kernel.forget_idle(self.timeouts)
        if self.kernel.translates and self._expiry.is_due(now):
            return self.kernel.expire(self.timeouts)
        return None
