"""A backend that observes itself: tc/watch.c, loaded, pinned and attached at both of tc's hooks.

Pin paths: <pin_dir>/watch/maps/<name>, <pin_dir>/watch/program_<fingerprint>. What is attached outlives
the process that attached it, and so do the totals.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from lb.core.ids import uid
from lb.datapath import attach, compile, consts, mapkeys, sources, structs
from lb.datapath.bpf import Map, MapType, Program
from lb.datapath.lifecycle import ensure_bpf_fs
from lb.datapath.maps import MapSpec, begin_making, specs
from lb.datapath.watch import Watch
from lb.model import keys
from lb.model.objects import Protocol, Service
from lb.settings import Limits, Observation

FILTER = "lb-watch"
_ROOM = 1024  # services
_PARENTS = (attach.INGRESS, attach.EGRESS)


@dataclass(frozen=True)
class SelfWatch:
    """What is attached on this machine. `watch` has the counters."""

    vips: Map
    watch: Watch
    patience: int

    def follow(self, services: Mapping[str, tuple[Service, str]]) -> None:
        """Observe these services, by name, each as the backend of that name; and no others any more.
        Services of several ports, or of UDP, are none of ours (see `refusal`)."""
        wanted = {
            mapkeys.endpoint(service.vip, service.port, consts.PROTOCOL_NUMBER[service.protocol]): bytes(
                structs.WatchVip(
                    owner=uid(keys.backend(name, backend)),
                    service=uid(keys.service(name)) & 0xFFFFFFFF,
                    patience=self.patience,
                )
            )
            for name, (service, backend) in services.items()
        }
        # First what is counted in, then what leads there.
        self.watch.follow({name: [backend] for name, (_, backend) in services.items()})
        held = dict(self.vips.items())
        for vip, value in wanted.items():
            if held.get(vip) != value:
                self.vips.put(vip, value)
        for vip in held.keys() - wanted.keys():
            self.vips.delete(vip)


def refusal(service: Service) -> str:
    """Why a backend can't observe this service; "" = it can."""
    if service.protocol is not Protocol.TCP:
        return "it is no TCP service"
    if service.end_port:
        return "it has several ports"
    return ""


def attach_to(
    ip: IPRoute, interfaces: Sequence[str], limits: Limits, observation: Observation, pin_dir: Path
) -> SelfWatch:
    """Load, unless it is there, and attach to these interfaces. Raises an error that says what to do."""
    found = attach.check(ip, interfaces)
    ensure_bpf_fs(pin_dir)
    place = pin_dir / "watch"
    maps = _maps(place, limits)
    path = place / f"program_{sources.fingerprint('tc')}"
    if not path.exists():
        compile.load("tc", place, path, "watch")
    program = Program.open(path)
    for interface in found:
        for parent in _PARENTS:
            attach.attach_filter(ip, interface, program, FILTER, attach.WATCHER, parent)
    for old in place.glob("program_*"):
        if old != path:
            old.unlink()
    watch = Watch(maps["watched"], maps["totals"], maps["overdue"], observation)
    return SelfWatch(maps["watch_vips"], watch, observation.unserved)


def detach_all(ip: IPRoute, pin_dir: Path) -> list[str]:
    """Take it off everywhere and remove its pins; returns the interfaces' names."""
    released = set()
    for link in ip.get_links():
        for interface in attach.by_index(ip, link["index"]):
            for parent in _PARENTS:
                if attach.filter_name(ip, interface, attach.WATCHER, parent) == FILTER:
                    attach.detach_filter(ip, interface, attach.WATCHER, parent)
                    released.add(interface.name)
    shutil.rmtree(pin_dir / "watch", ignore_errors=True)
    return sorted(released)


def _maps(place: Path, limits: Limits) -> dict[str, Map]:
    directory = place / "maps"
    endpoint, vip = ctypes.sizeof(structs.Endpoint), ctypes.sizeof(structs.WatchVip)
    shared = specs(limits)
    wanted = {name: shared[name] for name in ("watched", "totals", "overdue", "scratch")}
    wanted["watch_vips"] = MapSpec(MapType.HASH, endpoint, vip, _ROOM)
    if not directory.exists():
        making = begin_making(place)
        for name, each in wanted.items():
            each.create(name).pin(making / name)
        making.rename(directory)
    return {name: Map.open(directory / name) for name in wanted}
