"""How a command changes desired state: draft, check, compare, commit, wait.

An edit is a function that writes into a Draft of the current state. The state as it would be then is
checked by the same code that nodes run (lb/core/state.py): what it would quarantine is refused here,
and nothing is written. The commit compares the keys that the edit read; when somebody else was
faster, the edit runs again on what is there then, so it overwrites only the settings that it is
about, and an `add` finds that the name is taken.

Checks that look at all documents (two services with one VIP, a backend without its service) need more
than that: two edits that touch different keys could each pass. So every structural change also
rewrites the configuration document, whose key is thereby their lock; weights, drains and splits, which
can't contradict anything, go without.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from lb.cli import words
from lb.cli.difference import Difference, between
from lb.cli.moves import Move, moves
from lb.cli.output import note
from lb.cli.record import recording, stored
from lb.cli.rehash import rehashes
from lb.cli.rollout_view import refuse_if_under_way, under_way
from lb.cli.session import Session, state_of
from lb.cli.takers import refuse_nobody, remarks
from lb.cli.wait import Waited, telling, until_applied
from lb.core import room, sizes
from lb.core.conflicts import claimed, contested
from lb.core.state import DesiredState, reason
from lb.errors import CapacityError, ConflictError, StoreUnavailable, UserError
from lb.model import keys
from lb.model.objects import Backend, ClusterConfig, Document, Service
from lb.store.base import Compare, Delete, KeyValue, Put, Snapshot, Unwritten
from lb.store.rollouts import leftovers

# What etcd takes in one transaction is 128 compares, unless it was told otherwise. More than this are
# replaced by a few: the lock, and that nobody has written any service or backend meanwhile (or rollout).
MANY_COMPARES = 100
ATTEMPTS = 50  # of writers who keep outrunning this one; each round some writer has got through
RETRY_SECONDS = 0.02  # mean pause between them


@dataclass
class Draft:
    """The state that an edit begins with, and what it wants to be different."""

    snapshot: Snapshot
    state: DesiredState
    wanted: dict[str, Document | None] = field(default_factory=dict)  # by key; None = delete
    read: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def service(self, name: str) -> Service:
        """A service that the edit relies on."""
        self.read.add(keys.service(name))
        if name not in self.state.services:
            raise words.no_such_service(name, self.state)
        return self.state.services[name]

    def backend(self, service: str, name: str) -> Backend:
        """A backend that the edit relies on."""
        self.service(service)
        self.read.add(keys.backend(service, name))
        if (service, name) not in self.state.backends:
            raise words.no_such_backend(service, name, self.state)
        return self.state.backends[service, name]

    def add(self, document: Service | Backend) -> None:
        """Write a document that must not be there yet."""
        key = key_of(document)
        if key in self.state.versions:
            noun, _, name = words.label(key).partition(" ")
            path = name.replace("/", " ")
            raise ConflictError(
                f"{noun} {name} exists already",
                hint=f"`lbctl {noun} show {path}` shows it; another name, or `lbctl {noun} rm "
                f"{path}` first",
            )
        self.put(document)

    def put(self, document: Service | Backend) -> None:
        """Write a document, new or changed."""
        key = key_of(document)
        self.read.add(key)
        if self._now(document) != document:
            self.wanted[key] = document

    def remove(self, key: str) -> None:
        """Delete a key that is there."""
        self.read.add(key)
        self.wanted[key] = None

    def keys_under(self, prefix: str) -> list[str]:
        """Keys that are there, unreadable documents included."""
        return [item.key for item in self.snapshot.items if item.key.startswith(prefix)]

    def remove_service(self, name: str) -> None:
        """Delete a service, its backends and its table."""
        for key in (keys.service(name), *self.keys_under(keys.backend(name, ""))):
            self.remove(key)
        for key in (keys.table(name), *self.keys_under(keys.table(f"{name}/"))):
            if key in self.state.versions:
                self.wanted[key] = None  # not compared: nodes write it, and it goes anyway

    def _now(self, document: Document) -> Document | None:
        if isinstance(document, Service):
            return self.state.services.get(document.name)
        assert isinstance(document, Backend)
        return self.state.backends.get((document.service, document.name))

    def structural(self) -> bool:
        """Whether it could contradict a change of other keys."""
        return any(
            document is None or _place(self._now(document)) != _place(document)
            for document in self.wanted.values()
        )


def key_of(document: Service | Backend) -> str:
    """Where a document lives."""
    if isinstance(document, Service):
        return keys.service(document.name)
    return keys.backend(document.service, document.name)


def _place(document: Document | None) -> tuple[object, ...] | None:
    """What of a document others could contradict (lb/core/conflicts.py), or takes entries of maps that
    all share (entries())."""
    if isinstance(document, Service):
        return *contested(document), document.rules, document.mirror is not None
    if isinstance(document, Backend):
        return claimed(document)
    return None


Edit = Callable[[Draft], None]


@dataclass(frozen=True)
class Proposal:
    """A checked change, not yet written."""

    draft: Draft
    after: DesiredState
    operations: tuple[Put | Delete, ...]
    record: str  # key of the record of it; "" if nothing changes
    compares: tuple[Compare | Unwritten, ...]
    differences: tuple[Difference, ...]

    @property
    def before(self) -> DesiredState:
        """The state that it was made from."""
        return self.draft.state


def propose(session: Session, edit: Edit) -> Proposal:
    """Run the edit on what is in the store now, and check the outcome. Raises UserError,
    NotFoundError, ConflictError, CapacityError."""
    snapshot = session.snapshot()
    draft = Draft(snapshot, state_of(snapshot))
    edit(draft)
    operations: list[Put | Delete] = [
        Delete(key) if document is None else Put(key, document.model_dump_json())
        for key, document in draft.wanted.items()
    ]
    reads = set(draft.read)
    left = _left_of_rollouts(draft)
    operations += [Delete(item.key) for item in left]
    over = [Compare(e.key, e.mod_revision) for e in left if e.key.startswith(keys.ROLLOUTS)]
    many = len(reads) + len(over) > MANY_COMPARES
    if operations and (many or draft.structural() or keys.CONFIG not in draft.state.versions):
        operations.append(_config(draft))
        reads.add(keys.CONFIG)
    compares: list[Compare | Unwritten] = [
        Compare(key, draft.state.versions.get(key, 0))
        for key in sorted(reads)
        if not many or key == keys.CONFIG
    ]
    if many:
        prefixes = (keys.SERVICES, keys.BACKENDS, *([keys.ROLLOUTS] if over else []))
        compares += [Unwritten(each, snapshot.revision) for each in prefixes]
    else:
        compares += over  # none has begun meanwhile
    after = _after(draft, operations)
    _check(draft, after)
    if not session.force:
        refuse_if_under_way(snapshot, draft.state, draft.wanted)
        refuse_nobody(draft.state, after, draft.wanted)
    draft.notes += remarks(draft.state, after, draft.wanted)
    record = ""
    if operations:
        record, kept = recording(snapshot, draft.wanted)
        operations += kept
    return Proposal(
        draft=draft,
        after=after,
        operations=tuple(operations),
        record=record,
        compares=tuple(compares),
        differences=tuple(between(draft.state, after, draft.wanted)),
    )


def perform(session: Session, edit: Edit) -> None:
    """The whole way of a change, from the edit to what is printed."""
    proposal = propose(session, edit)
    revision: int | None = None
    if proposal.operations and not session.dry_run:
        proposal, revision = _commit(session, edit, proposal)
    for text in proposal.draft.notes:
        note(text)
    lines = [each.text for each in proposal.differences] or ["unchanged"]
    rehashed = rehashes(proposal.before, proposal.after)
    lines += [each.text for each in rehashed]
    slots: list[Move] | None = None
    if session.dry_run:
        slots = moves(proposal.before, proposal.after)
        lines += [each.text for each in slots]
        lines.append("dry run: nothing was written")
    elif revision is not None:
        lines.append(f"stored at revision {revision}")
    done = {
        "changed": bool(proposal.differences),
        "dry_run": session.dry_run,
        "revision": revision,
        "changes": [each.as_dict() for each in proposal.differences],
        "slots": None if slots is None else [each.as_dict() for each in slots],
        "rehashed": [each.as_dict() for each in rehashed],
        "applied_by": None,
        "lost": None,
        "notes": proposal.draft.notes,
    }
    if session.dry_run or not session.wait:
        session.emit(done, *lines)
        return
    session.say(*lines)  # people see what is stored while nodes come to it, and if they don't
    with telling(done):
        waited = _wait(session, proposal, revision)
    lines = [f"applied by {', '.join(waited.applied)}"]
    if waited.lost:
        lines.append(f"not by {', '.join(waited.lost)}: lost; see `lbctl node list`")
    session.emit({**done, "applied_by": waited.applied, "lost": waited.lost}, *lines)


def _commit(session: Session, edit: Edit, proposal: Proposal) -> tuple[Proposal, int | None]:
    """Write it; when somebody else was faster, draft it anew from what is there then."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            stored.set(session.store.commit(proposal.operations, proposal.compares))
            return proposal, stored.get()
        except ConflictError:
            if attempt == ATTEMPTS:
                raise
        except StoreUnavailable:
            # Whether it was done may not be known; its record, which is of this try alone, tells.
            with suppress(StoreUnavailable):
                if found := session.store.get(proposal.record):
                    stored.set(found.mod_revision)
                    return proposal, found.mod_revision
            raise
        # Random, so that two writers who collided don't do it again in step.
        time.sleep(random.uniform(0, 2 * RETRY_SECONDS))
        proposal = propose(session, edit)
        if not proposal.operations:
            break
    return proposal, None


