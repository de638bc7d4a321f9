"""What the programs counted of the connections of observed services (xdp/include/lb_watch.h), and what
they can't see: that nothing came.

Totals are by the uid of the backend's key in the store, so an id's next owner never gets another's. They
outlive lbd; they begin anew, with another epoch, when a service is observed again after a pause.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from lb.core.ids import uid
from lb.datapath import structs
from lb.datapath.bpf import Map
from lb.datapath.consts import Event, Stage
from lb.model import keys
from lb.model.flows import FlowReport, FlowTotals, Vantage
from lb.settings import Observation

_SECOND = 1_000_000_000
_LOOKED = bytes(8)  # owner 0 in the overdue map: up to when was looked
# struct lb_watched
_WATCHED = np.dtype(
    [("owner", "=u8"), ("since", "=u8"), ("client_next", "=u4"), ("server_next", "=u4"),
     ("stage", "u1"), ("ended", "u1"), ("pad", "V6")]
)  # fmt: skip
_FIRST_CLASS = Event.HTTP_1XX


@dataclass
class Watch:
    """The maps of one observer: a node, or a backend that observes for itself."""

    watched: Map
    totals: Map
    overdue: Map
    limits: Observation
    _names: dict[int, tuple[str, str]] = field(default_factory=dict)  # service and backend, by uid
    _services: Mapping[str, Collection[str]] = field(default_factory=dict)

    @property
    def is_on(self) -> bool:
        """Is there anything to observe?"""
        return bool(self._services)

    def follow(self, services: Mapping[str, Collection[str]], keep: Collection[str] = ()) -> None:
        """Count for the backends of these services, and no longer for others; but what belongs to the
        service whose key in the store is in `keep` stays. A backend that goes keeps its totals while its
        service is observed, and goes on with them if it comes back."""
        self._services = services
        self._names = {
            uid(keys.backend(service, name)): (service, name)
            for service, names in services.items()
            for name in names
        }
        observed = {uid(keys.service(name)) for name in services}
        held = self._held()
        stay = observed | {uid(key) for key in keep}
        self._forget([owner for owner, each in held.items() if each.service not in stay])
        held = {owner: each for owner, each in held.items() if each.service in stay}
        new = self._names.keys() - held.keys()
        if len(held) + len(new) > self.totals.max_entries:
            # Room is had from those that have gone, so their services begin anew.
            full = {each.service for owner, each in held.items() if owner not in self._names}
            self._forget([owner for owner, each in held.items() if each.service in full])
            held = {owner: each for owner, each in held.items() if each.service not in full}
            new = self._names.keys() - held.keys()
        if new:
            self._drop_connections(new)
        epochs = {each.service: each.epoch for each in held.values()}
        for owner in new:
            service = uid(keys.service(self._names[owner][0]))
            epoch = epochs.setdefault(service, time.time_ns())
            self.overdue.put(_key(owner), bytes(structs.Overdue()))
            self.totals.put(_key(owner), bytes(structs.Totals(service=service, epoch=epoch)))

    def look(self, now: int) -> bool:
        """Count what has become overdue since the last look; `now` is CLOCK_MONOTONIC in ns. False if
        there are so many connections that some may have been pushed out before they could be counted.

        Each connection says since when it waits, so it is overdue in exactly one look, however many
        there are and whoever takes them.
        """
        _, values = self.watched.dump()
        watched = np.frombuffer(values, _WATCHED)
        looked = self._overdue(0)
        reached = structs.Overdue(
            max(looked.unanswered, now - self.limits.unanswered * _SECOND),
            max(looked.unserved, now - self.limits.unserved * _SECOND),
        )
        for kind, stage in (("unanswered", Stage.OPENING), ("unserved", Stage.ASKED)):
            since = watched["since"]
            late = (since > getattr(looked, kind)) & (since <= getattr(reached, kind))
            owners, counts = np.unique(
                watched["owner"][late & (watched["stage"] == stage)], return_counts=True
            )
            for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
                if owner in self._names:
                    sums = self._overdue(owner)
                    setattr(sums, kind, getattr(sums, kind) + count)
                    self.overdue.put(_key(owner), bytes(sums))
        self.overdue.put(_LOOKED, bytes(reached))
        longest = max(self.limits.unanswered, self.limits.unserved) * _SECOND
        is_full = len(watched) >= self.watched.max_entries * 0.95
        return not (is_full and int(watched["since"].min()) > now - longest)

    def reports(self, node: str, vantage: Vantage) -> dict[str, FlowReport]:
        """What was counted, by service. A service without backends has no report."""
        held = self._held()
        found: dict[str, dict[str, FlowTotals]] = {}
        epochs: dict[str, int] = {}
        for owner, each in held.items():
            if owner in self._names:
                service, name = self._names[owner]
                found.setdefault(service, {})[name] = _read(each, self._overdue(owner))
                epochs[service] = each.epoch
        at = time.time()
        return {
            service: FlowReport(
                service=service,
                node=node,
                vantage=vantage,
                epoch=f"{epochs[service]:x}",
                at=at,
                backends=backends,
            )
            for service, backends in found.items()
        }

    def _held(self) -> dict[int, structs.Totals]:
        return {
            int.from_bytes(key, sys.byteorder): structs.Totals.from_buffer_copy(raw)
            for key, raw in self.totals.items()
        }

    def _overdue(self, owner: int) -> structs.Overdue:
        raw = self.overdue.get(_key(owner))
        return structs.Overdue.from_buffer_copy(raw) if raw else structs.Overdue()

    def _drop_connections(self, owners: Collection[int]) -> None:
        """Those that are left of an earlier observation."""
        keys_, values = self.watched.dump()
        mine = np.isin(np.frombuffer(values, _WATCHED)["owner"], np.array(list(owners), np.uint64))
        size = self.watched.key_size
        self.watched.delete_many([keys_[at * size : (at + 1) * size] for at in np.flatnonzero(mine)])

    def _forget(self, owners: Collection[int]) -> None:
        for owner in owners:
            self.totals.delete(_key(owner))
            self.overdue.delete(_key(owner))


def _key(owner: int) -> bytes:
    return bytes(ctypes.c_uint64(owner))


def _read(totals: structs.Totals, overdue: structs.Overdue) -> FlowTotals:
    events = {event.name.lower(): int(totals.event[event]) for event in Event if event < _FIRST_CLASS}
    classes = {event: int(totals.event[event]) for event in Event if event >= _FIRST_CLASS}
    events["unserved"] += overdue.unserved
    return FlowTotals(
        **events,
        unanswered=overdue.unanswered,
        http={event.name[-3:].lower(): count for event, count in classes.items() if count},
        handshake=_histogram(totals.handshake),
        first_byte=_histogram(totals.first_byte),
    )


def _histogram(counts: ctypes.Array[ctypes.c_uint64]) -> dict[int, int]:
    return {bucket: int(count) for bucket, count in enumerate(counts) if count}
