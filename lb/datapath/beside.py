"""Programs of tc beside the balancer's, at both sides of its interfaces while they are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from lb.datapath import attach, compile
from lb.datapath.attach import Interface
from lb.datapath.bpf import Program
from lb.datapath.maps import Maps


@dataclass(frozen=True)
class Pair:
    """What belongs together: the programs (tc/<name>.c) by the side that they are attached to."""

    sides: Mapping[str, int]
    priority: int

    def attach(
        self, ip: IPRoute, interfaces: Iterable[Interface], maps: Maps, pin_dir: Path, owner: str
    ) -> None:
        """Attach them. `owner`: name of the filters, by which they are known to be ours. Raises
        DatapathError."""
        for interface in interfaces:
            for name, parent in self.sides.items():
                program = _program(name, maps, pin_dir)
                attach.attach_filter(ip, interface, program, owner, self.priority, parent)

    def is_attached(self, ip: IPRoute, interface: Interface, owner: str) -> bool:
        """Is one of them there, and ours?"""
        return any(
            attach.filter_name(ip, interface, self.priority, parent) == owner
            for parent in self.sides.values()
        )

    def release(self, ip: IPRoute, interface: Interface, owner: str) -> None:
        """Take them off, if they are there and ours."""
        for parent in self.sides.values():
            if attach.filter_name(ip, interface, self.priority, parent) == owner:
                attach.detach_filter(ip, interface, self.priority, parent)


PROBES = Pair({"probe_out": attach.EGRESS, "probe_back": attach.INGRESS}, attach.PROBES)
MIRRORS = Pair({"mirror_out": attach.EGRESS, "mirror_in": attach.INGRESS}, attach.MIRRORS)


def release(ip: IPRoute, interface: Interface, owner: str) -> None:
    """Take all of them off."""
    for each in (PROBES, MIRRORS):
        each.release(ip, interface, owner)


def _program(name: str, maps: Maps, pin_dir: Path) -> Program:
    path = pin_dir / f"{name}_{maps.fingerprint('tc')}"
    if not path.exists():
        for old in pin_dir.glob(f"{name}_*"):
            old.unlink()
        compile.load("tc", pin_dir, path, name)
    return Program.open(path)