def _left_of_rollouts(draft: Draft) -> list[KeyValue]:
    """What is stored of the rollouts of services that go; and of those that come, if others of their
    names went another way. A rollout under way is left to its nodes: it tells those who wait for it."""
    services = {
        key.removeprefix(keys.SERVICES)
        for key, document in draft.wanted.items()
        if key.startswith(keys.SERVICES) and (document is None or key not in draft.state.versions)
    }
    services -= {each.service for each in under_way(draft.snapshot)}
    return leftovers(draft.snapshot.items, services) if services else []


def _config(draft: Draft) -> Put:
    for item in draft.snapshot.items:
        if item.key == keys.CONFIG:
            return Put(keys.CONFIG, item.value)
    config = ClusterConfig(seed=secrets.token_hex(16))
    return Put(keys.CONFIG, config.model_dump_json())


def _after(draft: Draft, operations: Iterable[Put | Delete]) -> DesiredState:
    """The state as it would be, read as a node reads it that has the present one in force."""
    revision = draft.snapshot.revision + 1
    items = {item.key: item for item in draft.snapshot.items}
    for each in operations:
        if isinstance(each, Put):
            # A key that is there keeps its age; a new one gets it with this revision.
            age = items[each.key].create_revision if each.key in items else revision
            items[each.key] = KeyValue(each.key, each.value, revision, age)
        else:
            items.pop(each.key, None)
    return state_of(Snapshot(revision, tuple(items.values())), draft.state)


def _check(draft: Draft, after: DesiredState) -> None:
    before = {problem.where for problem in draft.state.problems}
    for problem in after.problems:
        # What was wrong before, and isn't touched, must not keep people from changing the rest.
        if problem.where in draft.wanted or problem.where not in before:
            raise UserError(f"{words.label(problem.where)}: {reason(problem)}", hint=problem.hint)
    _check_capacity(draft.state, after)


def _check_capacity(before: DesiredState, after: DesiredState) -> None:
    """Refuse what the maps of some node can't hold. Removing is always possible."""
    old, new = room.entries(before), room.entries(after)
    for name, node in sorted(after.nodes.items()):
        for what, limit in sorted(node.limits.items()):
            if old.get(what, 0) < new.get(what, 0) > limit:
                raise CapacityError(
                    f"{what} map of node {name} is full ({limit}): {new[what]} entries are needed",
                    hint=sizes.hint([what], name),
                )


def _wait(session: Session, proposal: Proposal, revision: int | None) -> Waited:
    draft = proposal.draft
    if revision is None:  # nothing to change: then wait for what is there already
        revision = draft.state.revision_to_apply
    about = set(draft.wanted) | draft.read
    return until_applied(session.store, revision, session.timeout, about, draft.state.nodes)
