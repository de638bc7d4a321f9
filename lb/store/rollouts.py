"""Rollouts in the store: what a decision about one is made from, and how it is written.

Nodes and `lbctl rollout abort` both come by here, so that a transition is the same whoever makes it:
the document, the service's split, the record of it, and the copy of one that is over, in one
transaction that compares the document and the service.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from lb.core.canary import View
from lb.core.records import name, recorded, surplus
from lb.core.rollout import Decision
from lb.core.splits import describe, with_split
from lb.core.state import describe_error
from lb.errors import UserError
from lb.model import keys
from lb.model.history import KeyChange
from lb.model.objects import Backend, Service
from lb.model.reports import NodeStatus
from lb.model.rollout import KEPT, Rollout
from lb.store.base import Compare, Delete, KeyValue, Put, Store

MEND = "write a valid document with `lbctl apply -f FILE --force`; with another split, that ends it"
D = TypeVar("D", Backend, NodeStatus)


@dataclass(frozen=True)
class Found:
    """A rollout's document as it is stored."""

    rollout: Rollout
    version: int  # mod_revision


@dataclass(frozen=True)
class Sight:
    """What a decision is made from, and the service's document as text."""

    view: View
    service: str | None


def parse(item: KeyValue) -> Found:
    """Raises UserError for a document that is not valid, or not that of its key."""
    try:
        rollout = Rollout.model_validate_json(item.value)
    except ValidationError as error:
        raise _invalid(item.key, describe_error(error)) from None
    if item.key not in (
        keys.rollout(rollout.service),
        keys.ended_rollout(rollout.service, rollout.id),
    ):
        raise _invalid(item.key, "it is not the document of this key")
    return Found(rollout, item.mod_revision)


def _invalid(key: str, what: str) -> UserError:
    hint = "write a valid document there, or delete it"
    if key.startswith(keys.ROLLOUTS):
        service = key.removeprefix(keys.ROLLOUTS)
        hint = f"lbctl rollout abort {service} deletes it, and leaves the split as it is"
    return UserError(f"{key}: {what}", hint=hint)


def drop_unreadable(store: Store, service: str) -> str | None:
    """Delete the service's rollout if it is no valid document, of which nothing else can come; returns
    what was wrong with it. Raises ConflictError if it was changed meanwhile, StoreUnavailable."""
    item = store.get(keys.rollout(service))
    if item is None:
        return None
    try:
        parse(item)
    except UserError as error:
        store.commit([Delete(item.key)], [Compare(item.key, item.mod_revision)])
        return error.message
    return None


def find(store: Store, service: str) -> Found | None:
    """The service's rollout, under way or the last one. Raises UserError, StoreUnavailable."""
    item = store.get(keys.rollout(service))
    return parse(item) if item else None


def ended(store: Store, service: str) -> list[Rollout]:
    """The service's rollouts that are over, the oldest first. What can't be read is left out."""
    found = []
    for item in store.read(keys.ended_rollout(service, "")).items:
        try:
            found.append(parse(item).rollout)
        except UserError:
            continue
    return sorted(found, key=lambda each: each.id)


def leftovers(items: Iterable[KeyValue], services: Collection[str]) -> list[KeyValue]:
    """Of these keys those that the rollouts of these services wrote."""
    found = []
    for item in items:
        for prefix in (keys.ROLLOUTS, keys.ENDED_ROLLOUTS, keys.EVIDENCE):
            if item.key.startswith(prefix):
                if item.key.removeprefix(prefix).partition("/")[0] in services:
                    found.append(item)
                break
    return found


def sight(store: Store, service: str) -> Sight:
    """Everything that the rollout of a service depends on. The service is read first: what nodes say
    that they have applied is then never older than it. Raises UserError if its document is not valid,
    StoreUnavailable."""
    seen = glance(store, service)
    if seen.view.unreadable:
        raise UserError(f"{keys.service(service)}: {seen.view.unreadable}", hint=MEND)
    return seen


