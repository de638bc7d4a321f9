"""lbd's loop. One thread decides; others (store, netlink, signals) only put what happened in a queue.

    store, netlink -> queue -> parse -> plan -> apply -> report

Whatever fails is reported and tried again; the kernel goes on forwarding meanwhile.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import InitVar, dataclass, field

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lb.core import room
from lb.core.flows import Filter, Kind
from lb.core.plan import Wanted
from lb.core.quorum import Votes, reported
from lb.core.state import BackendKey, DesiredState
from lb.datapath import holding, icmp, lifecycle, neighbours
from lb.datapath.flows import FlowTable
from lb.datapath.kernel import Kernel
from lb.datapath.lifecycle import Attachment
from lb.datapath.maps import Maps
from lb.datapath.mirrorpath import MirrorPath
from lb.datapath.probepath import ProbePath
from lb.datapath.view import KernelView
from lb.errors import LbError, StoreUnavailable
from lb.model import keys
from lb.model.objects import ClusterConfig
from lb.model.reports import Problem
from lb.node import metrics
from lb.node.checks import Checks
from lb.node.crowds import Crowds
from lb.node.desired import Desired
from lb.node.drains import Drains
from lb.node.ejections import Reading
from lb.node.follower import Follower
from lb.node.forwarding import translated
from lb.node.happenings import (
    ChecksDone,
    Crashed,
    Happening,
    HealthHeard,
    NetlinkChanged,
    PathTooNarrow,
    RolloutsChanged,
    Stop,
    StoreChanged,
    Timer,
    WallClock,
)
from lb.node.hook import Hook
from lb.node.inbox import Inbox
from lb.node.last_known import LastKnown
from lb.node.metrics import Scrape
from lb.node.observing import Observing
from lb.node.planning import Bases, Plans
from lb.node.reporter import LEASE_SECONDS, Background, Reporter
from lb.node.rollouts import Rollouts
from lb.node.shares import Shares
from lb.node.sharing import Sharing
from lb.node.status import Status
from lb.node.upkeep import Upkeep
from lb.node.ways import Ways
from lb.probe.prober import Prober
from lb.probe.scheduler import Probed
from lb.settings import Settings
from lb.store.base import Compare, Put, Store
from lb.store.opening import is_shared

log = logging.getLogger("lbd")

AUDIT_SECONDS = 30.0
RESOLVE_SECONDS = 1.0  # how long a change waits for the next hops of new backends
RETRY_SECONDS = 1.0  # after a failure

# What the outside world can do to us at any moment; anything else is a bug and ends lbd.
_RETRIED = (LbError, NetlinkError, OSError)


@dataclass
class Daemon:
    """One node's lbd."""

    settings: Settings
    store: Store
    ip: IPRoute
    maps: Maps
    attachment: InitVar[Attachment]
    notes: tuple[Problem, ...] = ()  # what was found at the start
    inbox: Inbox = field(default_factory=Inbox)
    _bases: Bases = field(default_factory=Bases)
    _plans: Plans = field(default_factory=Plans)
    _audit: Timer = field(default_factory=lambda: Timer(AUDIT_SECONDS))
    _verdicts_changed: bool = False
    _verdicts_due: float = 0.0
    _retry_at: float = float("inf")
    _failing: str = ""
    _is_applied: bool = False  # the kernel has what was wanted last
    _wanted: Wanted = field(default_factory=lambda: Wanted({}, {}))  # as the kernel has it
    _judged: frozenset[str] = frozenset()  # services that have a rollout under way
    _shares: Shares = field(default_factory=Shares)
    _wall: WallClock = field(default_factory=WallClock)

    def __post_init__(self, attachment: Attachment) -> None:
        self.kernel = Kernel(self.maps, self.settings.observation.unserved)
        self.upkeep = Upkeep(self.kernel, self.settings.timeouts)
        self.crowds = Crowds()
        self.ways = Ways(self.ip, self.maps, self.settings, attachment)
        self.sharing = Sharing(self.store, self.settings.node, self._bases)
        ours = lifecycle.our_attachments(self.settings.pin_dir)
        self.probe_path = ProbePath(self.ip, self.maps, self.settings.pin_dir, ours.name)
        self.mirror_path = MirrorPath(self.ip, self.maps, self.settings.pin_dir, ours.name)
        self.reporter = Background(Reporter(self.store))
        self.follower = Follower(self.store, self.inbox.put, self.settings.node)
        copy = self.settings.last_known if is_shared(self.settings.store) else None
        self.last_known = LastKnown(self.settings.node, copy)
        self.desired = Desired(self.store, self.last_known, self._hear_nodes)
        self.drains = Drains(self.store)
        self.observing = Observing(self.settings, self.maps, self.reporter)
        self.rollouts = Rollouts(
            self.store,
            self.settings.node,
            lambda names: self.inbox.put(RolloutsChanged(names)),
            exec_dir=self.settings.checks.exec_dir,
        )
        prober = Prober(
            lambda results: self.inbox.put(ChecksDone(results)),
            lambda error: self.inbox.put(Crashed(error)),
            lambda key: self.probe_path.marks.get(key, 0),
        )
        hook = Hook(self.settings.checks, self.settings.node)
        self.checks = Checks(self.settings.checks, prober, hook.tell)
        self.status = Status(
            self.settings, self.maps, self.reporter, self.checks, self.last_known, self.notes
        )

    def run(self) -> None:
        """Serve until Stop comes. What is attached stays attached."""
        self.kernel.adopt()
        neighbours.listen(lambda message: self.inbox.put(NetlinkChanged(message)))
        icmp.listen(lambda error: self.inbox.put(PathTooNarrow(error)))
        self.checks.load()
        self.desired.state = self.last_known.load()
        if problem := metrics.serve(self.settings.metrics, self._look):
            log.error("%s", problem.message)
            self.status.notes += (problem,)
        if not self.desired.read() and self.state.config is not None:
            self.last_known.serve(self.state)
        self._judged = self.rollouts.under_way()  # else what was counted of them would begin anew
        self.follower.start(self.state.revision if self.desired.in_touch else 0)
        self._audit.is_due(time.monotonic())
        self._guarded([], stale=True)
        self.rollouts.start()
        log.info(
            "ready node=%s hook=%s interfaces=%s revision=%d",
            self.settings.node,
            self.ways.attachment.hook,
            ",".join(self.ways.names),
            self.state.revision,
        )
        while True:
            happened = self._collect()
            if any(isinstance(each, Stop) for each in happened):
                break
            self._guarded(happened)
        self.checks.save()
        self.rollouts.stop()
        try:
            self.reporter.leave()
        except StoreUnavailable as error:
            log.error("store: %s", error)
        log.info("stopped; the data path stays attached")

    def _collect(self) -> list[Happening]:
        """Everything that has happened, as soon as something has, or there is something to do."""
        due = min(self.ways.due, self._audit.due, self._retry_at, self.upkeep.due)
        due = min(due, self.last_known.due, self.sharing.due, self.observing.due, self.status.due)
        if self.follower.in_touch:
            due = min(due, self.desired.due)
        if self._verdicts_changed:
            due = min(due, self._verdicts_due)
        # Of the clock on the wall, which outlives us.
        ahead = time.monotonic() - time.time()
        due = min(due, self.checks.due + ahead, self._drains_due + ahead)
        return self.inbox.everything(due - time.monotonic())

    def _guarded(self, happened: Iterable[Happening], *, stale: bool = False) -> None:
        """One turn. What goes wrong is said in the status, and tried again soon."""
        try:
            if self._turn(happened, stale):
                self._failing = ""
        except _RETRIED as error:
            if str(error) != self._failing:  # once, not with each try
                log.error("%s; trying again every %g s", error, RETRY_SECONDS)
            self._failing = str(error)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self.desired.doubt()  # not all of what happened may have been looked at
            self.status.report_failure(error, self.ways.attachment, self.state.problems)
        self.last_known.save_if_due(self.state)

    def _turn(self, happened: Iterable[Happening], stale: bool) -> bool:
        """True if the kernel was made what it should be; False if there was no reason to."""
        now = time.monotonic()
        if jump := self._wall.jump():
            log.warning("the clock was set by %+.0f s", jump)
            self._verdicts_changed |= self.checks.clock_was_set(jump)
        self._verdicts_changed |= self.checks.tick()
        if now >= self._retry_at:
            stale, self._retry_at = True, float("inf")
        audit = self._audit.is_due(now)
        results: list[Probed] = []
        votes: dict[str, Votes | None] = {}
        for each in happened:
            if isinstance(each, NetlinkChanged):
                stale |= self.ways.notice(each)
            elif isinstance(each, PathTooNarrow):
                stale |= self.ways.learn(each.error, now)
            elif isinstance(each, StoreChanged):
                stale |= self.desired.take_in(each.batch) if each.batch else self.desired.read()
            elif isinstance(each, HealthHeard):
                votes[each.node] = each.votes
            elif isinstance(each, ChecksDone):
                results += each.results
            elif isinstance(each, RolloutsChanged):
                self._judged, stale = each.services, True
            elif isinstance(each, Crashed):
                raise RuntimeError("the checks' thread has ended") from each.error
            else:
                audit = True
        # All at once: a server that falls is found by all nodes in the same moment.
        if votes:
            self._verdicts_changed |= self.checks.hear_some(votes)
        self._verdicts_changed |= self.checks.take(results)
        if self.follower.away(now) > LEASE_SECONDS:  # nobody knows who of the others is alive
            self._verdicts_changed |= self.checks.hear({})
        if self.follower.in_touch and now >= self.desired.due:
            stale |= self.desired.read()
        stale |= self.ways.look_if_due(now)
        if audit:
            # Compare with the kernel and the store, not with memory: what was changed by hand, or
            # what no notification told of, is put right by the reconciliation that follows.
            if self.follower.in_touch:
                self.desired.read()
            self.kernel.adopt()
            self.probe_path.doubt()
            self.mirror_path.doubt()
            self.ways.doubt()
        if self._drains_due <= time.time():
            stale |= self.drains.end(self.state, time.time())
        if stale or audit or (self._verdicts_changed and now >= self._verdicts_due):
            self._verdicts_changed = False
            self._reconcile(audit=audit)
            # Where many verdicts change, at most half of the time goes into tables: checks need some.
            ended = time.monotonic()
            self._verdicts_due = ended + (ended - now)
            return True
        self.sharing.share_if_due(self.state, now, held=bool(self.last_known.held))
        self.status.report_health_if_due(now)
        if self.observing.look_if_due(now):
            self._see()
        counted = self.upkeep.look_if_due(now)
        if counted is not None:
            self._verdicts_changed |= self.crowds.count(self.state, counted)
        return False

    def _look(self) -> Scrape:
        """For metrics, by a thread of theirs: nothing that it reads is changed in place."""
        state = self.state
        view = KernelView(self.maps, state)
        outcomes, services, backends = metrics.counters(view, state)
        return Scrape(
            node=self.settings.node,
            status=self.reporter.last,
            state=state,
            wanted=self._wanted,
            in_touch=self.desired.in_touch and self.follower.in_touch,
            is_followed=not self.last_known.held,
            serves_copy=self.last_known.is_served,
            repaired=self.status.repaired,
            outcomes=outcomes,
            services=services,
            backends=backends,
            mirrors=metrics.copied(view, state),
            verdicts=dict(self.checks.verdicts),
            panicked=dict(self.checks.panicked),
            rollouts=self.rollouts.known,
        )

    # -- store ---------------------------------------------------------------------------------

    @property
    def state(self) -> DesiredState:
        """The desired state in force."""
        return self.desired.state

    def _hear_nodes(self, state: DesiredState) -> None:
        own = self.settings.node
        others = state.nodes.keys() - {own}
        votes = {name: reported(state.nodes[name]) for name in others}
        self._verdicts_changed |= self.checks.hear(votes)
        self.reporter.compare(state.nodes.get(own))

    @property
    def _drains_due(self) -> float:
        """In Unix seconds. While the store is away nobody can say that a drain is over."""
        follows = self.follower.in_touch and not self.last_known.held
        return self.drains.due(self.state) if follows else float("inf")

    # -- kernel --------------------------------------------------------------------------------

    def _reconcile(self, *, audit: bool) -> None:
        """Make the kernel maps what they should be, and report. `audit`: they were just read anew."""
        self.ways.resolver.watch(self.state.addresses)
        self._await_next_hops()
        if self.state.config is None:
            self._without_config()
            return
        self.checks.follow(self.state)
        self.crowds.follow(self.state)
        bases = self._bases.update(self.state)
        observed = self.ways.observed()
        kept = self.state.not_understood
        left_out = room.left_out(
            self.state, bases, holding.limits(self.maps), self.kernel.holding(kept), self.settings.node
        )
        wanted = self._plans.update(
            self.state, observed, bases, self.checks.verdicts, self._judged, self.crowds.full, left_out
        )
        # Nothing else is wanted than what was applied, and that is not what was found.
        is_drift = audit and self._is_applied and wanted == self._wanted
        self._is_applied = False
        changes = self.kernel.apply(wanted, keep=kept)
        self._is_applied, self._wanted = True, wanted
        if changes and is_drift:
            log.warning("the kernel's maps were changed by somebody else: put right entries=%d", changes)
            self.status.note_repair(changes)
        elif changes:
            log.info("applied revision=%d entries=%d", self.state.revision, changes)
        if self.observing.follow(wanted, kept):
            self._see()
        self._let_checks_through()
        asking = [name for name, each in self.state.services.items() if each.mirror]
        place = self.ways.attachment
        self.mirror_path.update(asking, place.hook, place.interfaces)
        self._forget_beginnings(self.checks.fallen())
        self.ways.forwarding.follow(translated(self.state.services.values()), self.ways.names)
        found = (
            *left_out.problems,
            *wanted.problems,
            *self.checks.problems(self.settings.node),
            *self.observing.problems(),
            *self.drains.problems,
            *self.rollouts.problems,
            *self.ways.problems,
            *self.ways.forwarding.problems,
            *self.mirror_path.problems,
        )
        problems = (*self.state.problems, *found)
        shares = self._shares.update(self.state, wanted)
        self.status.report(
            self.state.revision,
            self.ways.attachment,
            wanted,
            problems,
            shares,
            self.crowds.reports(),
            left_out.names,
        )
        self.last_known.changed()
        now = time.monotonic()
        self.sharing.plan(self.state, now)
        self.sharing.share_if_due(self.state, now, held=bool(self.last_known.held))

    def _let_checks_through(self) -> None:
        """Checks `via: vip` go by what the kernel has just been told of their backends."""
        found = {key: self.kernel.numbers(key) for key in self.checks.via_vip}
        wanted = {key: numbers for key, numbers in found.items() if numbers is not None}
        self.probe_path.update(wanted, self.ways.attachment.interfaces)

    def _see(self) -> None:
        """What became of clients' connections may speak against a backend."""
        for name, report in self.observing.reports.items():
            reading = Reading(name, report.epoch, report.backends)
            self._verdicts_changed |= self.checks.see(reading)

    def _forget_beginnings(self, fallen: Collection[BackendKey]) -> None:
        """A SYN that is sent again, or comes from the same port as one that failed, would follow it to
        a server that is unhealthy by now. Established flows stay."""
        if fallen:
            flows = FlowTable(self.maps, self.state)
            for service, backend in fallen:
                flows.forget(Filter(service, backend, None, Kind.BEGUN))

    def _without_config(self) -> None:
        """Without the seed of the flow hash nothing can be planned. The kernel goes on as it is."""
        problems = [*self.state.problems, *self.ways.problems]
        if keys.CONFIG not in self.state.versions:
            if self.state.services:  # written by somebody who leaves the seed to us
                config = ClusterConfig(seed=secrets.token_hex(16))
                put = Put(keys.CONFIG, config.model_dump_json())
                self.store.commit([put], [Compare(keys.CONFIG, 0)])
                return
            if held := self.kernel.services_held:
                # The wrong store, or a lost one: that is no reason to stop serving.
                problems.append(
                    Problem(
                        where=self.settings.node,
                        message=f"the store is new and empty, but the kernel holds {held} services;"
                        " they are kept",
                        hint="check `store` in lb.toml; if it is right, lbd --detach and start lbd"
                        " again",
                    )
                )
                log.error("%s", problems[-1].message)
        self.status.report(self.state.revision, self.ways.attachment, Wanted({}, {}), problems)

    def _await_next_hops(self) -> None:
        """Give the kernel a moment to resolve new next hops, so that a backend that is there takes
        its slots with the change that adds it."""
        deadline = time.monotonic() + RESOLVE_SECONDS
        resolver = self.ways.resolver
        while resolver.pending() and (left := deadline - time.monotonic()) > 0:
            each = self.inbox.next(left)
            if isinstance(each, NetlinkChanged):
                self.ways.notice(each)
            elif each is not None:
                self.inbox.put_off(each)
        resolver.give_up()
