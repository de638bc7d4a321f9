"""A node's status that is too large for the store, told with less. Pure.

etcd takes 1.5 MiB at once, and 4,000 backends whose health has changed five times are more. What counts
is told as long as anything is: the revision, which rollouts and `--wait` go by, before votes, and votes
before what only people read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lb.core.health import State
from lb.model.reports import BackendHealth, NodeStatus, Problem

PROBLEMS = 100
WORDS = 300  # characters of each of them

_Health = dict[str, BackendHealth]


def told(status: NodeStatus) -> Iterator[NodeStatus]:
    """The status, and then ever less of it, with a problem that says what is left out. The last one is
    small whatever there is to tell."""
    yield status
    now = status.health
    few = {"problems": tuple(_few(status))}
    eventful: _Health = {path: each if _is_eventful(each) else _past(each) for path, each in now.items()}
    yield _without("the history of healthy backends", status, {"health": eventful})
    present: _Health = {path: _past(each) for path, each in now.items()}
    left_out = "the history of backends"
    yield _without(left_out, status, {"health": present, **few})
    votes: _Health = {path: _vote(each) for path, each in now.items()}
    left_out += ", and what checks say"
    yield _without(left_out, status, {"health": votes, **few})
    views: dict[str, Any] = {"digests": {}, "unresolved": (), "full": {}}
    left_out += ", digests of tables, unresolved and full backends"
    yield _without(left_out, status, {"health": votes, **views, **few})
    left_out = "the health of backends, digests of tables, unresolved and full backends"
    yield _without(left_out, status, {"health": {}, **views, **few})
    left_out += ", shares of pools"
    yield _without(left_out, status, {"health": {}, "shares": {}, **views, **few})


def unheard(status: NodeStatus) -> NodeStatus:
    """Of a node whose votes are too many for the store, in a document of their own as well."""
    problem = Problem(
        where=status.node,
        message="its votes on the health of backends are too many for the store: other nodes don't"
        " count them",
        hint=_HINT,
        warning=True,
    )
    return _with([problem, *status.problems], status)


_HINT = (
    "raise --max-request-bytes of the etcd servers, and start lbd again; or let a node check fewer"
    " backends"
)


def _without(what: str, status: NodeStatus, changes: dict[str, Any]) -> NodeStatus:
    problem = Problem(
        where=status.node,
        message=f"its status is too large for the store, and told without {what}",
        hint=_HINT,
        warning=True,
    )
    shorter = status.model_copy(update=changes)
    return _with([*shorter.problems, problem], shorter)


def _with(problems: Iterable[Problem], status: NodeStatus) -> NodeStatus:
    return status.model_copy(update={"problems": tuple(problems)})


def _is_eventful(health: BackendHealth) -> bool:
    """Is it anything but plainly healthy? Then people ask how it came to that."""
    return (
        health.state != State.HEALTHY
        or bool(health.error)
        or health.share < 1
        or health.ejection is not None
    )


def _past(health: BackendHealth) -> BackendHealth:
    return health.model_copy(update={"history": ()})


def _vote(health: BackendHealth) -> BackendHealth:
    """What it is worth to other nodes."""
    return health.model_copy(update={"history": (), "error": "", "latency": None})


def _few(status: NodeStatus) -> Iterator[Problem]:
    """Those of the node as a whole first: `--wait` goes by them."""
    problems = sorted(status.problems, key=lambda each: (each.where != status.node, each.warning))
    for each in problems[:PROBLEMS]:
        texts = {"where": each.where, "message": each.message, "hint": each.hint}
        yield each.model_copy(update={name: _cut(text) for name, text in texts.items()})
    if len(problems) > PROBLEMS:
        yield Problem(
            where=status.node,
            message=f"{len(problems) - PROBLEMS:,} more problems are not told",
            hint="they are, once those above are put right",
            warning=True,
        )


def _cut(text: str) -> str:
    return text if len(text) <= WORDS else text[: WORDS - 1] + "…"
