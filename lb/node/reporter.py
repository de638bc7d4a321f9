"""What a node says of itself: one document in the store, under a lease that ends with the node."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lb.core.brief import told, unheard
from lb.core.quorum import ballot
from lb.errors import CapacityError, LbError, NotFoundError, StoreUnavailable
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
APART = 2000  # votes that go into a commit of their own; with names of 63 characters they are 0.4 MB
LEAVE_SECONDS = 10.0  # for a call to the store that is under way when lbd stops


@dataclass
class Reporter:
    """Writes the node's status when it differs, what it saw of flows, and keeps its lease alive."""

    store: Store
    last: NodeStatus | None = None
    _written: bool = False
    _told: NodeStatus | None = None  # what was written of `last`: all of it, or what the store takes
    _refused: float = float("inf")  # characters of the smallest status that was too large for it
    _unheard: bool = False  # the votes are too large for it
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
        if found != self._told:
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
        self._written = False
        try:
            self._tell(self.last)
        except (StoreUnavailable, CapacityError) as error:
            self._complain(error)

    def _tell(self, status: NodeStatus) -> None:
        """The status with its votes; of one that is too large for the store, as much as it takes. Raises
        CapacityError if that is nothing."""
        votes = ballot(status)
        apart = len(votes.votes) > APART
        if apart:
            self._tell_votes(votes)
        if apart and self._unheard:
            status = unheard(status)
        refusal: CapacityError | None = None
        for number, each in enumerate(told(status)):
            text = each.model_dump_json(exclude_defaults=number > 0)
            if len(text) >= self._refused:
                continue

            def changes(lease: int, text: str = text) -> list[Put | Delete]:
                puts: list[Put | Delete] = [Put(keys.node(status.node), text, lease=lease)]
                if not self._registered:
                    member = Member(node=status.node, since=time.time())
                    puts.append(Put(keys.member(status.node), member.model_dump_json()))
                return puts if apart else [*puts, *self._voting(votes, lease)]

            try:
                if self._commit(changes):
                    self._registered, self._told = True, each
                    if not apart:
                        self._ballot = votes
                    self._written = not self._voting(votes, self._lease)
                return
            except CapacityError as error:
                self._refused, refusal = len(text), error
        self._refused = float("inf")
        if refusal:
            raise refusal

    def _tell_votes(self, votes: Ballot) -> None:
        """Those that are too many for a commit with others. If they are so for one of their own, none is
        left there that no longer counts."""
        if not self._voting(votes, self._lease):
            return
        try:
            if self._commit(lambda lease: self._voting(votes, lease)):
                self._ballot, self._unheard = votes, False
        except CapacityError as error:
            self._complain(error)
            if self._commit(lambda _: [Delete(keys.votes(votes.node))]):
                self._ballot, self._unheard = votes, True

    def _voting(self, votes: Ballot, lease: int) -> list[Put | Delete]:
        """What has to be written for these votes to be there."""
        if votes == (self._ballot or Ballot(node=votes.node)):
            return []
        return [Put(keys.votes(votes.node), votes.model_dump_json(), lease=lease)]

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
        self._refused = float("inf")  # the limit may have been raised, where leases ended
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
