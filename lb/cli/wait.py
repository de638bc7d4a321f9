"""--wait: return when every live node has applied a revision, or say who has not, and why."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from pydantic import ValidationError

from lb.errors import CapacityError, DatapathError, LbError, NotAppliedError
from lb.model import keys
from lb.model.objects import NodeStatus, Problem
from lb.store.base import Store


def until_applied(
    store: Store,
    revision: int,
    timeout: float,
    about: Collection[str],
    before: Mapping[str, NodeStatus],
) -> list[str]:
    """Wait until all registered nodes report `revision`; returns their names.

    Raises NotAppliedError, and as CapacityError or DatapathError the first problem that a node has
    with one of the keys `about`, or that it didn't have `before` and that keeps it from going on. A
    node whose lease ends meanwhile is no longer waited for; one that joins is.
    """
    deadline = time.monotonic() + timeout
    snapshot = store.read(keys.NODES)
    nodes: dict[str, NodeStatus] = {}
    for item in snapshot.items:
        _take(nodes, item.key, item.value)
    with store.watch(keys.NODES, after=snapshot.revision) as watch:
        while True:
            if not nodes:
                raise NotAppliedError(
                    "the change is stored, but no node is there to apply it",
                    hint="start lbd on a node: systemctl start lbd; it applies what is stored",
                )
            for status in nodes.values():
                _raise_problem(status, revision, about, before.get(status.node))
            late = sorted(name for name, each in nodes.items() if each.revision < revision)
            if not late:
                return sorted(nodes)
            left = deadline - time.monotonic()
            batch = watch.next(left) if left > 0 else None
            if batch is None and time.monotonic() >= deadline:
                raise _too_late(late, nodes, revision, timeout)
            for event in batch.events if batch else ():
                _take(nodes, event.key, event.value)


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


def _error(node: str, problem: Problem) -> LbError:
    kind = CapacityError if problem.kind == CapacityError.__name__ else DatapathError
    return kind(
        f"stored, but node {node} could not apply it: {problem.where}: {problem.message}",
        hint=problem.hint or "`lbctl status` shows all problems",
    )


def _too_late(
    late: list[str], nodes: Mapping[str, NodeStatus], revision: int, timeout: float
) -> NotAppliedError:
    who = ", ".join(f"{name} (at revision {nodes[name].revision})" for name in late)
    known = [f"{p.message} ({p.hint})" for name in late for p in nodes[name].problems]
    return NotAppliedError(
        f"revision {revision} is stored, but after {timeout:g} s not applied by {who}",
        hint="; ".join(["`lbctl status` shows what each node does", *known]),
    )
