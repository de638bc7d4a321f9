"""What is in the store, and does nothing: rollouts that can't be read, and keys that nobody reads.

What nodes apply is checked in lb/core/state.py, which knows nothing of these.
"""

from __future__ import annotations

from lb.errors import UserError
from lb.model import keys
from lb.model.reports import Problem
from lb.store import rollouts
from lb.store.base import Snapshot

_SINGLE = (keys.CONFIG, keys.ROLLOUT_LOCK)
_UNDER = (
    keys.SERVICES,
    keys.BACKENDS,
    keys.TABLES,
    keys.MEMBERS,
    keys.HISTORY,
    keys.ROLLOUTS,
    keys.NODES,
    keys.VOTES,
    keys.OBSERVED,
    keys.EVIDENCE,
    keys.ENDED_ROLLOUTS,
)


def strays(snapshot: Snapshot) -> list[Problem]:
    """In the order of their keys."""
    found = []
    for item in sorted(snapshot.items, key=lambda each: each.key):
        if item.key not in _SINGLE and not item.key.startswith(_UNDER):
            message = "no document has such a key: it is ignored"
            hint = f"docs/reference/etcd.md lists the keys; etcdctl del {item.key} removes it"
            found.append(Problem(where=item.key, message=message, hint=hint))
        elif item.key.startswith(keys.ROLLOUTS):
            try:
                rollouts.parse(item)
            except UserError as error:
                message = f"{error.message.removeprefix(f'{item.key}: ')}; it is ignored"
                found.append(Problem(where=item.key, message=message, hint=error.hint))
    return found
