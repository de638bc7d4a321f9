"""Health checks `via: vip`: two small programs that make a check's packets go the way of clients'.

tc/probe.h says how. They are attached to the balancer's interfaces while some check asks for it: each
packet that comes in for the kernel then costs a lookup more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pyroute2 import IPRoute

from lb.core import ids
from lb.core.state import BackendKey
from lb.datapath import beside, consts
from lb.datapath.attach import Interface
from lb.datapath.encode import index_key
from lb.datapath.maps import Maps
from lb.model import keys


def mark(backend: int) -> int:
    """The mark of a socket whose packets go this backend's way. `backend`: its id in the kernel."""
    return consts.PROBE_MARK | backend


def find_mark(maps: Maps, key: BackendKey) -> int | None:
    """The same, by what an lbd of this machine has pinned; none if it doesn't check this backend so."""
    owners = np.frombuffer(maps.backend_owners.array(), dtype=np.uint64)
    probed = np.frombuffer(maps.probed.array(), dtype=np.uint32)
    found = np.flatnonzero((owners == ids.uid(keys.backend(*key))) & (probed != 0))
    return mark(int(found[0])) if len(found) else None


@dataclass
class ProbePath:
    """The programs, where they are attached, and whose checks they know."""

    ip: IPRoute
    maps: Maps
    pin_dir: Path
    name: str  # of the filters: they are ours
    marks: dict[BackendKey, int] = field(default_factory=dict)
    _probed: dict[int, int] = field(default_factory=dict)
    _attached: tuple[Interface, ...] = ()
    _is_sure: bool = False

    def update(
        self, wanted: Mapping[BackendKey, tuple[int, int]], interfaces: Sequence[Interface]
    ) -> None:
        """Let checks of these backends go by the VIP of their services. `wanted`: the ids of each and
        of its service. Raises DatapathError."""
        probed = dict(wanted.values())
        if not self._is_sure:
            raw = np.frombuffer(self.maps.probed.array(), dtype=np.uint32)
            self._probed = {int(each): int(raw[each]) for each in np.flatnonzero(raw)}
        for backend in self._probed.keys() | probed.keys():
            if self._probed.get(backend) != probed.get(backend):
                self.maps.probed.put(index_key(backend), index_key(probed.get(backend, 0)))
        self._probed = probed
        places = tuple(interfaces) if wanted else ()
        if not self._is_sure or places != self._attached:
            self._attach(interfaces, is_used=bool(wanted))
            self._attached = places
        self._is_sure = True
        # Only now: before that a marked packet would go straight to its backend.
        self.marks = {key: mark(backend) for key, (backend, _) in wanted.items()}

    def doubt(self) -> None:
        """Look at the kernel with the next update: somebody may have changed it by hand."""
        self._is_sure = False

    def _attach(self, interfaces: Sequence[Interface], *, is_used: bool) -> None:
        if is_used:
            beside.PROBES.attach(self.ip, interfaces, self.maps, self.pin_dir, self.name)
            return
        for interface in interfaces:
            beside.PROBES.release(self.ip, interface, self.name)
