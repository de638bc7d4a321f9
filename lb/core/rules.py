"""Rules: clients of a source prefix go to a pool of their own, whatever the split says. Pure.

The longest prefix counts. When a rule comes, changes or goes, its clients' flows would be hashed into
another table; so a rule remembers where they were, as a slot that moves does (lb/core/moves.py): while
its window is open, a flow that nobody saw begin goes where it was *before*. What holds of slots holds of
rules: one that changes again while its window is open keeps its `before`, and its window begins anew.

The same steps serve the state that nodes share (pools by name, Unix seconds) and what a node programs
(tables by id, nanoseconds of its monotonic clock).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Generic, TypeVar

from lb.model.objects import Network

T = TypeVar("T")
V = TypeVar("V")

QUIET = 0  # in `closes`, as in lb/core/moves.py


@dataclass(frozen=True, slots=True)
class Steer(Generic[T]):
    """Where the clients of a prefix go, and where they went `before`, which counts until `closes`."""

    to: T
    before: T
    closes: int = QUIET


Steers = Mapping[Network, Steer[str | None]]  # pools; None = as the service's split says


def longest(prefix: Network, among: Mapping[Network, V]) -> V | None:
    """The value of the longest prefix that covers this one; None if there is none."""
    lengths = {each.prefixlen for each in among if each.version == prefix.version}
    for length in sorted(lengths, reverse=True):
        if length <= prefix.prefixlen:
            found = among.get(ip_network((prefix.network_address, length), strict=False))
            if found is not None:
                return found
    return None


def step(held: Steer[T], to: T, closes: int, now: int) -> Steer[T]:
    """What becomes of it when these clients are to go there from `now` on, with a window that closes at
    `closes` if that is news."""
    if to == held.to:
        return held
    return Steer(to, held.before if held.closes > now else held.to, closes)


def follow(held: Steers, rules: Mapping[Network, str], now: int, window: int) -> Steers:
    """The shared state after `held`, when these rules are asked for. Times in Unix seconds. A prefix
    without a rule stays in it while its window is open."""
    anywhere: Steer[str | None] = Steer(None, None)
    found: dict[Network, Steer[str | None]] = {}
    for prefix in in_order({*held, *rules}):
        was = longest(prefix, held) or anywhere
        each = step(was, longest(prefix, rules), now + window, now)
        if each.closes > now:
            found[prefix] = each
        elif prefix in rules:
            found[prefix] = Steer(each.to, None)
    return found


def pools(steers: Steers) -> set[str]:
    """The pools that need a table of their own."""
    return {pool for each in steers.values() for pool in (each.to, each.before) if pool}


def in_order(prefixes: Iterable[Network]) -> list[Network]:
    """IPv4 first, then by address and length."""
    return sorted(prefixes, key=lambda p: (p.version, int(p.network_address), p.prefixlen))
