"""What a node says of itself: one document in the store, under a lease that ends with the node."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lb.core.quorum import ballot
from lb.errors import LbError, NotFoundError, StoreUnavailable
from lb.model import keys
from lb.model.health import Ballot
from lb.model.objects import Member, NodeStatus
from lb.node.happenings import Timer
from lb.store.base import Delete, Put, Store

log = logging.getLogger("lbd")

LEASE_SECONDS = 10.0
RENEW_SECONDS = 3.0  # well below that
LEAVE_SECONDS = 10.0  # for a call to the store that is under way when lbd stops


@dataclass
class Reporter:
    """Writes the node's status when it differs, and keeps its lease alive."""

    store: Store
    last: NodeStatus | None = None
    _written: bool = False
    _lease: int = 0
    _ballot: Ballot | None = None  # as it was written under this lease
    _registered: bool = False
    _failing: bool = False

    def report(self, status: NodeStatus) -> None:
        """Write it, unless it says the same as before."""
        if status != self.last or not self._written:
            self.last = status
            self._write()

    def renew(self) -> None:
        """Call this well within LEASE_SECONDS. A status that could not be written is tried again."""
        try:
            alive = bool(self._lease) and self.store.renew(self._lease)
        except StoreUnavailable:
            return
        if not alive:
            self._lease, self._written, self._ballot = 0, False, None
        if not self._written and self.last is not None:
            self._write()

    def compare(self, found: NodeStatus | None) -> None:
        """What the store has as our status. If that is not what was written (somebody removed it, or the
        store was restored from a backup), it is written again."""
        if found != self.last:
            self._written = self._registered = False
            self._ballot = None

    def leave(self) -> None:
        """Take the status back: a node that stops is not lost."""
        if self.last is not None:
            own = (keys.member, keys.node, keys.votes)
            self.store.commit([Delete(key(self.last.node)) for key in own])
        if self._lease:
            self.store.revoke(self._lease)

    def _write(self) -> None:
        if self.last is None:
            return
        name, text = self.last.node, self.last.model_dump_json()
        try:
            for _ in range(2):
                self._lease = self._lease or self.store.grant(LEASE_SECONDS)
                puts = [Put(keys.node(name), text, lease=self._lease)]
                if not self._registered:
                    member = Member(node=name, since=time.time())
                    puts.append(Put(keys.member(name), member.model_dump_json()))
                votes = ballot(self.last)
                if votes != (self._ballot or Ballot(node=name)):
                    puts.append(Put(keys.votes(name), votes.model_dump_json(), lease=self._lease))
                try:
                    self.store.commit(puts)
                    self._written, self._registered, self._failing = True, True, False
                    self._ballot = votes
                    return
                except NotFoundError:  # the lease has ended while lbd was busy
                    self._lease, self._ballot = 0, None
        except StoreUnavailable as error:
            self._written = False
            if not self._failing:  # once, not with each try
                log.error("store: status not written: %s", error)
            self._failing = True


class Background:
    """A reporter in a thread of its own: while the store doesn't answer, lbd's loop has other work."""

    def __init__(self, reporter: Reporter) -> None:
        self.last: NodeStatus | None = None  # that was to be reported
        self._reporter = reporter
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        self._thread.start()

    def report(self, status: NodeStatus) -> None:
        """See Reporter.report."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that reports has ended")  # a bug, which it has logged
        self.last = status
        self._tasks.put(self._report_last)

    def compare(self, found: NodeStatus | None) -> None:
        """See Reporter.compare."""
        self._tasks.put(lambda: self._reporter.compare(found))

    def leave(self) -> None:
        """See Reporter.leave; nothing is reported after that."""
        self._tasks.put(None)
        self._thread.join(LEAVE_SECONDS)
        if not self._thread.is_alive():
            self._reporter.leave()

    def _report_last(self) -> None:
        # The newest one, not that of the task: what piled up while the store was away is one report.
        if self.last is not None:
            self._reporter.report(self.last)

    def _run(self) -> None:
        renew = Timer(RENEW_SECONDS)
        while True:
            try:
                task = self._tasks.get(timeout=max(0.0, renew.due - time.monotonic()))
                if task is None:
                    return
                task()
            except queue.Empty:
                pass
            except LbError as error:  # the store is there, but takes no such report
                log.error("store: status not written: %s", error)
            if renew.is_due(time.monotonic()):
                self._reporter.renew()
