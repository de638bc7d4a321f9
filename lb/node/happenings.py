"""What lbd's loop is told: messages from its threads and from signals, and the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


JUMP_SECONDS = 1.0  # a clock that is slewed to the right time never gets that far between two looks
ONE_MOMENT = 0.1


@dataclass
class WallClock:
    """Notices that somebody set the clock on the wall: it then differs from the monotonic one."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    _ahead: float = field(init=False)

    def __post_init__(self) -> None:
        self._ahead = self._look()

    def jump(self) -> float:
        """Seconds that it was set ahead since the last look, negative if back; 0 if it was not."""
        before, self._ahead = self._ahead, self._look()
        found = self._ahead - before
        return found if abs(found) >= JUMP_SECONDS else 0.0

    def now(self) -> float:
        """The time on the wall, by the last look: whatever is set since then, it goes on evenly."""
        return self._ahead + self.steady()

    def _look(self) -> float:
        while True:
            begin = self.steady()
            wall = self.wall()
            if self.steady() - begin < ONE_MOMENT:  # else we were stopped in between, and know nothing
                return wall - begin
