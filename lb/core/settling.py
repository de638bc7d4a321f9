"""What is in force where documents contradict each other. Pure.

Each key has up to two candidates: the document that is stored, and the one that was in force before.
All begin with the first. Who is refused (lb/core/conflicts.py) goes back to the second, which may be in
the way of others then, so everything is compared again, until nobody is refused. That ends: each round
moves at least one key on, from the first candidate to the second or from there to none, and nobody comes
back, so there are at most as many rounds as candidates.

What was in force before was so together: of it nothing is refused for the sake of what is new. Only if
its service is gone, or has become one that it doesn't fit, a backend is left out.

A chain of documents, each of which wants what the next one can't give up, takes a round for each. So
after ROUNDS of them whatever asks for something new is refused. (A round takes some 20 ms with 10,000
backends.)

Who was left out may have been so for the sake of a document that was itself refused later. So all of
them are tried once more, after everybody else. Each round of that drops at least one. Who is left out in
the end contradicts something that is in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from lb.core.conflicts import NEW, Refusal, Standing, conflicts
from lb.model import keys
from lb.model.objects import Backend, Service

D = TypeVar("D", Service, Backend)

ROUNDS = 50
_ENTANGLED = (
    "it was changed beside many documents that contradict each other",
    "put those right that `lbctl status` names",
)


@dataclass(frozen=True)
class Settled:
    """What is in force. `refused`: which stored documents are not, and why, by key; `left_out`: the keys
    of which no version is. `backends` is keyed by "service/name"."""

    services: dict[str, Service]
    backends: dict[str, Backend]
    refused: Mapping[str, Refusal]
    left_out: frozenset[str]


def settle(
    services: Mapping[str, Service], backends: Mapping[str, Backend], standing: Standing
) -> Settled:
    """Of these documents as many as can be in force together, and what was in force before instead of
    the others. `backends` is keyed by "service/name"."""
    in_force, servers = dict(services), dict(backends)
    refused: dict[str, Refusal] = {}
    rounds = 0
    while found := conflicts(in_force, servers, standing):
        rounds += 1
        if rounds == ROUNDS:
            found = dict.fromkeys(_new(in_force, servers, standing), _ENTANGLED) | found
        for key, refusal in found.items():
            refused.setdefault(key, refusal)  # what is wrong with the stored one
        for name in _named(found, keys.SERVICES):
            _go_back(in_force, name, standing.services.get(name))
        for path in _named(found, keys.BACKENDS):
            _go_back(servers, path, standing.backends.get(path))
    if out := _missing(services, in_force, keys.SERVICES) | _missing(backends, servers, keys.BACKENDS):
        in_force |= {name: services[name] for name in _named(out, keys.SERVICES)}
        servers |= {path: backends[path] for path in _named(out, keys.BACKENDS)}
        late = replace(standing, latecomers=out)
        for key in out:
            refused.pop(key)
        while found := conflicts(in_force, servers, late):
            refused |= found
            for name in _named(found, keys.SERVICES):
                del in_force[name]
            for path in _named(found, keys.BACKENDS):
                del servers[path]
        out = _missing(services, in_force, keys.SERVICES) | _missing(backends, servers, keys.BACKENDS)
    return Settled(in_force, servers, refused, out)


def _new(
    services: Mapping[str, Service], backends: Mapping[str, Backend], standing: Standing
) -> list[str]:
    found = [keys.SERVICES + n for n, s in services.items() if standing.among_services(n, s)[0] == NEW]
    for path, backend in backends.items():
        owner = standing.services.get(backend.service)  # as it is after all that
        if standing.among_backends(path, backend, owner)[0] == NEW:
            found.append(keys.BACKENDS + path)
    return found


def _go_back(documents: dict[str, D], name: str, before: D | None) -> None:
    if before is None or before == documents[name]:
        del documents[name]
    else:
        documents[name] = before


def _named(found: Iterable[str], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in found if key.startswith(prefix)]


def _missing(stored: Mapping[str, D], in_force: Mapping[str, D], prefix: str) -> frozenset[str]:
    return frozenset(prefix + name for name in stored.keys() - in_force.keys())
