"""Drains that come to their end: lbd writes `down` into the store, for all nodes."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from lb.core.deadlines import next_deadline, overdue
from lb.core.state import DesiredState
from lb.errors import ConflictError, LbError
from lb.model import keys
from lb.model.reports import Problem
from lb.store.base import Compare, Put, Store

log = logging.getLogger("lbd")

RETRY_SECONDS = 1.0


@dataclass
class Drains:
    """Knows when the next one ends, without looking at every backend each time."""

    store: Store
    problems: tuple[Problem, ...] = ()
    _known: tuple[DesiredState | None, float] = (None, math.inf)

    def due(self, state: DesiredState) -> float:
        """When end() has something to do, in Unix seconds."""
        if self._known[0] is not state:
            self._known = state, next_deadline(state)
        return self._known[1]

    def end(self, state: DesiredState, now: float) -> bool:
        """Write those that are over; they come back as a new state. What can't be written is said and
        tried again, and holds up nothing else. True if there is something else to say."""
        before, self.problems = self.problems, ()
        self._known = state, math.inf
        for backend in overdue(state, now):
            key = keys.backend(backend.service, backend.name)
            put = Put(key, backend.model_dump_json())
            try:
                self.store.commit([put], [Compare(key, state.versions.get(key, 0))])
                log.info("drained service=%s backend=%s: now down", backend.service, backend.name)
            except ConflictError:
                pass  # another node was faster, or a person, who may want something else
            except LbError as error:
                self._known = state, now + RETRY_SECONDS
                words = f"its drain is over, but that can't be written: {error.message}"
                self.problems = (Problem(where=key, message=words, hint=error.hint),)
                if self.problems != before:
                    log.error("%s: %s", key, words)
                break
        return self.problems != before
