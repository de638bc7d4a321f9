"""The backend's side of modes ipip and gue: tc/decap.c, loaded, pinned and attached.

Pin paths: <pin_dir>/maps/{decap_vips,decap_stats}, <pin_dir>/program_<fingerprint>. As with lbd, what is
attached outlives the process that attached it.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from pyroute2 import IPRoute

from lb.datapath import attach, compile, mapkeys, sources, structs
from lb.datapath.bpf import Map, MapType, Program
from lb.datapath.encode import index_key
from lb.datapath.lifecycle import ensure_bpf_fs
from lb.datapath.release import OTHER_FAMILY
from lb.errors import DatapathError
from lb.model.objects import Address

DEFAULT_PINS = Path("/sys/fs/bpf/lb-backend")
FILTER = "lb-decap"
_ROOM = 1024  # VIPs


class DecapOutcome(IntEnum):
    """enum lb_decap_outcome: what became of a tunnel's packet."""

    OPENED = 0
    NOT_A_VIP = 1
    CONGESTED = 2
    FAILED = 3


@dataclass(frozen=True)
class Decapsulation:
    """What is attached on this machine. `counters` are packets and bytes per outcome; `other_family`:
    does this kernel let it open IPv4 in IPv6, and IPv6 in IPv4?"""

    interfaces: tuple[str, ...]
    vips: tuple[Address, ...]
    counters: dict[DecapOutcome, tuple[int, int]]
    other_family: bool


def attach_to(
    ip: IPRoute, interfaces: Sequence[str], vips: Iterable[Address], pin_dir: Path = DEFAULT_PINS
) -> None:
    """Open tunnels' packets for these VIPs (and no others any more) that come in by these interfaces, on
    top of those that it is attached to already. Raises an error that says what to do."""
    found = attach.check(ip, interfaces)
    ensure_bpf_fs(pin_dir)
    wanted = set(vips)
    maps = _maps(pin_dir)
    held = {mapkeys.address_from(key) for key, _ in maps["decap_vips"].items()}
    for vip in wanted - held:
        maps["decap_vips"].put(mapkeys.address_bytes(vip), bytes([1, 0, 0, 0]))
    for vip in held - wanted:
        maps["decap_vips"].delete(mapkeys.address_bytes(vip))
    path = pin_dir / f"program_{sources.fingerprint('tc')}"
    if not path.exists():
        compile.load("tc", pin_dir, path, "decap")
    program = Program.open(path)
    for interface in found:
        attach.attach_filter(ip, interface, program, FILTER, attach.DECAPSULATOR)
    attached = {interface.name for interface in _attached(ip)}
    for old in pin_dir.glob("program_*"):
        if old != path and attached <= {interface.name for interface in found}:
            old.unlink()


def detach_all(ip: IPRoute, pin_dir: Path = DEFAULT_PINS) -> list[str]:
    """Take it off everywhere and remove its pins; returns the interfaces' names."""
    released = _attached(ip)
    for interface in released:
        attach.detach_filter(ip, interface, attach.DECAPSULATOR)
    shutil.rmtree(pin_dir, ignore_errors=True)
    return sorted(interface.name for interface in released)


def look(ip: IPRoute, pin_dir: Path = DEFAULT_PINS) -> Decapsulation:
    """What is attached. Raises DatapathError if nothing is."""
    interfaces = tuple(sorted(interface.name for interface in _attached(ip)))
    if not interfaces or not (pin_dir / "maps").exists():
        raise DatapathError(
            "no tunnel's packets are opened on this machine",
            hint="lbctl backend-node attach --interface IFACE --vip ADDRESS",
        )
    maps = _maps(pin_dir)
    vips = sorted(
        (mapkeys.address_from(key) for key, _ in maps["decap_vips"].items()),
        key=lambda vip: (vip.version, int(vip)),
    )
    counters = {each: _sum(maps["decap_stats"], each) for each in DecapOutcome}
    return Decapsulation(interfaces, tuple(vips), counters, OTHER_FAMILY.is_here())


def _maps(pin_dir: Path) -> dict[str, Map]:
    directory = pin_dir / "maps"
    size = ctypes.sizeof(structs.Counter)
    wanted = {
        "decap_vips": (MapType.HASH, 16, 4, _ROOM),
        "decap_stats": (MapType.PERCPU_ARRAY, 4, size, len(DecapOutcome)),
    }
    if not directory.exists():
        making = pin_dir / "maps_new"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True, mode=0o700)
        for name, (kind, key, value, room) in wanted.items():
            Map.create(kind, f"lb_{name}"[:15], key, value, room).pin(making / name)
        making.rename(directory)
    return {name: Map.open(directory / name) for name in wanted}


def _attached(ip: IPRoute) -> list[attach.Interface]:
    return [
        interface
        for link in ip.get_links()
        for interface in attach.by_index(ip, link["index"])
        if attach.filter_name(ip, interface, attach.DECAPSULATOR) == FILTER
    ]


def _sum(source: Map, index: int) -> tuple[int, int]:
    raw = source.get(index_key(index)) or b""
    size = ctypes.sizeof(structs.Counter)
    cpus = [structs.Counter.from_buffer_copy(raw, at) for at in range(0, len(raw), size)]
    return sum(cpu.packets for cpu in cpus), sum(cpu.bytes for cpu in cpus)
