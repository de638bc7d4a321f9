"""The kernel maps: made, pinned, and adopted by the next lbd.

Pin paths (also for bpftool): <pin_dir>/maps/<name>, <pin_dir>/program_<xdp|tc>_<fingerprint>.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from ctypes import sizeof
from dataclasses import dataclass, field
from pathlib import Path

from lb.datapath import consts, sources, structs
from lb.datapath.bpf import Map, MapType
from lb.errors import DatapathError
from lb.settings import Limits

_PROBES = 8192  # health checks via the VIP that are under way: 2,000 a second for up to four seconds
_F_NO_PREALLOC = 1 << 0  # memory for the entries that there are, not for all that there may be


# Why another version of lbd may begin with an empty map, where it wants another layout. Whoever runs
# meanwhile is the old program, and it holds its own maps until the new one is in its place.
_KEPT_BY_CPUS = (
    "each CPU finds again what it kept; a program that finds no edition would look nothing up"
)
_OF_ONE_PACKET = "it is only used while a program looks at one packet"
_OF_CHECKS = (
    "checks that are under way end with lbd, and their backends are written before the first new one"
)
_OF_PIECES = "pieces of a datagram come within moments of each other"
_OF_LINKS = "lbd fills it before it attaches a program"
_OBSERVED = "an observation may begin anew: another epoch tells whoever compares"
_COPIED = "copies that are under way may be given up: answers to them are known by their servers, too"
_OF_A_SECOND = "a second later nothing of it is spent, as in a new one"
_COUNTED = "counters may begin at 0"


@dataclass(frozen=True)
class MapSpec:
    """One map: its type, the sizes of key and value in bytes, its capacity.

    `anew`: why another version may begin with an empty one. No reason where it may not, as nobody could
    get back in time what is in it: flows, ids and generations, what is served, where programs are.
    Maps with the same reason speak of each other, and are made anew together; but for counters, whose
    values are carried over where only their number differs. `first`: the first element of an array.
    """

    kind: MapType
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    anew: str = ""
    first: bytes = b""

    @property
    def counts(self) -> bool:
        """Is it one of counters?"""
        return self.anew is _COUNTED

    def has_layout_of(self, have: Map) -> bool:
        """Are types, and sizes of keys and values, the same?"""
        return (self.kind, self.key_size, self.value_size) == (have.type, have.key_size, have.value_size)

    def fits(self, have: Map) -> bool:
        """Can programs and lbd of this version use that map as it is? Of a map that holds flows and the
        like another capacity will do, but all indexes of an array have to be there."""
        if self.anew:
            return self.has_layout_of(have) and have.max_entries == self.max_entries
        is_array = self.kind in (MapType.ARRAY, MapType.ARRAY_OF_MAPS)
        return self.has_layout_of(have) and (not is_array or have.max_entries >= self.max_entries)

    def create(self, name: str) -> Map:
        """A new one, unpinned."""
        inner = new_table() if self.kind is MapType.ARRAY_OF_MAPS else None
        made = Map.create(
            self.kind,
            f"lb_{name}"[:15],
            self.key_size,
            self.value_size,
            self.max_entries,
            inner=inner,
            flags=self.flags,
        )
        if self.first:
            made.put(bytes(4), self.first)
        return made


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
        "editions": MapSpec(
            MapType.ARRAY,
            4,
            sizeof(structs.Edition),
            1,
            anew=_KEPT_BY_CPUS,
            # Anything may be in those maps, until lbd has looked.
            first=bytes(structs.Edition(has=consts.Has.RANGES | consts.Has.NAT_BACK)),
        ),
        "lookups": MapSpec(
            MapType.PERCPU_ARRAY, 4, sizeof(structs.Lookup), consts.LOOKUPS, anew=_KEPT_BY_CPUS
        ),
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
            anew=_OF_PIECES,
        ),
        "probed": MapSpec(MapType.ARRAY, 4, 4, limits.backends, anew=_OF_CHECKS),
        "probes": MapSpec(
            MapType.LRU_HASH,
            sizeof(structs.ProbeKey),
            sizeof(structs.Probe),
            _PROBES,
            anew=_OF_CHECKS,
        ),
        "links": MapSpec(MapType.ARRAY, 4, sizeof(structs.Link), consts.LINKS),
        "egress": MapSpec(MapType.DEVMAP_HASH, 4, 4, 256, anew=_OF_LINKS),
        "scratch": MapSpec(MapType.PERCPU_ARRAY, 4, consts.SCRATCH, 2, anew=_OF_ONE_PACKET),
        "allowance": MapSpec(MapType.PERCPU_ARRAY, 4, 8, len(consts.Error), anew=_OF_A_SECOND),
        "outcomes": MapSpec(
            MapType.PERCPU_ARRAY, 4, sizeof(structs.Counter), len(consts.Outcome), anew=_COUNTED
        ),
        "service_stats": MapSpec(MapType.PERCPU_ARRAY, 4, stats, limits.services, anew=_COUNTED),
        "backend_stats": MapSpec(MapType.PERCPU_ARRAY, 4, stats, limits.backends, anew=_COUNTED),
        "watched": MapSpec(
            MapType.LRU_HASH,
            sizeof(structs.FlowKey),
            sizeof(structs.Watched),
            limits.watched,
            anew=_OBSERVED,
        ),
        "totals": MapSpec(
            MapType.HASH, 8, sizeof(structs.Totals), limits.backends, _F_NO_PREALLOC, anew=_OBSERVED
        ),
        "mirrored": MapSpec(
            MapType.LRU_HASH,
            sizeof(structs.FlowKey),
            sizeof(structs.Mirrored),
            limits.mirrored,
            anew=_COPIED,
        ),
        "mirror_stats": MapSpec(
            MapType.PERCPU_ARRAY, 4, sizeof(structs.MirrorStats), limits.services, anew=_COUNTED
        ),
        "overdue": MapSpec(
            MapType.HASH,
            8,
            sizeof(structs.Overdue),
            limits.backends + 1,
            _F_NO_PREALLOC,
            anew=_OBSERVED,
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
    """All maps, open. `absent`: those that lbctl can't read, and why. `former`: counters that some of
    these replace, while a program still counts there."""

    by_name: dict[str, Map]
    absent: Mapping[str, str] = field(default_factory=dict)
    former: dict[str, Map] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Map:
        if name in self.by_name:
            return self.by_name[name]
        if name in self.absent:
            raise _not_yet(self.absent[name])
        raise AttributeError(name)

    def __iter__(self) -> Iterator[tuple[str, Map]]:
        return iter(self.by_name.items())

    @classmethod
    def open(cls, pin_dir: Path) -> Maps:
        """Open the pinned maps for whoever only looks: nothing is made. Those that an lbd of another
        version made otherwise are absent: using one raises DatapathError, as this does where there are
        no maps at all."""
        directory = pin_dir / "maps"
        if not directory.is_dir():
            raise DatapathError(
                f"there are no maps at {directory}",
                hint="start lbd on this machine, or check pin_dir in lb.toml",
            )
        have = pinned(directory)
        wanted = specs(in_force(Limits(), have))
        absent = {name: f"{name} is missing" for name in wanted.keys() - have.keys()}
        for name, spec in wanted.items():
            if name in have and not spec.fits(have[name]):
                absent[name] = f"{name} has another layout"
                del have[name]
        return cls(have, absent)

    def need_all(self) -> None:
        """Raises DatapathError if one of them is absent."""
        for why in self.absent.values():
            raise _not_yet(why)

    @classmethod
    def create(cls, limits: Limits) -> Maps:
        """New, unpinned maps."""
        return cls({name: spec.create(name) for name, spec in specs(limits).items()})

    def pin(self, pin_dir: Path) -> None:
        """Pin them all, or none: also if lbd is killed in the middle."""
        making = begin_making(pin_dir)
        for name, each in self:
            each.pin(making / name)
        making.rename(pin_dir / "maps")

    def fingerprint(self, hook: str) -> str:
        """Of the programs for this hook that use these maps: changes with any file that they are made
        of, and with each map that is made anew, as a program keeps those that it was loaded with."""
        state = hashlib.blake2b(sources.fingerprint(hook).encode(), digest_size=8)
        for name, each in sorted(self):
            state.update(f"{name} {each.id}\n".encode())
        return state.hexdigest()

    def carry_over(self) -> None:
        """What the former counters have counted. Only while no program counts in their successors."""
        for name, old in self.former.items():
            new = self.by_name[name]
            for index in range(min(old.max_entries, new.max_entries)):
                key = index.to_bytes(4, sys.byteorder)
                new.put(key, old.get(key) or bytes(new.user_value_size))

    def misfits(self, limits: Limits) -> list[str]:
        """Where their capacity differs from these limits, in words."""
        return [
            f"{name} has room for {self.by_name[name].max_entries}, not {spec.max_entries}"
            for name, spec in specs(limits).items()
            if self.by_name[name].max_entries != spec.max_entries
        ]


def pinned(directory: Path) -> dict[str, Map]:
    """The maps of this version that are pinned there, whatever their layout."""
    return {name: Map.open(directory / name) for name in specs(Limits()) if (directory / name).exists()}


def in_force(limits: Limits, have: Mapping[str, Map]) -> Limits:
    """The limits that pinned maps were made with; these where there is none. A map that is made later
    has to go with those: an index of `backends`, for example, with all arrays by backend."""
    sizes = {name: have[name].max_entries for name in Limits.model_fields if name in have}
    return limits.model_copy(update=sizes)


def begin_making(pin_dir: Path) -> Path:
    """An empty directory for pins that are not in force yet; what a killed lbd left there goes."""
    making = pin_dir / "maps_new"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True, mode=0o700)
    return making


def _not_yet(why: str) -> DatapathError:
    return DatapathError(
        f"lbd of this version of lb has not run here yet ({why})",
        hint="restart lbd: it adopts the maps of other versions; or use the lbctl of the lbd that runs",
    )
