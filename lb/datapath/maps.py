"""The kernel maps: made, pinned, and adopted by the next lbd.

Pin paths (also for bpftool): <pin_dir>/maps/<name>, <pin_dir>/program_<xdp|tc>_<fingerprint>.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from ctypes import sizeof
from dataclasses import dataclass
from pathlib import Path

from lb.datapath import consts, structs
from lb.datapath.bpf import Map, MapType
from lb.errors import DatapathError
from lb.settings import Limits

_PROBES = 8192  # health checks via the VIP that are under way: 2,000 a second for up to four seconds
_F_NO_PREALLOC = 1 << 0  # memory for the entries that there are, not for all that there may be


@dataclass(frozen=True)
class MapSpec:
    """One map: its type, the sizes of key and value in bytes, its capacity."""

    kind: MapType
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


def specs(limits: Limits) -> dict[str, MapSpec]:
    """All maps by name. The programs know them as LB_FD_<NAME>, except the owners', which only lbd
    and lbctl read."""
    endpoint = sizeof(structs.Endpoint)
    stats = sizeof(structs.Stats)
    flow = sizeof(structs.FlowKey), sizeof(structs.Flow)
    return {
        "vips": MapSpec(MapType.HASH, endpoint, 4, limits.vips),
        "ranges": MapSpec(MapType.LPM_TRIE, sizeof(structs.Range), 4, limits.vips, _F_NO_PREALLOC),
        "rules": MapSpec(
            MapType.LPM_TRIE,
            sizeof(structs.RuleKey),
            sizeof(structs.Rule),
            limits.rules,
            _F_NO_PREALLOC,
        ),
        "editions": MapSpec(MapType.ARRAY, 4, sizeof(structs.Edition), 1),
        "lookups": MapSpec(MapType.PERCPU_ARRAY, 4, sizeof(structs.Lookup), consts.LOOKUPS),
        "services": MapSpec(MapType.ARRAY, 4, sizeof(structs.Service), limits.services),
        "tables": MapSpec(MapType.ARRAY_OF_MAPS, 4, 4, 2 * limits.services),
        "backends": MapSpec(MapType.ARRAY, 4, sizeof(structs.Backend), limits.backends),
        "conntrack": MapSpec(MapType.LRU_HASH, *flow, limits.conntrack),
        "embryonic": MapSpec(MapType.LRU_HASH, *flow, limits.embryonic),
        "senders": MapSpec(
            MapType.LRU_HASH, sizeof(structs.Sender), sizeof(structs.Place), limits.senders
        ),
        "nat_back": MapSpec(MapType.HASH, endpoint, sizeof(structs.NatBack), limits.backends),
        "bindings": MapSpec(
            MapType.HASH,
            sizeof(structs.FlowKey),
            sizeof(structs.Binding),
            limits.translations,
            _F_NO_PREALLOC,
        ),
        "translations": MapSpec(
            MapType.HASH,
            sizeof(structs.Translated),
            sizeof(structs.Client),
            limits.translations,
            _F_NO_PREALLOC,
        ),
        "quic": MapSpec(MapType.HASH, sizeof(structs.QuicKey), 4, limits.backends, _F_NO_PREALLOC),
        "fragments": MapSpec(
            MapType.LRU_HASH,
            sizeof(structs.FragmentKey),
            sizeof(structs.Fragment),
            limits.fragments,
        ),
        "probed": MapSpec(MapType.ARRAY, 4, 4, limits.backends),
        "probes": MapSpec(MapType.LRU_HASH, sizeof(structs.ProbeKey), sizeof(structs.Probe), _PROBES),
        "links": MapSpec(MapType.ARRAY, 4, sizeof(structs.Link), consts.LINKS),
        "egress": MapSpec(MapType.DEVMAP_HASH, 4, 4, 256),
        "scratch": MapSpec(MapType.PERCPU_ARRAY, 4, consts.SCRATCH, 2),
        "outcomes": MapSpec(MapType.PERCPU_ARRAY, 4, sizeof(structs.Counter), len(consts.Outcome)),
        "service_stats": MapSpec(MapType.PERCPU_ARRAY, 4, stats, limits.services),
        "backend_stats": MapSpec(MapType.PERCPU_ARRAY, 4, stats, limits.backends),
        "watched": MapSpec(
            MapType.LRU_HASH,
            sizeof(structs.FlowKey),
            sizeof(structs.Watched),
            limits.watched,
        ),
        "totals": MapSpec(MapType.HASH, 8, sizeof(structs.Totals), limits.backends, _F_NO_PREALLOC),
        "mirrored": MapSpec(
            MapType.LRU_HASH,
            sizeof(structs.FlowKey),
            sizeof(structs.Mirrored),
            limits.mirrored,
        ),
        "mirror_stats": MapSpec(MapType.PERCPU_ARRAY, 4, sizeof(structs.MirrorStats), limits.services),
        "overdue": MapSpec(
            MapType.HASH, 8, sizeof(structs.Overdue), limits.backends + 1, _F_NO_PREALLOC
        ),
        "service_owners": MapSpec(MapType.ARRAY, 4, sizeof(structs.Owner), limits.services),
        "backend_owners": MapSpec(MapType.ARRAY, 4, sizeof(structs.Owner), limits.backends),
    }


def new_table() -> Map:
    """An inner map of `tables`: one element that is the whole table, so that one system call fills
    it and one reads it. All are of one size, so the program finds a slot without a call (2 to 3 ns, and
    two cache misses where there are many tables)."""
    return Map.create(MapType.ARRAY, "lb_table", 4, sizeof(structs.Table), 1)


@dataclass(frozen=True)
class Maps:
    """All maps, open."""

    by_name: dict[str, Map]

    def __getattr__(self, name: str) -> Map:
        try:
            return self.by_name[name]
        except KeyError:
            raise AttributeError(name) from None

    def __iter__(self) -> Iterator[tuple[str, Map]]:
        return iter(self.by_name.items())

    @classmethod
    def open(cls, pin_dir: Path) -> Maps:
        """Open the pinned maps. Raises DatapathError if lbd has not made them."""
        directory = pin_dir / "maps"
        if not directory.is_dir():
            raise DatapathError(
                f"there are no maps at {directory}",
                hint="start lbd on this machine, or check pin_dir in lb.toml",
            )
        wanted = specs(Limits())
        if missing := [name for name in wanted if not (directory / name).exists()]:
            raise _another_version(f"{', '.join(missing)} missing")
        maps = cls({name: Map.open(directory / name) for name in wanted})
        for name, spec in wanted.items():
            have = maps.by_name[name]
            if (have.type, have.key_size, have.value_size) != (
                int(spec.kind), spec.key_size, spec.value_size,
            ):  # fmt: skip
                raise _another_version(f"{name} has another layout")
        return maps

    @classmethod
    def create(cls, limits: Limits) -> Maps:
        """New, unpinned maps."""
        made: dict[str, Map] = {}
        for name, spec in specs(limits).items():
            inner = new_table() if spec.kind is MapType.ARRAY_OF_MAPS else None
            made[name] = Map.create(
                spec.kind,
                f"lb_{name}"[:15],
                spec.key_size,
                spec.value_size,
                spec.max_entries,
                inner=inner,
                flags=spec.flags,
            )
        return cls(made)

    def pin(self, pin_dir: Path) -> None:
        """Pin them all, or none: also if lbd is killed in the middle."""
        making = pin_dir / "maps_new"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True, mode=0o700)
        for name, each in self:
            each.pin(making / name)
        making.rename(pin_dir / "maps")

    def misfits(self, limits: Limits) -> list[str]:
        """Where their capacity differs from these limits, in words."""
        return [
            f"{name} has room for {self.by_name[name].max_entries}, not {spec.max_entries}"
            for name, spec in specs(limits).items()
            if self.by_name[name].max_entries != spec.max_entries
        ]


def _another_version(what: str) -> DatapathError:
    return DatapathError(
        f"the pinned maps are of another version of lb ({what})",
        hint="lbd --detach removes them (and stops the traffic); then start lbd",
    )