def glance(store: Store, service: str) -> Sight:
    """The same, also of a service whose document is not valid, for people. Raises StoreUnavailable."""
    item = store.get(keys.service(service))
    document, unreadable = None, ""
    if item is not None:
        document, unreadable = _read(item.value)
    backends = _parsed(Backend, store.read(keys.backend(service, "")).items)
    nodes = {each.node: each for each in _parsed(NodeStatus, store.read(keys.NODES).items)}
    members = {each.key.removeprefix(keys.MEMBERS) for each in store.read(keys.MEMBERS).items}
    view = View(
        service=document,
        version=item.mod_revision if item else 0,
        backends=backends,
        nodes=nodes,
        lost=sorted(members - nodes.keys()),
        unreadable=unreadable,
    )
    return Sight(view, item.value if item else None)


def unreadable(store: Store, service: str) -> str:
    """Why the service's document can't be read; empty if it can, or there is none. Raises
    StoreUnavailable."""
    item = store.get(keys.service(service))
    return _read(item.value)[1] if item else ""


def _read(text: str) -> tuple[Service | None, str]:
    """The service, or why there is none."""
    try:
        return Service.model_validate_json(text), ""
    except ValidationError as error:
        return None, describe_error(error)


def _parsed(kind: type[D], items: Iterable[KeyValue]) -> list[D]:
    found = []
    for item in items:
        try:
            found.append(kind.model_validate_json(item.value))
        except ValidationError:
            continue  # quarantined; nodes say so
    return found


def replace(store: Store, found: Found, rollout: Rollout, *compares: Compare) -> Found:
    """Write the document anew, and nothing else. Raises ConflictError if it was changed meanwhile,
    StoreUnavailable."""
    put = Put(keys.rollout(rollout.service), rollout.model_dump_json())
    return Found(rollout, store.commit([put], [Compare(put.key, found.version), *compares]))


def commit(
    store: Store,
    found: Found,
    seen: Sight,
    decision: Decision,
    *,
    who: str,
    tail: str,
    now: float,
    compares: Sequence[Compare] = (),
) -> Found:
    """Write a decision. `who` is it in the history of changes, `tail` makes the key of that record like
    no other. Raises ConflictError if the rollout or the service was changed meanwhile (then nothing is
    written), UserError if the service can't have that split, StoreUnavailable."""
    rollout = decision.rollout
    service = rollout.service
    puts: list[Put | Delete] = [Put(keys.rollout(service), rollout.model_dump_json())]
    if decision.split is not None and seen.view.service is not None:
        try:
            after = with_split(seen.view.service, decision.split)
        except ValidationError as error:
            raise UserError(
                f"the rollout of {service!r} can't write the split {describe(decision.split)}:"
                f" {describe_error(error)}",
                hint=f"write one yourself, then it ends: lbctl service set {service} --split … --force",
            ) from None
        puts.append(Put(keys.service(service), after.model_dump_json()))
        puts += _record(store, seen, after, decision, who, tail, now)
    if rollout.is_over:
        old = sorted(each.key for each in store.read(keys.ended_rollout(service, "")).items)
        if seen.view.service is None:  # the document itself stays, for those who wait for its end
            puts += [Delete(key) for key in (*old, keys.evidence(service))]
        else:
            puts.append(Put(keys.ended_rollout(service, rollout.id), rollout.model_dump_json()))
            puts += [Delete(key) for key in old[: max(0, len(old) + 1 - KEPT)]]
    both = [
        Compare(keys.rollout(service), found.version),
        Compare(keys.service(service), seen.view.version),
    ]
    return Found(rollout, store.commit(puts, [*both, *compares]))


def _record(
    store: Store, seen: Sight, after: Service, decision: Decision, who: str, tail: str, now: float
) -> list[Put | Delete]:
    rollout = decision.rollout
    status = rollout.status
    key = keys.service(rollout.service)
    change = KeyChange(key=key, before=seen.service, after=after.model_dump_json())
    what = f"rollout {rollout.id}: {status.phase}, {describe(decision.split or {})} ({decision.said})"
    record = recorded([change], who, what, now)
    items = store.read(keys.HISTORY).items
    newest = sorted(items, key=lambda each: (each.mod_revision, each.key), reverse=True)
    old = surplus([each.key for each in newest])
    return [Put(name(now, tail), record.model_dump_json()), *(Delete(each) for each in old)]
