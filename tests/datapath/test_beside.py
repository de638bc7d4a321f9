"""The programs that are attached beside the balancer's while they are wanted: they share its headers,
and must not be left behind when those change."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from lb.datapath import beside, compile
from lb.datapath.maps import Maps

from . import harness


@pytest.mark.parametrize("name", [*beside.PROBES.sides, *beside.MIRRORS.sides])
def test_the_kernel_takes_it(name: str) -> None:
    maps = Maps.create(harness.LIMITS)
    with tempfile.TemporaryDirectory(prefix="lb-test-") as folder:
        place = Path(folder)
        subprocess.run(["mount", "-t", "bpf", "lb-test", folder], check=True)
        try:
            maps.pin(place)
            assert compile.load("tc", place, place / name, name)["instructions"] > 0
        finally:
            subprocess.run(["umount", folder], check=True)
    for _, each in maps:
        each.close()
