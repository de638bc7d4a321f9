"""The threads that follow the store, and tell lbd's loop of it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from lb.core.quorum import Votes, cast
from lb.errors import RevisionCompacted, StoreUnavailable
from lb.model import keys
from lb.model.health import Ballot
from lb.node.happenings import HealthHeard, StoreChanged
from lb.store.base import Store, iterate

log = logging.getLogger("lbd")

RETRY_SECONDS = 1.0


class Follower:
    """Says when something changed that is to be applied, and when the store has to be read: because
    changes were lost, or because it was away. Of what other nodes report only the votes of their checks
    are news: that is a watch of its own, of few and small documents."""

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
        threading.Thread(target=self._run_votes, name="votes", daemon=True).start()

    def _run(self, after: int) -> None:
        while True:
            try:
                if not after:  # what is newer than this read is watched, what is older is read
                    after = self._store.read(keys.ROOT).revision
                    self.in_touch = True
                    self._tell(StoreChanged())
                with self._store.watch(keys.ROOT, after=after) as watch:
                    for batch in iterate(watch):
                        after = batch.revision
                        if any(not event.key.startswith(keys.BESIDE) for event in batch.events):
                            self._tell(StoreChanged(batch))
                    return
            except RevisionCompacted as error:
                log.warning("store: %s; reading it anew", error)
            except StoreUnavailable as error:
                if self.in_touch:  # once, not with each try
                    log.error("store: %s; watching again every %g s", error, RETRY_SECONDS)
                self._pause()
            except Exception:  # a bug; lbd must not go on deaf
                log.exception("store: internal error; watching again every %g s", RETRY_SECONDS)
                self._pause()
            after = 0

    def _pause(self) -> None:
        if self.in_touch:
            self._lost_at = time.monotonic()
        self.in_touch = False
        time.sleep(RETRY_SECONDS)

    def _run_votes(self) -> None:
        """That the store is away is said by the other thread, which sees the same."""
        while True:
            try:
                snapshot = self._store.read(keys.VOTES)
                found = {item.key: item.value for item in snapshot.items}
                for key in found.keys() | {keys.votes(node) for node in self._votes}:
                    self._hear(key, found.get(key))
                with self._store.watch(keys.VOTES, after=snapshot.revision) as watch:
                    for batch in iterate(watch):
                        for event in batch.events:
                            self._hear(event.key, event.value)
                    return
            except RevisionCompacted:
                pass
            except StoreUnavailable:
                time.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("votes: internal error; watching again every %g s", RETRY_SECONDS)
                time.sleep(RETRY_SECONDS)

    def _hear(self, key: str, text: str | None) -> None:
        node = key.removeprefix(keys.VOTES)
        if node == self._node:
            return
        try:
            votes = None if text is None else cast(Ballot.model_validate_json(text))
        except ValueError:  # quarantined: what it said before stays in force
            return
        if node not in self._votes or self._votes[node] != votes:
            self._votes[node] = votes
            self._tell(HealthHeard(node, votes))
