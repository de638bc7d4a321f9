"""Reading the kernel maps, for people: counters, slots, and where a flow would go. Changes nothing."""

from __future__ import annotations

import ctypes
import socket
import sys
import time
from collections import Counter as Tally
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from typing import TypeVar

import numpy as np

from lb.core import flowhash, ids
from lb.core.moves import QUIET
from lb.core.rules import Steer
from lb.core.state import DesiredState
from lb.datapath import consts, mapkeys, rulemaps, slotmaps, structs
from lb.datapath.bpf import Map
from lb.datapath.encode import index_key
from lb.datapath.kernel import read_owners
from lb.datapath.maps import Maps
from lb.datapath.slotmaps import Slots
from lb.model import keys
from lb.model.objects import TRANSLATIONS, Address, Affinity, Mode, Protocol, Tracking, table_path


@dataclass(frozen=True)
class Counter:
    """Sums over all CPUs."""

    packets: int
    bytes: int


@dataclass(frozen=True)
class Stats:
    """Sums over all CPUs. `flows` are new flows; replies are seen in mode nat only."""

    packets: int
    bytes: int
    flows: int
    reply_packets: int
    reply_bytes: int


@dataclass(frozen=True)
class MirrorStats:
    """Sums over all CPUs, of what was copied of a service's traffic: struct lb_mirror_stats."""

    copies: int
    bytes: int
    flows: int
    given_up: int
    answers: int


@dataclass(frozen=True)
class Trace:
    """Where a packet of this 5-tuple would go now, and why, step by step."""

    service: str | None
    pool: str | None  # that a rule sends the client to
    slot: int | None
    slot_backend: str | None
    tracked_backend: str | None
    backend: str | None
    verdict: str
    why: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Moving:
    """Slots `first` to `first + length - 1` moved away from `origin` (None = from nobody who is
    still there). Until `closes` (Unix seconds) flows that are older than that go there."""

    first: int
    length: int
    origin: str | None
    closes: int


_S = TypeVar("_S", Counter, Stats, MirrorStats)


