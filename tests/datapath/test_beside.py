"""The programs beside the balancer's own two: they share its headers, and must not be left behind when
those change."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lb.datapath import beside, compile, decap, selfwatch
from lb.datapath.bpf import Program
from lb.datapath.maps import Maps

from . import harness


def _pin_maps(place: Path) -> None:
    maps = Maps.create(harness.LIMITS)
    maps.pin(place)
    for _, each in maps:
        each.close()


MAPS: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys((*beside.PROBES.sides, *beside.MIRRORS.sides), _pin_maps),
    "decap": decap._maps,
    "watch": lambda place: selfwatch._maps(place, harness.LIMITS),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_kernel_takes_it(name: str, record_property) -> None:
    with tempfile.TemporaryDirectory(prefix="lb-test-") as folder:
        place = Path(folder)
        subprocess.run(["mount", "-t", "bpf", "lb-test", folder], check=True)
        try:
            MAPS[name](place)
            assert compile.load("tc", place, place / name, name)["instructions"] > 0
            verified = harness.verified_instructions(Program.open(place / name))
        finally:
            subprocess.run(["umount", folder], check=True)
    record_property("verified", verified)
    # Of a million. 6.1 goes through 220,123 of probe_out, 6.12 through 62,685.
    assert verified < 500_000
