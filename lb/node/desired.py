"""The desired state as a node follows it: read whole, then kept up to date with what a watch tells."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lb.core.state import DesiredState, advance
from lb.errors import StoreUnavailable
from lb.model import keys
from lb.node.last_known import LastKnown
from lb.store.base import Batch, Store

log = logging.getLogger("lbd")

RETRY_SECONDS = 1.0  # after what failed


@dataclass
class Desired:
    """`tell` hears of each state that was read anew: what nodes report isn't followed otherwise."""

    store: Store
    last_known: LastKnown
    tell: Callable[[DesiredState], None]
    state: DesiredState = field(default_factory=DesiredState)
    in_touch: bool = True  # the last read succeeded
    due: float = math.inf  # when to read again, because something may be missing (monotonic clock)

    def read(self) -> bool:
        """Read it; False if that fails: the last one then stays in force."""
        try:
            snapshot = self.store.read(keys.EVERYTHING)
        except StoreUnavailable as error:
            if self.in_touch:  # once, not with each audit
                log.error("store: %s; going on with revision %d", error, self.state.revision)
            self.in_touch, self.due = False, time.monotonic() + RETRY_SECONDS
            return False
        if not self.in_touch:
            log.warning("store: there again")
        self.in_touch, self.due = True, math.inf
        state = self.last_known.follow(snapshot, self.state)
        if state is not None:
            self.state = state
            self.tell(state)
        return True

    def doubt(self) -> None:
        """What a watch delivered may not have been taken in: read it with the next batch, or soon, not
        at once: what failed may fail again."""
        self.due = min(self.due, time.monotonic() + RETRY_SECONDS)

    def take_in(self, batch: Batch) -> bool:
        """Bring it up to date with what a watch delivered, which is every change; those that a read has
        brought already are left out. True if it is another one."""
        # Of what was delivered something may be missing: later changes can't go on top of that.
        if self.last_known.held or self.due < math.inf:
            return self.read()
        news = [
            (event.key, event.value, event.revision)
            for event in batch.events
            if event.revision > self.state.revision
        ]
        if not news:
            return False
        state = advance(self.state, batch.revision, news)
        if state is None:
            return self.read()
        self.state = state
        return True
