"""What a node says of itself: put together here, written by the reporter."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import lb
from lb.core.plan import Wanted
from lb.datapath.holding import limits
from lb.datapath.lifecycle import Attachment
from lb.datapath.maps import Maps
from lb.errors import LbError
from lb.model.reports import (
    BackendHealth,
    FullReport,
    LinkStatus,
    NodeStatus,
    Problem,
)
from lb.node.checks import Checks
from lb.node.happenings import Timer
from lb.node.last_known import LastKnown
from lb.node.reporter import Background
from lb.settings import Settings

REPORT_SECONDS = 0.001  # times backends: between two reports of their health
NOTE_SECONDS = 600.0  # how long it is told that the kernel was put right
DETAILS_SECONDS = 2.0  # between two looks at the latencies of checks that are worth telling


@dataclass
class Status:
    """The status of one node. `notes` is what was found at its start."""

    settings: Settings
    maps: Maps
    reporter: Background
    checks: Checks
    last_known: LastKnown
    notes: tuple[Problem, ...] = ()
    repaired: int = 0  # entries of the kernel's maps, since the start
    _repaired_at: float = float("-inf")
    _started: float = field(default_factory=time.time)
    _details: Timer = field(default_factory=lambda: Timer(DETAILS_SECONDS))
    _lateness: list[Problem] = field(default_factory=list)
    _health: Mapping[str, BackendHealth] = field(default_factory=dict)  # as it was told last
    _health_due: float = 0.0

    @property
    def due(self) -> float:
        """When report_health_if_due() has something to do next (monotonic clock)."""
        details = self._details.due if self.checks.is_busy else float("inf")
        return min(details, self._health_due) if self.checks.has_news else details

    def note_repair(self, entries: int) -> None:
        """Somebody else had changed the kernel's maps, and so many entries were put right."""
        self.repaired += entries
        self._repaired_at = time.time()

    def _repairs(self) -> tuple[Problem, ...]:
        if time.time() > self._repaired_at + NOTE_SECONDS:
            return ()
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._repaired_at))
        return (
            Problem(
                where=self.settings.node,
                message=f"somebody else had changed the kernel's maps; they were put right at {when}",
                hint="find out who: only lbd is to write them; this note goes by itself",
                warning=True,
            ),
        )

    def report(
        self,
        revision: int,
        attachment: Attachment,
        wanted: Wanted,
        problems: Iterable[Problem],
        shares: Mapping[str, dict[str, float]] = MappingProxyType({}),
        full: Mapping[str, FullReport] = MappingProxyType({}),
        left_out: tuple[str, ...] = (),
    ) -> None:
        """Report that the kernel holds `wanted`, of this revision of the store. `shares`: of pools, as
        lb/node/shares.py counts them; `full`: per service/backend that is; `left_out`: the names of what
        has no room."""
        self.reporter.report(
            NodeStatus(
                node=self.settings.node,
                version=lb.__version__,
                pid=os.getpid(),
                started=self._started,
                # A revision of another history would pass for one of this store's.
                revision=0 if self.last_known.held else revision,
                links=tuple(
                    LinkStatus(interface=each.name, hook=attachment.hook, why=attachment.why)
                    for each in attachment.interfaces
                ),
                pin_dir=str(self.settings.pin_dir),
                digests={name: each.table.digest for name, each in wanted.services.items()},
                shares=dict(shares),
                unresolved=tuple(
                    f"{service}/{name}"
                    for (service, name), each in wanted.backends.items()
                    if each.next_hop is None
                ),
                health=dict(self._told(details=False)),
                full=dict(full),
                left_out=left_out,
                limits=limits(self.maps),
                problems=(
                    *self.notes,
                    *self.last_known.problems(),
                    *self._repairs(),
                    *problems,
                    *self._lateness,
                ),
            )
        )

    def report_failure(
        self, error: Exception, attachment: Attachment, problems: Iterable[Problem]
    ) -> None:
        """The last status with this problem: its revision is what the kernel still holds. `problems`:
        those of the state, if nothing was reported yet."""
        problem = Problem(
            where=self.settings.node,
            message=error.message if isinstance(error, LbError) else f"{error}",
            hint=error.hint if isinstance(error, LbError) else "",
            kind=type(error).__name__,
        )
        last = self.reporter.last
        if last is None:
            self.report(0, attachment, Wanted({}, {}), [*problems, problem])
        elif problem not in last.problems:
            self.reporter.report(last.model_copy(update={"problems": (*last.problems, problem)}))

    def report_health_if_due(self, now: float) -> None:
        """What checks found since the kernel was made what it should be; now and then also what changes
        no verdict: their latencies, and what they say now."""
        details = self.checks.is_busy and self._details.is_due(now)
        last = self.reporter.last
        if last is None or not (details or (self.checks.has_news and now >= self._health_due)):
            return
        before = self._lateness
        if details:
            self._lateness = self.checks.lateness(self.settings.node)
        problems = (*(each for each in last.problems if each not in before), *self._lateness)
        health = dict(self._told(details=details))
        self.reporter.report(last.model_copy(update={"health": health, "problems": problems}))

    def _told(self, *, details: bool) -> Mapping[str, BackendHealth]:
        """The health of all backends for the status: of many not with every change, because each time
        all of it is written."""
        now = time.monotonic()
        if details or now >= self._health_due:
            self._health = self.checks.reports(details=details)
            self._health_due = now + REPORT_SECONDS * len(self._health)
            self._details.period = max(DETAILS_SECONDS, 10 * REPORT_SECONDS * len(self._health))
        return self._health
