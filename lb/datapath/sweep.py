"""Forgetting: idle flows, and which slots no flow needs to remember any more."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lb.core import flowhash, moves
from lb.core.rules import in_order
from lb.datapath import consts, mapkeys, rulemaps, structs
from lb.datapath.bpf import Map
from lb.datapath.maps import Maps
from lb.datapath.rulemaps import Kept
from lb.datapath.slotmaps import Slots
from lb.model.objects import Affinity, Network, Tracking

# struct lb_flow_key and struct lb_flow, as arrays.
KEY = np.dtype([("client", ">u8", 2), ("service", "=u4"), ("client_port", ">u2"), ("vip_port", ">u2")])
FLOW = np.dtype([("backend", "=u4"), ("generation", "=u4"), ("seen", "=u4")])


@dataclass(frozen=True, eq=False)
class Flows:
    """Entries of one of the LRU maps, as arrays of one row each."""

    source: Map
    keys: NDArray[Any]  # of KEY
    values: NDArray[Any]  # of FLOW

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, *services: int) -> Flows:
        """Those of these services."""
        mine = np.isin(self.keys["service"], services)
        return Flows(self.source, self.keys[mine], self.values[mine])

    def without_idle(self, now: int, longest: float) -> Flows:
        """Drop those that said nothing for so many jiffies, here and in the kernel."""
        idle = (np.uint32(now % 2**32) - self.values["seen"]) > longest
        self.source.delete_many([key.tobytes() for key in self.keys[idle]])
        return Flows(self.source, self.keys[~idle], self.values[~idle])

    def slots(self, service: structs.Service) -> NDArray[np.uint16]:
        """The slot of each."""
        high = self.keys["client"][:, 0].astype(np.uint64)
        low = self.keys["client"][:, 1].astype(np.uint64)
        # A service has one address family: that of its VIP.
        is_ipv4 = mapkeys.address_from(bytes(service.vip)).version == 4
        return flowhash.slots(
            (service.seed[0], service.seed[1]),
            low & np.uint64(0xFFFFFFFF) if is_ipv4 else np.column_stack((high, low)),
            self.keys["client_port"],
            self.keys["vip_port"],
            Affinity.CLIENT if service.affinity else Affinity.FLOW,
        )


def read(maps: Maps) -> list[Flows]:
    """All flows that are remembered. Those that have only begun come first: a flow that gets further
    meanwhile is then in both, not in neither."""
    found = []
    for source in (maps.embryonic, maps.conntrack):
        keys, values = source.dump()
        found.append(Flows(source, np.frombuffer(keys, KEY), np.frombuffer(values, FLOW)))
    return found


@dataclass(frozen=True, eq=False)
class Placement:
    """How a service's flows are placed: by its tables, by id, which of them the rules say."""

    tables: Mapping[int, Slots]
    rules: Kept

    @property
    def stirred(self) -> int:
        """How many slots and rules aren't quiet."""
        slots = sum(int(np.count_nonzero(each.moves.stirred)) for each in self.tables.values())
        return slots + sum(bool(rule.closes) for rule in self.rules.values())


def calm(
    maps: Maps,
    number: int,
    placement: Placement,
    asked: Collection[Network],
    flows: list[Flows],
    idle: float,
    now: int,
) -> Placement:
    """The service's slots and rules with those quiet that can be; flows that are idle for so many
    jiffies are dropped, and rules that nobody asks for. Where all flows are remembered, or none, only
    open windows count."""
    service = structs.Service.from_buffer_copy(
        maps.services.get(number.to_bytes(4, sys.byteorder)) or bytes(ctypes.sizeof(structs.Service))
    )
    mine = [each.of(number) for each in flows]
    if service.tracking != consts.TRACKING_NUMBER[Tracking.MOVING]:
        mine = []
    mine = [each.without_idle(now, idle) for each in mine]
    at = np.concatenate([np.zeros(0, np.uint16), *(each.slots(service) for each in mine)])
    went = np.concatenate([np.zeros(0, np.uint32), *(each.values["backend"] for each in mine)])
    clients = np.concatenate([np.zeros((0, 2), np.uint64), *(each.keys["client"] for each in mine)])
    by_table, by_rule = rulemaps.placed(placement.rules, number, clients)
    elsewhere = np.zeros(len(at), dtype=bool)
    tables = {}
    for table, slots in placement.tables.items():
        inside = by_table == table
        elsewhere[inside] = went[inside] != slots.backends[at[inside]]
        quiet = moves.calm(slots.backends, slots.moves, at[inside], went[inside], time.monotonic_ns())
        tables[table] = Slots(slots.backends, moves.quieten(slots.moves, quiet))
    order = in_order(placement.rules)
    busy = {order[index] for index in np.unique(by_rule[elsewhere]).tolist() if index >= 0}
    return Placement(tables, rulemaps.calm(placement.rules, busy, asked))
