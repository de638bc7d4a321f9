"""What stays in the kernel maps whatever is wanted: what is there of documents that nobody can read."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping

from lb.core.ids import Allocation
from lb.datapath import structs
from lb.datapath.contents import Contents
from lb.datapath.encode import index_key

Ids = Mapping[int, Allocation]


def owned(held: Ids, kept: Collection[int]) -> set[int]:
    """Those of these owners (uids) that have an id."""
    return {each.owner for each in held.values() if each.owner in kept}


def with_pools(kept: set[int], have: Contents, service_ids: Ids) -> set[int]:
    """With the owners of the tables that rules of these services send clients to."""
    tables = {
        table
        for number, rules in have.rules.items()
        if number in service_ids and service_ids[number].owner in kept
        for rule in rules.values()
        for table in (rule.to, rule.before)
    }
    return kept | {service_ids[table].owner for table in tables & service_ids.keys()}


def keep(
    want: Contents, kept: Collection[int], have: Contents, service_ids: Ids, backend_ids: Ids
) -> None:
    """Carry over into `want` what the kernel has of these owners."""
    services = {n for n, each in service_ids.items() if each.owner in kept}
    for number in services & have.rules.keys():
        want.rules.setdefault(number, have.rules[number])
    backends = {n for n, each in backend_ids.items() if each.owner in kept}
    for number in services & have.services.keys():
        want.services.setdefault(number, have.services[number])
    for number in services & have.tables.keys():
        want.tables.setdefault(number, have.tables[number])
    for number in backends & have.backends.keys():
        want.backends.setdefault(number, have.backends[number])
    for at, value in have.nat_back.items():
        if structs.NatBack.from_buffer_copy(value).service in services:
            want.nat_back.setdefault(at, value)
    for at, value in have.quic.items():
        if structs.QuicKey.from_buffer_copy(at).service in services:
            want.quic.setdefault(at, value)
    _keep_vips(want, have, services)


def _keep_vips(want: Contents, have: Contents, services: set[int]) -> None:
    addresses = set()
    for at, value in have.vips.items():
        endpoint = structs.Endpoint.from_buffer_copy(at)
        if endpoint.port and int.from_bytes(value, sys.byteorder) in services:
            want.vips.setdefault(at, value)
            addresses.add(bytes(endpoint.addr))
    for at, value in have.ranges.items():
        if int.from_bytes(value, sys.byteorder) in services:
            want.ranges.setdefault(at, value)
            addresses.add(bytes(structs.Range.from_buffer_copy(at).addr))
    for at, value in have.vips.items():
        endpoint = structs.Endpoint.from_buffer_copy(at)
        if not endpoint.port and bytes(endpoint.addr) in addresses:
            bits = int.from_bytes(value, sys.byteorder)
            bits |= int.from_bytes(want.vips.get(at, bytes(4)), sys.byteorder)
            want.vips[at] = index_key(bits)
