"""What lbd says of checks without being asked: warnings in `lbctl status`."""

from __future__ import annotations

from lb.model import keys
from lb.model.reports import Problem


def suspect(node: str) -> Problem:
    """Of a node that is likelier to be broken than what it checks."""
    return Problem(
        where=node,
        message="only this node's checks find most of its backends unhealthy: it goes by what the other"
        " nodes find",
        hint="look at this node's own network: `lbctl check` runs a check from here",
        warning=True,
    )


def panic(service: str, pool: str, threshold: float) -> Problem:
    """Of a pool of which too few are healthy. `threshold` in per cent."""
    return Problem(
        where=keys.service(service),
        message=f"panic: less than {threshold:g} % of pool {pool!r} is healthy, so its unhealthy"
        " backends are used, too",
        hint=f"`lbctl backend list {service}` says what their checks found",
        warning=True,
    )


def spared(service: str, backend: str, words: str) -> Problem:
    """Of a backend that would be ejected if there were room."""
    return Problem(
        where=keys.backend(service, backend),
        message=f"clients' connections fail ({words}), but it stays in use: no more of its pool may be"
        " ejected",
        hint="look at its servers; `passive.share` of `health` is how many may be",
        warning=True,
    )


def late(node: str, seconds: float) -> Problem:
    """Of checks that don't begin when they should: 1 in 100 by so much."""
    return Problem(
        where=node,
        message=f"health checks begin late: 1 in 100 by {seconds:.1f} s or more",
        hint="this node is too busy for its checks: give them a longer interval",
        warning=True,
    )
