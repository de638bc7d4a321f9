"""Drains that come to their end: lbd writes `down` into the store, for all nodes."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from lb.core.deadlines import next_deadline, overdue
from lb.core.state import DesiredState
from lb.errors import ConflictError, StoreUnavailable
from lb.model import keys
from lb.store.base import Compare, Put, Store

log = logging.getLogger("lbd")

RETRY_SECONDS = 1.0


@dataclass
class Drains:
    """Knows when the next one ends, without looking at every backend each time."""

    store: Store
    _known: tuple[DesiredState | None, float] = (None, math.inf)

    def due(self, state: DesiredState) -> float:
        """When end() has something to do, in Unix seconds."""
        if self._known[0] is not state:
            self._known = state, next_deadline(state)
        return self._known[1]

    def end(self, state: DesiredState, now: float) -> None:
        """Write those that are over; they come back as a new state. Raises StoreUnavailable."""
        for backend in overdue(state, now):
            key = keys.backend(backend.service, backend.name)
            put = Put(key, backend.model_dump_json())
            try:
                self.store.commit([put], [Compare(key, state.versions.get(key, 0))])
                log.info("drained service=%s backend=%s: now down", backend.service, backend.name)
            except ConflictError:
                pass  # another node was faster, or a person, who may want something else
            except StoreUnavailable:
                self._known = state, now + RETRY_SECONDS
                raise
        self._known = state, math.inf