class KernelView:
    """The pinned maps of the lbd with this pin directory. Names come from the store, ids from the
    kernel's owner maps."""

    def __init__(self, maps: Maps, state: DesiredState) -> None:
        self._maps = maps
        self._backend_names = {ids.uid(keys.backend(*key)): key[1] for key in state.backends}
        self._service_names = {ids.uid(keys.service(name)): name for name in state.services}
        # Tables for the clients that rules send to a pool have an owner of their own.
        self._pool_names = {
            ids.uid(keys.service(table_path(name, pool))): pool
            for name, service in state.services.items()
            for pool in service.pools_alone
        }

    @classmethod
    def open(cls, pin_dir: Path, state: DesiredState) -> KernelView:
        """`state` has the names that ids are translated to. Raises DatapathError when lbd has left
        no maps there, or they may not be read."""
        return cls(Maps.open(pin_dir), state)

    def outcomes(self) -> dict[str, Counter]:
        """How packets ended, by the name of the outcome."""
        return {
            each.name.lower(): _sum(self._maps.outcomes, each, structs.Counter, Counter)
            for each in consts.Outcome
        }

    def service_stats(self, service: str) -> Stats | None:
        """None if the kernel doesn't have that service."""
        number = self._service_ids.get(ids.uid(keys.service(service)))
        return _sum(self._maps.service_stats, number, structs.Stats, Stats) if number else None

    def mirror_stats(self, service: str) -> MirrorStats | None:
        """None if the kernel doesn't have that service."""
        number = self._service_ids.get(ids.uid(keys.service(service)))
        if not number:
            return None
        return _sum(self._maps.mirror_stats, number, structs.MirrorStats, MirrorStats)

    def backend_stats(self, service: str, backend: str) -> Stats | None:
        """None if the kernel doesn't have that backend."""
        number = self._backend_ids.get(ids.uid(keys.backend(service, backend)))
        return _sum(self._maps.backend_stats, number, structs.Stats, Stats) if number else None

    def slot_counts(self, service: str) -> dict[str, int] | None:
        """Slots that each backend holds in the kernel now; None if the service isn't there."""
        slots = self.slots(service)
        return None if slots is None else dict(Tally(name for name in slots if name is not None))

    def slots(self, service: str) -> list[str | None] | None:
        """The backend of each of the 65,536 slots as the kernel has it, None where it is empty."""
        held = self._slots(service)
        if held is None:
            return None
        names = {int(each): self._backend_name(int(each)) for each in np.unique(held.backends)}
        return [names[int(each)] for each in held.backends]

    def moving(self, service: str) -> list[Moving] | None:
        """The slots that moved lately, in order, with windows that are open still."""
        held = self._slots(service)
        if held is None:
            return None
        now = time.monotonic_ns()
        closes = np.where(held.moves.is_moving(now), held.moves.closes, QUIET)
        changes = (np.diff(closes) != 0) | (np.diff(held.moves.origin.astype(np.int64)) != 0)
        starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
        lengths = np.diff(starts, append=consts.SLOTS)
        offset = time.time() - now / 1e9
        return [
            Moving(
                first=first,
                length=length,
                origin=self._backend_name(int(held.moves.origin[first])),
                closes=round(offset + int(closes[first]) / 1e9),
            )
            for first, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            if closes[first] != QUIET
        ]

    def _slots(self, service: str) -> Slots | None:
        number = self._service_ids.get(ids.uid(keys.service(service)))
        return slotmaps.read(self._maps.tables, number) if number else None

    def trace(
        self, protocol: Protocol, client: Address, client_port: int, vip: Address, vip_port: int
    ) -> Trace:
        """Follow the data path's own steps through the kernel's own maps."""
        number = consts.PROTOCOL_NUMBER[protocol]
        found = self._maps.vips.get(mapkeys.endpoint(vip, vip_port, number))
        if found is None:
            [exactly] = mapkeys.port_range(vip, vip_port, vip_port, number)
            found = self._maps.ranges.get(exactly)
        if found is None:
            why = [f"no service has the VIP {vip} port {vip_port}/{protocol}"]
            return Trace(None, None, None, None, None, None, "passed to the kernel untouched", why)
        service = int.from_bytes(found, sys.byteorder)
        raw = structs.Service.from_buffer_copy(self._maps.services.get(index_key(service)) or b"")
        affinity = Affinity.CLIENT if raw.affinity else Affinity.FLOW
        seed = (raw.seed[0], raw.seed[1])
        slot = flowhash.slot(seed, client, client_port, vip_port, affinity)
        why = [f"the VIP belongs to service {self._service_name(service)!r}"]
        rule = self._rule(service, client, why)
        if raw.quic_bytes:
            why.append("a QUIC packet whose connection ID names a server goes there; others go so:")
        held = slotmaps.read(self._maps.tables, rule.to) or slotmaps.empty()
        slot_id = int(held.backends[slot])
        stirred, closes, origin = (
            held.moves.stirred[slot],
            held.moves.closes[slot],
            held.moves.origin[slot],
        )
        if rule.closes > time.monotonic_ns():
            closes, origin = rule.closes, self._was(rule.before, slot)
        why += [
            f"the flow hash ({affinity} affinity) gives slot {slot}",
            f"slot {slot} names {self._backend_name(slot_id) or 'no backend'}",
        ]
        tracked_id = 0
        if raw.mode == consts.MODE_NUMBER[Mode.FULLNAT]:
            tracked_id = self._bound(service, client, client_port, vip_port, why)
        elif raw.tracking == consts.TRACKING_NUMBER[Tracking.ALWAYS] or (
            raw.tracking == consts.TRACKING_NUMBER[Tracking.MOVING] and (stirred or rule.closes)
        ):
            tracked_id = self._tracked(service, client, client_port, vip_port, why)
            left = (int(closes) - time.monotonic_ns()) / 1e9
            if not tracked_id and left > 0:
                why.append(
                    f"{'the rule changed' if closes == rule.closes else 'the slot moved'} lately: a flow"
                    f" that was there before goes to {self._backend_name(int(origin)) or 'nobody'}, if"
                    f" it sends something within {left:.0f} s"
                )
        chosen = tracked_id or slot_id
        backend = structs.Backend.from_buffer_copy(
            self._maps.backends.get(index_key(chosen)) or bytes(ctypes.sizeof(structs.Backend))
        )
        usable = bool(chosen and backend.flags & consts.BackendFlag.USABLE)
        return Trace(
            service=self._service_name(service),
            pool=self._pool(rule.to),
            slot=slot,
            slot_backend=self._backend_name(slot_id),
            tracked_backend=self._backend_name(tracked_id),
            backend=self._backend_name(chosen) if usable else None,
            verdict=_verdict(raw, backend, usable, why),
            why=why,
        )

    def _rule(self, service: int, client: Address, why: list[str]) -> Steer[int]:
        """What this client's flows are placed by."""
        found = self._maps.rules.get(mapkeys.rule_key(service, ip_network(client)))
        if found is None:
            return Steer(service, service)
        rule = rulemaps.decode(found)
        pool = self._pool(rule.to)
        why.append(f"a rule sends the client to pool {pool!r}" if pool else "no rule is for the client")
        return rule

    def _pool(self, table: int) -> str | None:
        owner = structs.Owner.from_buffer_copy(self._maps.service_owners.get(index_key(table)) or b"")
        return self._pool_names.get(owner.uid)

    def _was(self, table: int, slot: int) -> int:
        """The backend that older flows of this slot went to."""
        held = slotmaps.read(self._maps.tables, table) or slotmaps.empty()
        if held.moves.closes[slot] > time.monotonic_ns():
            return int(held.moves.origin[slot])
        return int(held.backends[slot])

    def _bound(
        self, service: int, client: Address, client_port: int, vip_port: int, why: list[str]
    ) -> int:
        found = self._maps.bindings.get(_flow_key(service, client, client_port, vip_port))
        if found is None:
            why.append("it holds no port of ours: a new flow goes where its slot says")
            return 0
        binding = structs.Binding.from_buffer_copy(found)
        name = self._backend_name(binding.backend)
        if not self._is_usable(binding.backend, binding.generation):
            why.append("the port that it holds is at a backend that is gone or down: placed anew")
            return 0
        source = mapkeys.address_from(bytes(binding.source))
        why.append(f"{name} knows it as {source} port {socket.ntohs(binding.port)}")
        return int(binding.backend)

    def _is_usable(self, number: int, generation: int) -> bool:
        backend = structs.Backend.from_buffer_copy(self._maps.backends.get(index_key(number)) or b"")
        return backend.generation == generation and bool(backend.flags & consts.BackendFlag.USABLE)

    def _resets(self, flow: structs.Flow) -> bool:
        found = self._maps.backends.get(index_key(flow.backend)) or b""
        backend = structs.Backend.from_buffer_copy(found)
        return backend.generation == flow.generation and bool(backend.flags & consts.BackendFlag.RESETS)

    def _tracked(
        self, service: int, client: Address, client_port: int, vip_port: int, why: list[str]
    ) -> int:
        key = _flow_key(service, client, client_port, vip_port)
        found = self._maps.conntrack.get(key)
        state = "established"
        if found is None:
            found, state = self._maps.embryonic.get(key), "only its begin was seen"
        if found is None:
            why.append("no conntrack entry: a new flow goes where its slot says")
            return 0
        flow = structs.Flow.from_buffer_copy(found)
        name = self._backend_name(flow.backend)
        if not self._is_usable(flow.backend, flow.generation):
            over = " (in the middle of a connection: reset)" if self._resets(flow) else ""
            why.append(f"its conntrack entry names a backend that is gone or down: placed anew{over}")
            return 0
        why.append(f"it has a conntrack entry ({state}) that keeps it on {name}")
        return int(flow.backend)

    @cached_property
    def _service_ids(self) -> dict[int, int]:
        return {uid: number for number, uid in read_owners(self._maps.service_owners).items()}

    @cached_property
    def _backend_ids(self) -> dict[int, int]:
        return {uid: number for number, uid in read_owners(self._maps.backend_owners).items()}

    def _backend_name(self, number: int) -> str | None:
        if not number:
            return None
        owner = structs.Owner.from_buffer_copy(self._maps.backend_owners.get(index_key(number)) or b"")
        return self._backend_names.get(owner.uid, f"id {number}")

    def _service_name(self, number: int) -> str:
        owner = structs.Owner.from_buffer_copy(self._maps.service_owners.get(index_key(number)) or b"")
        return self._service_names.get(owner.uid, f"id {number}")


