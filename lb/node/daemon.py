"""lbd's loop. One thread decides; others (store, netlink, signals) only put what happened in a queue.

    store, netlink -> queue -> parse -> plan -> apply -> report

Whatever fails is reported and tried again; the kernel goes on forwarding meanwhile.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute

import lb
from lb.core.plan import Observed, Wanted, plan
from lb.core.state import DesiredState, parse
from lb.datapath import lifecycle, neighbours
from lb.datapath.kernel import Kernel
from lb.datapath.lifecycle import Attachment
from lb.datapath.maps import Maps
from lb.datapath.neighbours import Resolver
from lb.errors import ConflictError, LbError, RevisionCompacted, StoreUnavailable
from lb.model import keys
from lb.model.objects import ClusterConfig, LinkStatus, NodeStatus, Problem, TableDocument
from lb.node.planning import Bases, unstored
from lb.settings import Settings
from lb.store.base import Compare, Delete, Put, Store

log = logging.getLogger("lbd")

LEASE_SECONDS = 10.0
RENEW_SECONDS = 3.0
REFRESH_SECONDS = 15.0  # well below the kernel's gc_stale_time of 60 s
AUDIT_SECONDS = 30.0
RESOLVE_SECONDS = 1.0  # how long a change waits for the next hops of new backends


@dataclass(frozen=True)
class StoreChanged:
    """The desired state may have changed."""


@dataclass(frozen=True)
class NetlinkChanged:
    """A notification of the kernel."""

    message: dict[str, Any]


@dataclass(frozen=True)
class Stop:
    """A signal asks lbd to end."""


@dataclass(frozen=True)
class Audit:
    """A signal asks lbd to compare with the kernel now, not at the next turn."""


Happening = StoreChanged | NetlinkChanged | Stop | Audit


@dataclass
class Timer:
    """Says every `period` seconds (monotonic clock) that it is time."""

    period: float
    due: float = 0.0

    def is_due(self, now: float) -> bool:
        """True once per period."""
        if now < self.due:
            return False
        self.due = now + self.period
        return True


@dataclass
class Daemon:
    """One node's lbd."""

    settings: Settings
    store: Store
    ip: IPRoute
    maps: Maps
    attachment: Attachment
    notes: tuple[Problem, ...] = ()  # what was found at the start
    inbox: queue.SimpleQueue[Happening] = field(default_factory=queue.SimpleQueue)
    state: DesiredState = field(default_factory=DesiredState)
    _started: float = field(default_factory=time.time)
    _bases: Bases = field(default_factory=Bases)
    _lease: int = 0
    _reported: NodeStatus | None = None

    def __post_init__(self) -> None:
        self.kernel = Kernel(self.maps)
        self.resolver = Resolver(self.ip)

    def run(self) -> None:
        """Serve until Stop comes. What is attached stays attached."""
        self.kernel.adopt()
        neighbours.listen(lambda message: self.inbox.put(NetlinkChanged(message)))
        self._read_store()
        threading.Thread(target=self._watch_store, name="store", daemon=True).start()
        self._reconcile()
        log.info(
            "ready node=%s hook=%s interfaces=%s revision=%d",
            self.settings.node,
            self.attachment.hook,
            ",".join(link.name for link in self.attachment.interfaces),
            self.state.revision,
        )
        renew, refresh, audit = Timer(RENEW_SECONDS), Timer(REFRESH_SECONDS), Timer(AUDIT_SECONDS)
        audit.is_due(time.monotonic())
        while True:
            now = time.monotonic()
            timeout = max(0.0, min(renew.due, refresh.due, audit.due) - now)
            happened = self._collect(timeout)
            if any(isinstance(each, Stop) for each in happened):
                break
            now = time.monotonic()
            stale = self._take_in(happened)
            if refresh.is_due(now):
                stale |= self.resolver.refresh()
            if audit.is_due(now) or any(isinstance(each, Audit) for each in happened):
                self._audit()
                stale = True
            if stale:
                self._reconcile()
            if renew.is_due(now):
                self._renew()
        self._leave()

    def _collect(self, timeout: float) -> list[Happening]:
        """Everything that has happened, as soon as something has: bursts become one change."""
        try:
            happened = [self.inbox.get(timeout=timeout)]
        except queue.Empty:
            return []
        while True:
            try:
                happened.append(self.inbox.get_nowait())
            except queue.Empty:
                return happened

    def _take_in(self, happened: list[Happening]) -> bool:
        """Update what is known; True if it may make a difference to the kernel maps."""
        changed = False
        for each in happened:
            if isinstance(each, NetlinkChanged):
                changed |= self.resolver.notify(each.message)
                if each.message.get("event") == "RTM_NEWLINK":
                    changed |= self._reattach()
        if any(isinstance(each, StoreChanged) for each in happened):
            changed |= self._read_store()
        return changed

    # -- store ---------------------------------------------------------------------------------

    def _read_store(self) -> bool:
        """Read the desired state; the last one stays in force if that fails."""
        try:
            snapshot = self.store.read(keys.ROOT)
        except StoreUnavailable as error:
            log.error("store: %s; going on with revision %d", error, self.state.revision)
            return False
        items = ((kv.key, kv.value, kv.mod_revision) for kv in snapshot.items)
        self.state = parse(snapshot.revision, items, self.state)
        return True

    def _watch_store(self) -> None:
        """Thread: say when something other than a node's status changed."""
        after = self.state.revision
        while True:
            try:
                with self.store.watch(keys.ROOT, after=after) as watch:
                    while (batch := watch.next()) is not None:
                        after = batch.revision
                        if any(not event.key.startswith(keys.NODES) for event in batch.events):
                            self.inbox.put(StoreChanged())
                    return
            except RevisionCompacted:
                after = self.store.read(keys.ROOT).revision
                self.inbox.put(StoreChanged())
            except StoreUnavailable as error:
                log.error("store: %s; watching again in 1 s", error)
                time.sleep(1)
                self.inbox.put(StoreChanged())

    def _share_tables(self, documents: Mapping[str, TableDocument]) -> None:
        """Make new base tables part of the shared state. If another node was faster, its table comes
        with the watch and is taken."""
        for name, document in documents.items():
            key = keys.table(name)
            compares = [
                Compare(key, self.state.versions.get(key, 0)),
                Compare(keys.service(name), self.state.versions.get(keys.service(name), 0)),
            ]
            try:
                self.store.commit([Put(key, document.model_dump_json())], compares)
            except ConflictError:
                self.inbox.put(StoreChanged())
            except StoreUnavailable as error:
                log.error("store: table of %s not written: %s", name, error)
        orphans = [name for name in self.state.tables if name not in self.state.services]
        for name in orphans:
            key = keys.table(name)
            gone = [Compare(key, self.state.versions[key]), Compare(keys.service(name), 0)]
            try:
                self.store.commit([Delete(key)], gone)
            except (ConflictError, StoreUnavailable):
                self.inbox.put(StoreChanged())

    # -- kernel --------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Make the kernel maps what they should be, and report."""
        self.resolver.watch({backend.address for backend in self.state.backends.values()})
        self._await_next_hops()
        if self.state.config is None:
            self._without_config()
            return
        bases = self._bases.update(self.state)
        attached = frozenset(link.index for link in self.attachment.interfaces)
        wanted = plan(self.state, Observed(self.resolver.hops(), attached), bases)
        problems = [*self.state.problems, *wanted.problems]
        try:
            changes = self.kernel.apply(wanted)
            revision = self.state.revision
            if changes:
                log.info("applied revision=%d entries=%d", revision, changes)
        except LbError as error:
            log.error("revision %d not applied: %s", self.state.revision, error)
            problems.append(Problem(where=self.settings.node, message=error.message, hint=error.hint))
            revision = self._reported.revision if self._reported else 0
        self._share_tables(unstored(self.state, bases))
        self._report(wanted, revision, tuple(problems))

    def _without_config(self) -> None:
        """Nothing was ever configured in this store. If the kernel holds services all the same, then
        this is the wrong store, or a lost one: that is no reason to stop serving."""
        if self.state.services:
            config = ClusterConfig(seed=secrets.token_hex(16))
            try:
                put = Put(keys.CONFIG, config.model_dump_json())
                self.store.commit([put], [Compare(keys.CONFIG, 0)])
            except ConflictError:
                self.inbox.put(StoreChanged())
            except StoreUnavailable as error:
                log.error("store: %s", error)
            return
        problems = self.state.problems
        if held := self.kernel.services_held:
            problem = Problem(
                where=self.settings.node,
                message=f"the store is new and empty, but the kernel holds {held} services;"
                " they are kept",
                hint="check `store` in lb.toml; if it is right, lbd --detach and start lbd again",
            )
            log.error("%s", problem.message)
            problems = (*problems, problem)
        self._report(Wanted({}, {}), self.state.revision, problems)

    def _await_next_hops(self) -> None:
        """Give the kernel a moment to resolve new next hops, so that a backend that is there takes
        its slots with the change that adds it."""
        deadline = time.monotonic() + RESOLVE_SECONDS
        later: list[Happening] = []
        while self.resolver.pending() and (left := deadline - time.monotonic()) > 0:
            try:
                each = self.inbox.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(each, NetlinkChanged):
                self.resolver.notify(each.message)
            else:
                later.append(each)
        self.resolver.give_up()
        for each in later:
            self.inbox.put(each)

    def _audit(self) -> None:
        """Compare with the kernel, not with memory: what was changed by hand is put right by the
        reconciliation that follows."""
        self.kernel.adopt()
        self._reattach()

    def _reattach(self) -> bool:
        """True if an interface was attached again."""
        now = lifecycle.reattach(self.ip, self.maps, self.settings, self.attachment)
        if now is self.attachment:
            return False
        log.warning("attached again to %s", ", ".join(link.name for link in now.interfaces))
        self.attachment = now
        return True

    # -- status --------------------------------------------------------------------------------

    def _report(self, wanted: Wanted, revision: int, problems: tuple[Problem, ...]) -> None:
        link = self.attachment
        status = NodeStatus(
            node=self.settings.node,
            version=lb.__version__,
            pid=os.getpid(),
            started=self._started,
            revision=revision,
            links=tuple(
                LinkStatus(interface=each.name, hook=link.hook, why=link.why) for each in link.interfaces
            ),
            pin_dir=str(self.settings.pin_dir),
            digests={name: each.table.digest() for name, each in wanted.services.items()},
            unresolved=tuple(
                f"{service}/{name}"
                for (service, name), each in wanted.backends.items()
                if each.next_hop is None
            ),
            limits={
                "services": self.maps.services.max_entries - 1,
                "backends": self.maps.backends.max_entries - 1,
                "vips": self.maps.vips.max_entries,
            },
            problems=self.notes + problems,
        )
        if status != self._reported:
            self._put_status(status)

    def _put_status(self, status: NodeStatus) -> None:
        try:
            if not self._lease:
                self._lease = self.store.grant(LEASE_SECONDS)
            put = Put(keys.node(status.node), status.model_dump_json(), lease=self._lease)
            self.store.commit([put])
            self._reported = status
        except (StoreUnavailable, ConflictError) as error:
            log.error("store: status not written: %s", error)

    def _renew(self) -> None:
        try:
            alive = self._lease and self.store.renew(self._lease)
        except StoreUnavailable:
            return
        if not alive:
            self._lease = 0
            if self._reported is not None:
                self._put_status(self._reported)

    def _leave(self) -> None:
        """Take the status back; the data path stays."""
        try:
            if self._lease:
                self.store.revoke(self._lease)
        except StoreUnavailable as error:
            log.error("store: %s", error)
        log.info("stopped; the data path stays attached")
