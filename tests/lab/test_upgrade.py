"""Another version of lbd takes over while traffic flows: no packet is lost, nothing is forgotten."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import create, held, outcomes, service

import lb
from lb.datapath import sources
from lb.datapath.bpf import Map
from lb.lab.lab import UDP_PORT, Lab
from lb.lab.shell import PATIENCE
from lb.lab.topology import VIP4

STEADY = Path(__file__).with_name("steady.py")


@contextmanager
def steady(lab: Lab, found: dict[str, int]) -> Iterator[None]:
    """A client asks all the time meanwhile; `found` then has what it says at the end."""
    child = subprocess.Popen(
        [
            *("nsenter", f"--net=/run/netns/{lab.topology.client}"),
            *(sys.executable, str(STEADY), str(VIP4), str(UDP_PORT)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout
        assert child.stdout.readline() == "answered\n"
        yield
        output, _ = child.communicate(timeout=10 * PATIENCE)
        found |= json.loads(output)
    finally:
        child.kill()
        child.wait()


# A version with a map more, and with two of another size, one of which holds counters and one nothing.
OTHER_MAPS = """
from dataclasses import replace

_before = specs


def specs(limits):
    found = _before(limits)
    scratch, outcomes = found["scratch"], found["outcomes"]
    found["scratch"] = replace(scratch, value_size=scratch.value_size + 64)
    found["outcomes"] = replace(outcomes, max_entries=outcomes.max_entries + 1)
    found["novelty"] = MapSpec(MapType.HASH, 8, 8, limits.backends)
    return found
"""


@pytest.fixture
def another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From its call on the lab's programs are those of a checkout whose kernel programs differ; or, with
    `maps`, those of one that has this at the end of maps.py."""

    def switch(maps: str = "") -> None:
        shutil.copytree(Path(lb.__file__).parent, tmp_path / "lb")
        for part in ("xdp", "tc"):
            shutil.copytree(sources.directory() / part, tmp_path / part)
        if maps:
            with (tmp_path / "lb/datapath/maps.py").open("a") as source:
                source.write(maps)
        else:
            with (tmp_path / "xdp/include/lb_consts.h").open("a") as header:
                header.write(f"/* {tmp_path.name} */\n")
        mains = {"lbd": "lb.node.main", "lbctl": "lb.cli.main"}
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("PYTHONSAFEPATH", "1")  # not from where the tests are run
        monkeypatch.setattr(
            "lb.lab.node.program",
            lambda name: [sys.executable, "-c", f"from {mains[name]} import main; main()"],
        )

    return switch


def attached(lab: Lab) -> dict[str, set[int]]:
    """The ids of the programs that are on the node's interfaces."""
    shown = json.loads(lab.run("node1", ["bpftool", "-j", "net", "show"]).stdout)[0]
    found: dict[str, set[int]] = {}
    for kind in ("xdp", "tc"):
        for each in shown[kind]:
            number = each.get("prog_id") or each.get("id")
            found.setdefault(each["devname"], set()).add(number)
    return found


@pytest.mark.parametrize("mode", ["dsr", "nat", "fullnat"])
@pytest.mark.parametrize("hook", ["xdp", "xdp-generic", "tc"])
def test_no_packet_is_lost(
    node: Callable[[str], Lab], hook: str, mode: str, another_version: Callable[..., None]
) -> None:
    lab = node(hook)
    lab.start_udp_servers()
    create(
        lab,
        service(lab, "web", VIP4, mode=mode),
        service(lab, "udp", VIP4, mode=mode, port=UDP_PORT, protocol="udp", tracking="always"),
    )
    pins = lab.node_folder / "bpf/lb"
    before, programs = attached(lab), {path.name for path in pins.glob("program_*")}
    counted, found = outcomes(lab)["forward_redirect"], {"asked": 0, "lost": 0}
    with held(lab, VIP4, 40) as connections, steady(lab, found):
        was = connections.ask()
        another_version()
        lab.kill_lbd()
        lab.start_lbd(hook)
        assert connections.ask() == was
    after = attached(lab)
    assert {*after["front0"], *after["back0"]}.isdisjoint({*before["front0"], *before["back0"]})
    assert programs.isdisjoint(path.name for path in pins.glob("program_*"))
    assert found["lost"] == 0
    assert found["asked"] > 1000
    assert outcomes(lab)["forward_redirect"] - counted >= found["asked"]
    lab.kill_lbd()  # its files go with this test


def restart(lab: Lab, hook: str) -> None:
    lab.kill_lbd()
    lab.start_lbd(hook)


@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_nor_where_the_other_version_has_other_maps_and_on_the_way_back(
    node: Callable[[str], Lab],
    hook: str,
    another_version: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = node(hook)
    lab.start_udp_servers()
    create(
        lab,
        service(lab, "web", VIP4, mode="fullnat"),
        service(lab, "udp", VIP4, port=UDP_PORT, protocol="udp", tracking="always"),
    )
    pins = lab.node_folder / "bpf/lb/maps"

    def ids() -> dict[str, int]:
        return {path.name: Map.open(path).id for path in pins.iterdir()}

    def flows() -> int:
        """How many are remembered."""
        count: int = json.loads(lab.lbctl("flows", "list", "-o", "json").stdout)["count"]
        return count

    counted, found = outcomes(lab)["forward_redirect"], {"asked": 0, "lost": 0}
    with held(lab, VIP4, 40) as connections, steady(lab, found):
        was = connections.ask()
        programs, maps = attached(lab), ids()
        another_version(OTHER_MAPS)
        restart(lab, hook)
        assert connections.ask() == was
        assert flows() >= 40
        with_others = ids()
        assert with_others.keys() - maps.keys() == {"novelty"}
        changed = {name for name in maps if with_others[name] != maps[name]}
        assert changed == {"scratch", "outcomes"}
        assert programs["front0"].isdisjoint(attached(lab)["front0"])

        # The lbctl of this version, before its lbd: it sees what is as it should be, and makes nothing.
        monkeypatch.undo()
        assert json.loads(lab.lbctl("status", "-o", "json").stdout)["outcomes"] is None
        assert flows() >= 40
        assert ids() == with_others

        restart(lab, hook)
        assert connections.ask() == was
        assert flows() >= 40
        changed = {name for name in maps if ids()[name] != with_others[name]}
        assert changed == {"scratch", "outcomes"}
    assert found["lost"] == 0
    assert found["asked"] > 1000
    # Nobody counts twice what was counted while one program made way for the other: a moment, in which
    # the other was compiled already.
    assert outcomes(lab)["forward_redirect"] - counted >= 0.9 * found["asked"]
    (pins / "novelty").unlink()
