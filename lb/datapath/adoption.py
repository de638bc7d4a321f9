"""Maps that an lbd of another version pinned: adopted, unless that loses what nobody could get back.

The old program goes on meanwhile, with the maps that it was loaded with, pinned or not. So a map that
is made here has no reader until a program is compiled for it (Maps.fingerprint() sees to that) and
swapped in by lifecycle.py. Nobody changes services or backends before that: the old one lacks nothing.

What holds at each moment, also if lbd is killed there: pins are whole maps, of the layout before or
after; and what a later lbd still finds odd leads to the same maps being made.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lb.datapath.bpf import Map
from lb.datapath.maps import Maps, MapSpec, begin_making, in_force, pinned, specs
from lb.errors import DatapathError
from lb.settings import Limits


def adopt(pin_dir: Path, limits: Limits) -> tuple[Maps, list[str]]:
    """The pinned maps, and the names of those that had to be made; `limits` says how large where no
    pinned map does. Raises DatapathError, before anything is changed, if one that may not be made anew
    has another layout."""
    directory = pin_dir / "maps"
    have = pinned(directory)
    wanted = specs(in_force(limits, have))
    odd = {name for name, spec in wanted.items() if name not in have or not spec.fits(have[name])}
    if lost := [name for name in wanted if name in odd & have.keys() and not wanted[name].anew]:
        raise _another_version(lost)
    if not odd:
        return Maps({name: have[name] for name in wanted}), []
    former = {name: have[name] for name in odd & have.keys() if _carries(wanted[name], have[name])}
    making = begin_making(pin_dir)
    made = _with_others(wanted, odd)
    # The odd ones last: if this lbd is killed here, they tell the next one that all are to be made.
    for name in sorted(made, key=lambda name: name in odd):
        have[name] = wanted[name].create(name)
        if name in former:
            Maps(have, former={name: former[name]}).carry_over()
        have[name].pin(making / name)
        (making / name).rename(directory / name)
    making.rmdir()
    return Maps({name: have[name] for name in wanted}, former=former), sorted(made)


def _with_others(wanted: dict[str, MapSpec], odd: Collection[str]) -> set[str]:
    """With the maps that have to be made anew beside them."""
    reasons = {wanted[name].anew for name in odd if wanted[name].anew and not wanted[name].counts}
    return {*odd, *(name for name, spec in wanted.items() if spec.anew in reasons)}


def _carries(spec: MapSpec, have: Map) -> bool:
    return spec.counts and spec.has_layout_of(have)


def _another_version(names: list[str]) -> DatapathError:
    have = "has" if len(names) == 1 else "have"
    return DatapathError(
        f"the pinned maps are of another version of lb ({', '.join(names)} {have} another layout)",
        hint="go on with that version; or lbd --detach removes the maps, then start lbd: between the two"
        " there is no traffic, flows that conntrack or fullnat remembers break, and counters begin at 0"
        " (services and backends are in the store, and come back)",
    )
