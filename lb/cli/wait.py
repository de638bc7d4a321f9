"""--wait: return when every live node has applied a revision, or say who has not, and why."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ValidationError

from lb.errors import CapacityError, DatapathError, LbError, NotAppliedError
from lb.model import keys
from lb.model.reports import NodeStatus, Problem
from lb.store.base import Store

LOST_SECONDS = 5.0  # for a lost node to come back: when etcd was away, all leases have ended at once


@dataclass(frozen=True)
class Waited:
    """Who has applied it, and which nodes were not waited for because they are lost."""

    applied: list[str]
    lost: list[str]


@contextmanager
def telling(stored: Mapping[str, object]) -> Iterator[None]:
    """Around a wait: an error of it tells programs what was stored all the same."""
    try:
        yield
    except LbError as error:
        error.details = {**stored, **error.details}
        raise


def until_applied(
    store: Store,
    revision: int,
    timeout: float,
    about: Collection[str],
    before: Mapping[str, NodeStatus],
) -> Waited:
    """Wait until all live nodes report `revision`.

    Raises NotAppliedError, and as CapacityError or DatapathError the first problem that a node has
    with one of the keys `about`, or that it didn't have `before` and that keeps it from going on. A
    node whose lease has ended is waited for LOST_SECONDS, as long as others are alive; one that joins
    is waited for. `details` of these errors: nodes by how far they are (`applied_by`, `late`, `lost`).
    """
    begin = time.monotonic()
    deadline, patience = begin + timeout, begin + min(timeout, LOST_SECONDS)
    members = {each.key.removeprefix(keys.MEMBERS) for each in store.read(keys.MEMBERS).items}
    snapshot = store.read(keys.NODES)
    nodes: dict[str, NodeStatus] = {}
    for item in snapshot.items:
        _take(nodes, item.key, item.value)
    with store.watch(keys.NODES, after=snapshot.revision) as watch:
        while True:
            lost = sorted(members - nodes.keys())
            if not nodes and not lost:
                raise NotAppliedError(
                    "the change is stored, but no node is there to apply it",
                    hint="start lbd on a node: systemctl start lbd; it applies what is stored",
                    details=_standing(nodes, lost, revision),
                )
            with telling(_standing(nodes, lost, revision)):
                for status in nodes.values():
                    _raise_problem(status, revision, about, before.get(status.node))
            late = sorted(name for name, each in nodes.items() if each.revision < revision)
            now = time.monotonic()
            if nodes and not late and (not lost or now >= patience):
                return Waited(sorted(nodes), lost)
            if now >= deadline:
                raise _too_late(late, lost, nodes, revision, timeout)
            batch = watch.next((deadline if late or not nodes else patience) - now)
            for event in batch.events if batch else ():
                _take(nodes, event.key, event.value)


def _standing(nodes: Mapping[str, NodeStatus], lost: list[str], revision: int) -> dict[str, object]:
    """Who has applied it and who has not, for programs."""
    return {
        "applied_by": sorted(name for name, each in nodes.items() if each.revision >= revision),
        "late": {name: e.revision for name, e in sorted(nodes.items()) if e.revision < revision},
        "lost": lost,
    }


def _take(nodes: dict[str, NodeStatus], key: str, text: str | None) -> None:
    name = key.removeprefix(keys.NODES)
    if text is None:
        nodes.pop(name, None)
        return
    try:
        nodes[name] = NodeStatus.model_validate_json(text)
    except ValidationError:
        return  # quarantined: its last good report counts


def _raise_problem(
    status: NodeStatus, revision: int, about: Collection[str], before: NodeStatus | None
) -> None:
    names = set()
    for key in about:
        path = key.removeprefix(keys.ROOT)
        # A problem is named by its key, or as service/backend as in `unresolved`.
        names |= {key, path, path.partition("/")[2]}
    for problem in status.problems:
        if problem.warning:
            continue
        if status.revision >= revision:
            relevant = problem.where in names
        else:  # what stops a node as a whole is under its own name, and it stays at its revision
            known = before.problems if before else ()
            relevant = problem.where == status.node and problem not in known
        if relevant:
            raise _error(status.node, problem)
    # Of many, not each has a problem of its own.
    if status.revision >= revision and (out := sorted(names.intersection(status.left_out))):
        raise CapacityError(
            f"stored, but node {status.node} has no room for {', '.join(out)}",
            hint="`lbctl status` shows which map is full, and what raises it",
        )


def _error(node: str, problem: Problem) -> LbError:
    kind = CapacityError if problem.kind == CapacityError.__name__ else DatapathError
    return kind(
        f"stored, but node {node} could not apply it: {problem.where}: {problem.message}",
        hint=problem.hint or "`lbctl status` shows all problems",
    )


def _too_late(
    late: list[str],
    lost: list[str],
    nodes: Mapping[str, NodeStatus],
    revision: int,
    timeout: float,
) -> NotAppliedError:
    behind = [f"{name} (at revision {nodes[name].revision})" for name in late]
    who = ", ".join([*behind, *(f"{name} (lost)" for name in lost)])
    known = [f"{p.message} ({p.hint})" for name in late for p in nodes[name].problems]
    return NotAppliedError(
        f"revision {revision} is stored, but after {timeout:g} s not applied by {who}",
        hint="; ".join(["`lbctl status` shows what each node does", *known]),
        details=_standing(nodes, lost, revision),
    )
