"""Drains that have an end: who is due to become `down`, and when. Pure.

A backend whose stored document is not obeyed goes on draining: it would be overwritten with the end of a
drain that somebody may have called off.
"""

from __future__ import annotations

import math

from lb.core.state import DesiredState
from lb.model import keys
from lb.model.objects import Admin, Backend


def next_deadline(state: DesiredState) -> float:
    """Unix seconds; inf if nothing is to come."""
    return min((_deadline(state, each) for each in state.backends.values()), default=math.inf)


def overdue(state: DesiredState, now: float) -> list[Backend]:
    """The backends as they should be from now on, where that is different."""
    return [
        each.model_copy(update={"admin": Admin.DOWN, "drain_until": None})
        for each in state.backends.values()
        if _deadline(state, each) <= now
    ]


def _deadline(state: DesiredState, backend: Backend) -> float:
    if backend.admin is not Admin.DRAIN or backend.drain_until is None:
        return math.inf
    if keys.backend(backend.service, backend.name) in state.quarantined:
        # What is stored is newer, and may say something else: a node that reads it knows.
        return math.inf
    return backend.drain_until
