"""The thread that follows the store, and tells lbd's loop of it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from lb.core.quorum import Votes, reported
from lb.errors import RevisionCompacted, StoreUnavailable
from lb.model import keys
from lb.model.objects import NodeStatus
from lb.node.happenings import HealthHeard, StoreChanged
from lb.store.base import Store, iterate

log = logging.getLogger("lbd")

RETRY_SECONDS = 1.0


class Follower:
    """Says when something other than a report changed, and when the store has to be read: because
    changes were lost, or because it was away. Of reports only what other nodes' checks found is news."""

    def __init__(
        self, store: Store, tell: Callable[[StoreChanged | HealthHeard], None], node: str
    ) -> None:
        self.in_touch = True  # as far as this thread knows: then there is no use in asking the store
        self._store = store
        self._tell = tell
        self._node = node
        self._votes: dict[str, Votes | None] = {}  # as they were told
        self._lost_at = math.inf

    def away(self, now: float) -> float:
        """For how many seconds nothing was heard of the store (monotonic clock)."""
        return 0.0 if self.in_touch else now - self._lost_at

    def start(self, after: int) -> None:
        """Begin after a revision that was read; 0 = none was."""
        threading.Thread(target=self._run, args=(after,), name="store", daemon=True).start()

    def _run(self, after: int) -> None:
        while True:
            try:
                if not after:  # what is newer than this read is watched, what is older is read
                    after = self._store.read(keys.ROOT).revision
                    self.in_touch = True
                    self._votes = {}
                    self._tell(StoreChanged())
                with self._store.watch(keys.ROOT, after=after) as watch:
                    for batch in iterate(watch):
                        after = batch.revision
                        if any(not event.key.startswith(keys.BESIDE) for event in batch.events):
                            self._tell(StoreChanged(batch))
                        for event in batch.events:
                            if event.key.startswith(keys.NODES):
                                self._hear(event.key.removeprefix(keys.NODES), event.value)
                    return
            except RevisionCompacted as error:
                log.warning("store: %s; reading it anew", error)
            except StoreUnavailable as error:
                if self.in_touch:  # once, not with each try
                    log.error("store: %s; watching again every %g s", error, RETRY_SECONDS)
                    self._lost_at = time.monotonic()
                self.in_touch = False
                time.sleep(RETRY_SECONDS)
            after = 0

    def _hear(self, node: str, text: str | None) -> None:
        """Most reports say nothing new of health: those must cost the loop nothing."""
        if node == self._node:
            return
        try:
            votes = None if text is None else reported(NodeStatus.model_validate_json(text))
        except ValueError:  # quarantined: what it said before stays in force
            return
        if node not in self._votes or self._votes[node] != votes:
            self._votes[node] = votes
            self._tell(HealthHeard(node, votes))
