"""Pins of another version (lb/datapath/adoption.py): what is made, what is kept, what is refused."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from lb.datapath import adoption, attach, consts, contents, lifecycle, structs
from lb.datapath.bpf import Map, Program, ProgramType, possible_cpus
from lb.datapath.encode import index_key
from lb.datapath.maps import Maps, MapSpec, specs
from lb.errors import DatapathError
from lb.settings import Hook, Limits

from . import harness

LIMITS = Limits(services=4, vips=8, backends=5, conntrack=1024, embryonic=1024, translations=1024)
Change = Callable[[dict[str, MapSpec]], None]


@pytest.fixture
def pins() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lb-test-") as folder:
        subprocess.run(["mount", "-t", "bpf", "lb-test", folder], check=True)
        try:
            yield Path(folder) / "lb"
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def left_by_another_version(pins: Path, change: Change) -> dict[str, int]:
    """Pinned maps whose specs are changed; returns their ids."""
    other = specs(LIMITS)
    change(other)
    maps = Maps({name: replace(spec, first=b"").create(name) for name, spec in other.items()})
    maps.pin(pins)
    return {name: each.id for name, each in maps}


def pinned_ids(pins: Path) -> dict[str, int]:
    return {path.name: Map.open(path).id for path in (pins / "maps").iterdir()}


def grown(name: str, **sizes: int) -> Change:
    def change(other: dict[str, MapSpec]) -> None:
        other[name] = replace(
            other[name], **{size: getattr(other[name], size) + by for size, by in sizes.items()}
        )

    return change


def without(name: str) -> Change:
    return lambda other: other.__delitem__(name)


def both(*changes: Change) -> Change:
    def change(other: dict[str, MapSpec]) -> None:
        for each in changes:
            each(other)

    return change


OBSERVED = ["overdue", "totals", "watched"]
MADE: dict[str, tuple[Change, list[str]]] = {
    "one map fewer": (without("quic"), ["quic"]),
    "a stateless map of another size": (grown("scratch", value_size=64), ["scratch"]),
    "both": (both(without("rules"), grown("probes", key_size=4)), ["probed", "probes", "rules"]),
    "fewer outcomes": (grown("outcomes", max_entries=-2), ["outcomes"]),
    "more fragments' bytes": (grown("fragments", value_size=8), ["fragments"]),
    "kept lookups": (grown("lookups", value_size=8), ["editions", "lookups"]),
    "no editions": (without("editions"), ["editions", "lookups"]),
    "an observation": (grown("overdue", value_size=8), OBSERVED),
    "counters": (grown("backend_stats", value_size=8), ["backend_stats"]),
    "ways out": (grown("egress", max_entries=-64), ["egress"]),
    "a map that nobody knows": (lambda other: other.update(novelty=other["vips"]), []),
}


@pytest.mark.parametrize(("change", "made"), MADE.values(), ids=MADE)
def test_what_is_missing_or_fleeting_is_made_and_all_else_stays(
    pins: Path, change: Change, made: list[str]
) -> None:
    before = left_by_another_version(pins, change)
    maps, names = adoption.adopt(pins, LIMITS)
    assert names == made
    after = pinned_ids(pins)
    assert after == before | {name: maps.by_name[name].id for name in made}
    assert all(after[name] != before.get(name) for name in made)
    for name, spec in specs(LIMITS).items():
        assert spec.fits(maps.by_name[name])
        assert maps.by_name[name].id == after[name]
    assert maps.misfits(LIMITS) == []
    assert not (pins / "maps_new").exists()
    again, names = adoption.adopt(pins, LIMITS)
    assert names == []
    assert again.fingerprint("xdp") == maps.fingerprint("xdp")


def test_a_new_map_is_a_new_program(pins: Path) -> None:
    left_by_another_version(pins, without("quic"))
    before = Maps({name: Map.open(pins / "maps" / name) for name in pinned_ids(pins)})
    maps, _ = adoption.adopt(pins, LIMITS)
    for hook in (Hook.XDP, Hook.TC):
        assert maps.fingerprint(hook) != before.fingerprint(hook)
    assert maps.fingerprint(Hook.XDP) == maps.fingerprint(Hook.XDP_GENERIC) != maps.fingerprint(Hook.TC)


@pytest.mark.parametrize(
    "name",
    ["conntrack", "embryonic", "bindings", "translations", "services", "backends", "vips", "nat_back",
     "rules", "senders", "links", "backend_owners", "service_owners"],
)  # fmt: skip
def test_state_of_another_layout_is_refused_and_nothing_is_changed(pins: Path, name: str) -> None:
    before = left_by_another_version(
        pins, both(grown(name, value_size=8), grown("scratch", value_size=8), without("quic"))
    )
    with pytest.raises(DatapathError, match=f"another version of lb \\({name} has") as caught:
        adoption.adopt(pins, LIMITS)
    assert "lbd --detach" in caught.value.hint
    assert "conntrack" in caught.value.hint
    assert pinned_ids(pins) == before


def test_an_array_too_short_is_refused_a_hash_is_a_misfit(pins: Path) -> None:
    left_by_another_version(pins, both(grown("tables", max_entries=-1)))
    with pytest.raises(DatapathError, match="tables has another layout"):
        adoption.adopt(pins, LIMITS)
    subprocess.run(["rm", "-r", str(pins / "maps")], check=True)
    left_by_another_version(pins, grown("nat_back", max_entries=-1))
    maps, made = adoption.adopt(pins, LIMITS)
    assert made == []
    assert maps.misfits(LIMITS) == ["nat_back has room for 4, not 5"]


def test_limits_in_force_are_those_of_the_pinned_maps(pins: Path) -> None:
    left_by_another_version(pins, both(without("probed"), without("conntrack")))
    # lb.toml was changed meanwhile: an id of `backends` must have its place all the same.
    maps, made = adoption.adopt(pins, LIMITS.model_copy(update={"backends": 3, "conntrack": 2048}))
    assert made == ["conntrack", "probed", "probes"]
    assert maps.probed.max_entries == LIMITS.backends
    assert maps.conntrack.max_entries == 2048


def test_counters_go_on(pins: Path) -> None:
    left_by_another_version(pins, grown("outcomes", max_entries=-1))
    old = Map.open(pins / "maps/outcomes")
    one = [bytes(structs.Counter(10 * cpu, cpu)) for cpu in range(possible_cpus())]
    old.put(index_key(3), b"".join(one))
    maps, _ = adoption.adopt(pins, LIMITS)
    assert maps.outcomes.get(index_key(3)) == b"".join(one)
    assert not any(maps.outcomes.get(index_key(len(consts.Outcome) - 1)) or b"")
    # The old program counts on until the new one is attached.
    more = b"".join(bytes(structs.Counter(99, 9)) for _ in one)
    old.put(index_key(3), more)
    maps.carry_over()
    assert maps.outcomes.get(index_key(3)) == more
    again, _ = adoption.adopt(pins, LIMITS)
    assert again.former == {}


def test_a_program_that_finds_new_editions_looks_everything_up(pins: Path) -> None:
    left_by_another_version(pins, without("editions"))
    maps, _ = adoption.adopt(pins, LIMITS)
    edition = structs.Edition.from_buffer_copy(maps.editions.get(index_key(0)) or b"")
    assert edition.has == consts.Has.RANGES | consts.Has.NAT_BACK
    contents.turn_page(maps, consts.Has(0))
    edition = structs.Edition.from_buffer_copy(maps.editions.get(index_key(0)) or b"")
    assert (edition.number, edition.has) == (1, 0)


class Killed(Exception):
    pass


CHANGED = both(
    without("quic"),
    without("totals"),
    grown("editions", value_size=8),
    grown("scratch", value_size=8),
    grown("outcomes", max_entries=-1),
)


@pytest.mark.parametrize("step", range(18))
def test_a_kill_at_any_moment_leaves_what_the_next_one_adopts(
    pins: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before = left_by_another_version(pins, CHANGED)
    left = [step]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return original(*args)

        return call

    made = {"quic", "totals", "watched", "overdue", "editions", "lookups", "scratch", "outcomes"}
    with monkeypatch.context() as patch:
        patch.setattr(Map, "pin", counted(Map.pin))
        patch.setattr(Path, "rename", counted(Path.rename))
        try:
            adoption.adopt(pins, LIMITS)
        except Killed:
            pass
        else:
            assert step >= 2 * len(made)
    half = pinned_ids(pins)
    maps, _ = adoption.adopt(pins, LIMITS)
    after = pinned_ids(pins)
    assert {name for name in after if after[name] != before.get(name)} == made
    # What speaks of each other is never half old, half new.
    editions = maps.editions.id
    if half.get("editions") == editions:
        assert after["lookups"] == half["lookups"]
    for name, spec in specs(LIMITS).items():
        assert spec.fits(maps.by_name[name])
    assert not (pins / "maps_new").exists()


def test_who_only_looks_makes_nothing_and_misses_what_it_needs(pins: Path) -> None:
    before = left_by_another_version(pins, both(without("quic"), grown("conntrack", value_size=4)))
    maps = Maps.open(pins)
    assert pinned_ids(pins) == before
    assert list(maps.vips.keys()) == []
    for name, words in (("quic", "quic is missing"), ("conntrack", "conntrack has another layout")):
        with pytest.raises(DatapathError, match=f"has not run here yet \\({words}") as caught:
            getattr(maps, name)
        assert "restart lbd" in caught.value.hint
    with pytest.raises(DatapathError, match="has not run here yet"):
        maps.need_all()
    with pytest.raises(AttributeError):
        maps.novelty  # noqa: B018
    Maps.create(LIMITS).need_all()


def test_a_pinned_program_with_former_maps_is_not_taken(
    pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its sources are the same, only the maps tell."""
    loaded = []

    def compile_it(*arguments: Any) -> None:
        loaded.append(arguments[2].name)
        Program.constant(ProgramType.XDP, "lb_test", harness.XDP_PASS).pin(arguments[2])

    monkeypatch.setattr(lifecycle.compile, "load", compile_it)
    left_by_another_version(pins, lambda _: None)
    for expected in (1, 1):
        maps, _ = adoption.adopt(pins, LIMITS)
        lifecycle.load_program(pins, Hook.XDP, maps)
        assert len(loaded) == expected
    (pins / "maps/scratch").unlink()
    maps, made = adoption.adopt(pins, LIMITS)
    assert made == ["scratch"]
    lifecycle.load_program(pins, Hook.XDP, maps)
    assert len(set(loaded)) == 2
    # Both are ours: what is attached now, and what will be.
    assert len(lifecycle.our_programs(pins)) == 2


def test_a_take_down_needs_no_layout(pins: Path) -> None:
    """What can't be adopted has to go away with --detach."""
    left_by_another_version(pins, grown("links", value_size=8))
    (pins / "maps/conntrack").unlink()
    program = Program.constant(ProgramType.XDP, "lb_test", harness.XDP_PASS)
    program.pin(pins / "program_xdp_0123456789abcdef")
    with IPRoute() as ip:
        ours = lifecycle.our_attachments(pins)
        attach.attach(ip, attach.find(ip, "veb"), Hook.XDP, program, ours)
        assert attach.find(ip, "veb").xdp_program == program.id
        assert lifecycle.take_down(ip, pins) == ["veb"]
        assert attach.find(ip, "veb").xdp_program == 0
    assert not pins.exists()


def test_a_new_map_has_to_be_thought_about() -> None:
    fleeting = {name for name, spec in specs(LIMITS).items() if spec.anew}
    assert fleeting == {
        "editions", "lookups", "scratch", "probed", "probes", "fragments", "egress", "watched", "totals",
        "overdue", "mirrored", "allowance", "outcomes", "service_stats", "backend_stats", "mirror_stats",
    }  # fmt: skip
