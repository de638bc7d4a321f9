"""The rules of services as the kernel holds them: by id, with windows of this node's own.

Tables are ids here, times are nanoseconds of CLOCK_MONOTONIC (bpf_ktime_get_ns).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lb.core.rules import QUIET, Steer, in_order, longest, step
from lb.datapath import mapkeys, structs
from lb.datapath.bpf import Map
from lb.model.objects import Network

Key = tuple[int, Network]  # service, prefix
Kept = Mapping[Network, Steer[int]]  # of one service


def at_rest(to: Mapping[Network, int]) -> dict[Network, Steer[int]]:
    """Rules without a past, that send these prefixes' clients to these tables."""
    return {prefix: Steer(table, table) for prefix, table in to.items()}


def encode(key: Key, steer: Steer[int]) -> tuple[bytes, bytes]:
    """Key and value of an entry of the rules map."""
    return mapkeys.rule_key(*key), bytes(structs.Rule(steer.to, steer.before, steer.closes))


def decode(value: bytes) -> Steer[int]:
    """A value of the rules map."""
    rule = structs.Rule.from_buffer_copy(value)
    return Steer(rule.table, rule.before, rule.closes)


def read(rules: Map) -> dict[int, Kept]:
    """What the kernel holds, by service."""
    found: dict[int, dict[Network, Steer[int]]] = {}
    for raw_key, raw in rules.items():
        service, prefix = mapkeys.rule_key_from(raw_key)
        found.setdefault(service, {})[prefix] = decode(raw)
    return {**found}


def flat(rules: Mapping[int, Kept]) -> dict[Key, Steer[int]]:
    """Entry by entry."""
    return {(service, prefix): each for service, kept in rules.items() for prefix, each in kept.items()}


def follow_on(
    held: Kept | None,
    shared: Kept,
    asked: Collection[Network],
    tables: Collection[int],
    service: int,
    window: int,
) -> dict[Network, Steer[int]]:
    """What follows on `held`. `shared` is what the store says (times in Unix seconds); its windows count
    where this node's begin with it. `asked` are the prefixes that have a rule; of others the entry
    stays until calm() finds that nobody needs it. `tables` are those that the service has now: the id of
    another may be somebody else's. `window` is in seconds.

    A node without memory (`held` is None) has to see older flows again: its windows begin anew. No
    window is longer than that, whatever a clock says.
    """
    now = time.monotonic_ns()
    whole = now + window * 1_000_000_000
    ahead = now - time.time_ns()
    targets = {prefix: shared[prefix].to for prefix in asked}
    anywhere = Steer(service, service)
    found = {}
    for prefix in in_order({*(held or {}), *shared}):
        to = longest(prefix, targets) or service
        told = shared.get(prefix, anywhere)
        until = min(told.closes * 1_000_000_000 + ahead, whole) if told.closes else QUIET
        is_told = until > now
        if held is None:
            each = Steer(to, told.before, whole) if is_told else Steer(to, to)
        else:
            each = step(longest(prefix, held) or anywhere, to, until if is_told else whole, now)
            if is_told and not each.closes:
                each = Steer(to, told.before, until)
        if each.before not in tables:
            each = Steer(each.to, each.to, each.closes)
        if each.closes or prefix in asked:
            found[prefix] = each
    return found


def placed(rules: Kept, service: int, clients: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of clients' addresses, as rows of two 64-bit halves: by which table each is placed, and by which
    of the rules, as an index into in_order() (-1 = none)."""
    tables = np.full(len(clients), service, dtype=np.int64)
    by = np.full(len(clients), -1, dtype=np.int64)
    order = in_order(rules)
    for index in sorted(range(len(order)), key=lambda i: order[i].prefixlen):
        inside = mapkeys.within(clients, order[index])
        tables[inside], by[inside] = rules[order[index]].to, index
    return tables, by


def calm(
    rules: Kept, busy: Collection[Network], asked: Collection[Network]
) -> dict[Network, Steer[int]]:
    """The same, but those whose window is closed are quiet, and gone if nobody asks for them any more,
    unless they are `busy`: some flow of theirs is elsewhere than they say."""
    now = time.monotonic_ns()
    found = {}
    for prefix, each in rules.items():
        if not each.closes or each.closes > now or prefix in busy:
            found[prefix] = each
        elif prefix in asked:
            found[prefix] = Steer(each.to, each.to)
    return found