def _flow_key(service: int, client: Address, client_port: int, vip_port: int) -> bytes:
    key = structs.FlowKey(
        service=service, client_port=socket.htons(client_port), vip_port=socket.htons(vip_port)
    )
    key.client[:] = mapkeys.address_bytes(client)
    return bytes(key)


def _verdict(service: structs.Service, backend: structs.Backend, usable: bool, why: list[str]) -> str:
    if not usable:
        why.append("no usable backend")
        drop = service.no_backend == 1
        return "dropped" if drop else "rejected (TCP RST or ICMP port unreachable)"
    if not backend.flags & consts.BackendFlag.RESOLVED:
        why.append("its next hop is not resolved")
        if service.mode in {consts.MODE_NUMBER[mode] for mode in TRANSLATIONS}:
            return "passed to the kernel"
        return "dropped"
    mac = ":".join(f"{byte:02x}" for byte in backend.dmac)
    return f"sent out of interface {backend.ifindex} to {mac}"


def _sum(source: Map, index: int, raw: type[ctypes.Structure], into: type[_S]) -> _S:
    """A per-CPU value, added up."""
    values = source.get(index_key(index)) or b""
    size = ctypes.sizeof(raw)
    cpus = [raw.from_buffer_copy(values, at) for at in range(0, len(values), (size + 7) // 8 * 8)]
    fields = [name for name, *_ in raw._fields_]
    return into(**{name: sum(getattr(cpu, name) for cpu in cpus) for name in fields})
