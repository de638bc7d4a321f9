"""What lbd's loop is told: messages from its threads and from signals, and the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lb.core.pathmtu import TooBig
from lb.core.quorum import Votes
from lb.probe.scheduler import Probed
from lb.store.base import Batch


@dataclass(frozen=True)
class StoreChanged:
    """The desired state has changed so; None: somehow, so it has to be read."""

    batch: Batch | None = None


@dataclass(frozen=True)
class HealthHeard:
    """Another node's checks found something new; none: the node is gone."""

    node: str
    votes: Votes | None


@dataclass(frozen=True)
class NetlinkChanged:
    """A notification of the kernel."""

    message: Mapping[str, Any]


@dataclass(frozen=True)
class PathTooNarrow:
    """A router can't pass on what our tunnels send."""

    error: TooBig


@dataclass(frozen=True)
class Stop:
    """A signal asks lbd to end."""


@dataclass(frozen=True)
class Audit:
    """A signal asks lbd to compare with the kernel now, not at the next turn."""


@dataclass(frozen=True)
class ChecksDone:
    """Health checks came to an end."""

    results: Sequence[Probed]


@dataclass(frozen=True)
class RolloutsChanged:
    """These services have a rollout under way."""

    services: frozenset[str]


@dataclass(frozen=True)
class Crashed:
    """A thread that lbd can't do without has ended: a bug."""

    error: BaseException


Happening = (
    StoreChanged
    | HealthHeard
    | NetlinkChanged
    | PathTooNarrow
    | ChecksDone
    | RolloutsChanged
    | Crashed
    | Stop
    | Audit
)


@dataclass
class Timer:
    """Says every `period` seconds (monotonic clock) that it is time."""

    period: float
    due: float = 0.0

    def is_due(self, now: float) -> bool:
        """True once per period."""
        if now < self.due:
            return False
        self.due = now + self.period
        return True
