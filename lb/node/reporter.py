"""What a node says of itself: one document in the store, under a lease that ends with the node."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lb.core.quorum import ballot
from lb.errors import LbError, NotFoundError, StoreUnavailable
from lb.model import keys
from lb.model.flows import FlowReport
from lb.model.health import Ballot
from lb.model.reports import Member, NodeStatus
from lb.node.happenings import Timer
from lb.store.base import Delete, Put, Store

log = logging.getLogger("lbd")

LEASE_SECONDS = 10.0
RENEW_SECONDS = 3.0  # well below that
FRESH_SECONDS = 2.0  # a report of flows is never older, also where nothing flows: who reads it can tell
LEAVE_SECONDS = 10.0  # for a call to the store that is under way when lbd stops


@dataclass
class Reporter:
    """Writes the node's status when it differs, what it saw of flows, and keeps its lease alive."""

    store: Store
    last: NodeStatus | None = None
    _written: bool = False
    _lease: int = 0
    _ballot: Ballot | None = None  # as it was written under this lease
    _registered: bool = False
    _failing: bool = False
    _flows: Mapping[str, FlowReport] = field(default_factory=dict)
    _flows_written: dict[str, FlowReport] = field(default_factory=dict)  # under this lease

    def report(self, status: NodeStatus) -> None:
        """Write it, unless it says the same as before."""
        if status != self.last or not self._written:
            self.last = status
            self._write()

    def report_flows(self, reports: Mapping[str, FlowReport]) -> None:
        """Write these, by service, as far as they say something new or are FRESH_SECONDS newer, and take
        back all others."""
        self._flows = reports
        changed = [
            report
            for service, report in reports.items()
            if _is_news(self._flows_written.get(service), report)
        ]
        gone = [
            Delete(keys.observed(service, written.node))
            for service, written in self._flows_written.items()
            if service not in reports
        ]
        if not changed and not gone:
            return

        def changes(lease: int) -> list[Put | Delete]:
            puts = [
                Put(keys.observed(each.service, each.node), each.model_dump_json(), lease=lease)
                for each in changed
            ]
            return [*puts, *gone]

        try:
            written = self._commit(changes)
        except LbError as error:  # also if it may not write there: everything else goes on
            self._complain(error)
            return
        if written:  # and those before, if they didn't end with their lease
            same = {s: each for s, each in self._flows_written.items() if s in reports}
            self._flows_written = same | {each.service: each for each in changed}

    def renew(self) -> None:
        """Call this well within LEASE_SECONDS. A status that could not be written is tried again."""
        try:
            alive = bool(self._lease) and self.store.renew(self._lease)
        except StoreUnavailable:
            return
        if not alive:
            self._lose_lease()
        if not self._written and self.last is not None:
            self._write()
        self.report_flows(self._flows)

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
        votes = ballot(self.last)

        def changes(lease: int) -> list[Put | Delete]:
            puts: list[Put | Delete] = [Put(keys.node(name), text, lease=lease)]
            if not self._registered:
                member = Member(node=name, since=time.time())
                puts.append(Put(keys.member(name), member.model_dump_json()))
            if votes != (self._ballot or Ballot(node=name)):
                puts.append(Put(keys.votes(name), votes.model_dump_json(), lease=lease))
            return puts

        try:
            written = self._commit(changes)
        except StoreUnavailable as error:
            self._written = False
            self._complain(error)
            return
        if written:
            self._written = self._registered = True
            self._ballot = votes

    def _commit(self, changes: Callable[[int], list[Put | Delete]]) -> bool:
        """Write what `changes` makes of our lease. False if that ends as fast as it is had."""
        for _ in range(2):
            self._lease = self._lease or self.store.grant(LEASE_SECONDS)
            try:
                self.store.commit(changes(self._lease))
                self._failing = False
                return True
            except NotFoundError:  # the lease has ended while lbd was busy
                self._lose_lease()
        return False

    def _lose_lease(self) -> None:
        """With what was written under it: status and votes, too, whoever noticed it."""
        self._lease, self._ballot, self._written = 0, None, False
        self._flows_written.clear()

    def _complain(self, error: LbError) -> None:
        if not self._failing:  # once, not with each try
            log.error("store: status not written: %s", error)
        self._failing = True


def _is_news(before: FlowReport | None, now: FlowReport) -> bool:
    if before is None or now.at - before.at >= FRESH_SECONDS:
        return True
    return before.model_copy(update={"at": now.at}) != now


class Background:
    """A reporter in a thread of its own: while the store doesn't answer, lbd's loop has other work."""

    def __init__(self, reporter: Reporter) -> None:
        self.last: NodeStatus | None = None  # that was to be reported
        self._flows: Mapping[str, FlowReport] = {}
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

    def report_flows(self, reports: Mapping[str, FlowReport]) -> None:
        """See Reporter.report_flows."""
        self._flows = reports
        self._tasks.put(lambda: self._reporter.report_flows(self._flows))

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
                try:
                    task = self._tasks.get(timeout=max(0.0, renew.due - time.monotonic()))
                except queue.Empty:
                    pass
                else:
                    if task is None:
                        return
                    task()
                if renew.is_due(time.monotonic()):
                    self._reporter.renew()
            except LbError as error:  # the store is there, but takes no such report
                log.error("store: status not written: %s", error)
