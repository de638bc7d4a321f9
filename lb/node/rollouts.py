"""Runs the rollouts of the store, on the one node that holds their lock, in a thread of its own.

    look -> decide (lb/core/rollout.py) -> commit -> look again, until there is nothing to do

The lock is a key under a lease: a node that dies loses it within LEASE_SECONDS, and another goes on
with what the documents say. It only saves work: each commit compares the documents that it was decided
on, and the lock, so nothing is done twice whoever runs.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lb.core import rollout as core
from lb.errors import (
    ConflictError,
    LbError,
    NotFoundError,
    RevisionCompacted,
    StoreDenied,
    StoreUnavailable,
    UserError,
)
from lb.model import keys
from lb.model.reports import Problem
from lb.model.rollout import Rollout, RolloutLock, Transition
from lb.node.analyst import Analyst
from lb.node.happenings import WallClock
from lb.node.hook import Courier, post
from lb.settings import Checks
from lb.store import rollouts as stored
from lb.store.base import Compare, Put, Store
from lb.store.rollouts import Found, Sight

log = logging.getLogger("lbd")

LEASE_SECONDS = 5.0
RENEW_SECONDS = 1.5
RETRY_SECONDS = 1.0
IDLE_SECONDS = 30.0  # between two looks while nothing is under way: the watch tells of what begins
DENIED_SECONDS = 30.0  # that a node stays away which may not run them
_OF_ANOTHER = "if a newer version of lb wrote it, upgrade this node; else write a valid one"
_SEE_LOG = "the log of this node's lbd has it: journalctl -u lbd"
AT_ONCE = 20  # transitions in a row, after which others have their turn


@dataclass
class Lock:
    """Who runs the rollouts."""

    store: Store
    node: str
    held: Compare | None = None  # that it still is ours
    _lease: int = 0
    _renewed: float = 0.0

    def hold(self, now: float) -> bool:
        """Is it ours, now that somebody has asked? `now`: monotonic. Raises StoreUnavailable."""
        if self.held and now < self._renewed + RENEW_SECONDS:
            return True
        if self.held and self.store.renew(self._lease):
            self._renewed = now
            return True
        self.held, self._lease = None, 0
        if self.store.get(keys.ROLLOUT_LOCK) is not None:
            return False
        lease = self.store.grant(LEASE_SECONDS)
        text = RolloutLock(node=self.node).model_dump_json()
        put = Put(keys.ROLLOUT_LOCK, text, lease=lease)
        try:
            revision = self.store.commit([put], [Compare(keys.ROLLOUT_LOCK, 0)])
        except (ConflictError, NotFoundError):  # another node was faster; or we were too slow
            self.store.revoke(lease)
            return False
        self._lease, self._renewed = lease, now
        self.held = Compare(keys.ROLLOUT_LOCK, revision)
        log.info("rollouts: this node runs them")
        return True

    def check(self) -> None:
        """A commit that compared it was refused: look whether it is still ours. Raises
        StoreUnavailable."""
        item = self.store.get(keys.ROLLOUT_LOCK)
        if self.held and (item is None or item.mod_revision != self.held.mod_revision):
            self.give_up()

    def give_up(self) -> None:
        """Let another node have it at once. Raises StoreUnavailable."""
        lease, self._lease, self.held = self._lease, 0, None
        if lease:
            self.store.revoke(lease)


@dataclass
class Rollouts:
    """The thread. `tell` hears which services have a rollout under way, whenever that changes, or what
    there is to be said of them does: `problems`, for the node's status."""

    store: Store
    node: str
    tell: Callable[[frozenset[str]], None] = lambda _: None
    clock: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    exec_dir: Path = Checks().exec_dir
    problems: tuple[Problem, ...] = field(default=(), init=False)
    known: Mapping[str, Rollout] = field(default_factory=dict, init=False)  # replaced, never changed
    _lock: Lock = field(init=False)
    _live: frozenset[str] | None = None
    _told: dict[str, tuple[str, int]] = field(default_factory=dict)  # service: rollout, transitions
    _couriers: dict[str, Courier] = field(default_factory=dict)  # by URL
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _analyst: Analyst = field(init=False)
    _failing: dict[str, str] = field(default_factory=dict)
    _found: list[Problem] = field(default_factory=list)  # in this turn
    _wall: WallClock = field(init=False)
    _jumps: dict[str, float] = field(default_factory=dict)  # by service: seconds not in its document

    def __post_init__(self) -> None:
        self._lock = Lock(self.store, self.node)
        self._analyst = Analyst(self.store, self.exec_dir)
        self._wall = WallClock(self.clock, self.steady)

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and let another node go on at once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(LEASE_SECONDS)
            if self._thread.is_alive():
                return  # it waits for the store: then the lease ends by itself
        with suppress(StoreUnavailable):
            self._lock.give_up()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
                continue
            except RevisionCompacted:
                continue
            except StoreDenied as error:
                self._complain("", error)
                with suppress(StoreUnavailable):
                    self._lock.give_up()  # another node may have the right
                self._stopping.wait(DENIED_SECONDS)
            except LbError as error:
                self._complain("", error)
            except Exception:  # a bug here must not end what forwards packets
                log.exception("rollouts: internal error; trying again every %g s", RETRY_SECONDS)
            self._stopping.wait(RETRY_SECONDS)

    def _follow(self) -> None:
        """Take turns until what has to be watched is something else: who runs rollouts has to know what
        nodes report, nobody else."""
        is_ours = self._lock.held is not None
        prefix = keys.EVERYTHING if is_ours else keys.ROLLOUTS
        after = self.store.read(keys.ROLLOUTS).revision
        with self.store.watch(prefix, after=after) as watch:
            while not self._stopping.is_set():
                until = time.monotonic() + self.turn(time.monotonic())
                self._failing.pop("", None)
                if is_ours != (self._lock.held is not None):
                    return
                while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
                    batch = watch.next(min(left, RETRY_SECONDS))
                    if batch and any(self._matters(event.key) for event in batch.events):
                        break

    def _matters(self, key: str) -> bool:
        if key.startswith((keys.ROLLOUTS, keys.ROLLOUT_LOCK, keys.NODES)):
            return True
        services = {keys.service(name) for name in self._live or ()}
        backends = tuple(keys.backend(name, "") for name in self._live or ())
        return key in services or key.startswith(backends)

    def under_way(self) -> frozenset[str]:
        """Services with a rollout, before the thread begins to tell; none while the store is away."""
        try:
            items = self.store.read(keys.ROLLOUTS).items
        except StoreUnavailable:
            return frozenset()
        found = []
        for item in items:
            with suppress(UserError):
                found.append(stored.parse(item).rollout)
        return frozenset(each.service for each in found if not each.is_over)

    def turn(self, monotonic: float) -> float:
        """Do what is to be done now; returns for how many seconds there is nothing more to do, if
        nothing happens. Raises StoreUnavailable."""
        self._found = []
        wait = self._turn(monotonic)
        if self.problems != tuple(self._found):
            self.problems = tuple(self._found)
            self.tell(self._live or frozenset())
        return wait

    def _turn(self, monotonic: float) -> float:
        live: list[Found] = []
        known: dict[str, Rollout] = {}
        for item in self.store.read(keys.ROLLOUTS).items:
            try:
                found = stored.parse(item)
            except UserError as error:
                self._complain(item.key, error)
                self._say(item.key, f"no node of this version runs it: {error.message}", _OF_ANOTHER)
                continue
            self._failing.pop(item.key, None)
            known[found.rollout.service] = found.rollout
            self._notify(found.rollout, is_ours=self._lock.held is not None)
            if not found.rollout.is_over:
                live.append(found)
        self.known = known
        self._dismiss(self._couriers.keys() - {each.rollout.spec.notify for each in live})
        names = frozenset(each.rollout.service for each in live)
        if names != self._live:
            self._live = names
            self.tell(names)
        if not live:
            self._lock.give_up()
            self._analyst.forget()
            return IDLE_SECONDS
        jump, was_ours = self._wall.jump(), self._lock.held is not None
        if not self._lock.hold(monotonic):
            self._analyst.forget()
            self._jumps.clear()
            return RETRY_SECONDS
        if jump and was_ours:
            log.warning("the clock was set by %+.0f s: the times of rollouts go with it", jump)
            self._jumps = {name: self._jumps.get(name, 0.0) + jump for name in names}
        return min(RENEW_SECONDS, *(self._guarded(each) for each in live))

    def _guarded(self, found: Found) -> float:
        """One rollout's trouble is no other one's."""
        service = found.rollout.service
        try:
            wait = self._advance(found)
            self._failing.pop(service, None)
            return wait
        except ConflictError:
            self._analyst.forget()
            self._lock.check()
            return 0.0  # somebody was faster: look again
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - one rollout's bug, too
            self._failed(service, service, "it stands still", error)
        return RETRY_SECONDS

    def _advance(self, found: Found) -> float:
        service = found.rollout.service
        for _ in range(AT_ONCE):
            now = self._wall.now()
            seen = stored.sight(self.store, service)
            if self._lock.held is None:  # lost over another rollout of this turn
                return 0.0
            found = self._on_time(found, now, self._lock.held)
            looked = self._look(found, seen, now, self._lock.held)
            found = looked or found
            decision = core.decide(found.rollout, seen.view, now, self.node)
            if decision is None:
                if looked is None:
                    return RETRY_SECONDS
                due = min(core.due(found.rollout, now), self._analyst.due(found.rollout, now))
                return max(0.0, due - now)
            found = stored.commit(
                self.store,
                found,
                seen,
                decision,
                who=f"lbd@{self.node}",
                tail=secrets.token_hex(4),
                now=now,
                compares=[self._lock.held],
            )
            status = found.rollout.status
            log.info("rollout %s: %s, step %d: %s", service, status.phase, status.step, decision.said)
            self._notify(found.rollout, is_ours=True)
            if found.rollout.is_over:
                return RENEW_SECONDS
        return 0.0

    def _on_time(self, found: Found, now: float, lock: Compare) -> Found:
        """The rollout with its times by our clock, and written so. Raises ConflictError,
        StoreUnavailable."""
        service = found.rollout.service
        jump = self._jumps.pop(service, 0.0)
        try:
            self._analyst.on_time(service, now, jump)
            after = core.on_time(found.rollout, now, jump)
            return found if after == found.rollout else stored.replace(self.store, found, after, lock)
        except LbError:
            # It may be written all the same, and so twice. Times that get too late by that become now;
            # those that get too early would cut a step short: let its time begin anew.
            self._jumps[service] = max(0.0, jump)
            raise

    def _look(self, found: Found, seen: Sight, now: float, lock: Compare) -> Found | None:
        """The rollout after the analyst's look. None if that failed: no deadline or ask waits for it.
        Raises ConflictError, StoreUnavailable."""
        service = found.rollout.service
        what = f"{service}: the analysis"
        try:
            after = self._analyst.look(found, seen, now, lock)
        except (ConflictError, StoreUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 - a bug in it, too, must not hold up the deadline
            self._failed(service, what, "its analysis", error)
        else:
            self._failing.pop(what, None)
            return after
        return None

    def _notify(self, rollout: Rollout, *, is_ours: bool) -> None:
        """Tell of transitions that were not told. Whoever takes over tells the last one again: better
        twice than never; who listens knows it by its number."""
        made = rollout.status.made
        before = self._told.get(rollout.service)
        if before is None or before[0] != rollout.id:
            began = max(0, made - 1) if before is None else 0
        else:
            began = before[1]
        if not is_ours:
            # Not told by us: whoever runs it does. If that one dies, the last one is told again.
            self._told[rollout.service] = rollout.id, max(0, made - 1)
            return
        self._told[rollout.service] = rollout.id, made
        if not rollout.spec.notify or (before is None and rollout.is_over):
            return
        for number, transition in rollout.status.since_number(began):
            document = json.dumps(notification(rollout, number, transition, self.node))
            url = rollout.spec.notify
            courier = self._couriers.setdefault(url, Courier("rollout webhook"))
            courier.send(partial(post, url, document))

    def _dismiss(self, urls: Iterable[str]) -> None:
        """End the couriers to these URLs, when all is delivered: each CI job may name one of its own."""
        for url in urls:
            if self._couriers[url].end():
                del self._couriers[url]

    def _failed(self, service: str, what: str, said: str, error: Exception) -> None:
        """Tell of it in the log, as `what`, and in the status; of a bug with its traceback."""
        if isinstance(error, LbError):
            self._complain(what, error)
            why, hint = error.message, error.hint
        else:
            log.error("rollouts: %s: internal error", what, exc_info=error)
            why, hint = "internal error", _SEE_LOG
        self._say(keys.rollout(service), f"{said}: {why}", hint)

    def _say(self, where: str, message: str, hint: str) -> None:
        """In the status of this node, until a turn goes well."""
        problem = Problem(where=where, message=message, hint=hint)
        if problem not in self._found:
            self._found.append(problem)

    def _complain(self, what: str, error: LbError) -> None:
        """Once, not with each try."""
        if self._failing.get(what) != error.message:
            self._failing[what] = error.message
            log.error("rollouts: %s%s", f"{what}: " if what else "", error)


def notification(rollout: Rollout, number: int, transition: Transition, node: str) -> dict[str, object]:
    """What a webhook is posted."""
    return {
        "service": rollout.service,
        "rollout": rollout.id,
        "number": number,
        "pool": rollout.spec.pool,
        "steps": list(rollout.spec.steps),
        "ending": rollout.status.ending,
        "node": node,
        **transition.model_dump(mode="json"),
    }
