"""The virtual machines are those of `make fleet`, as far as can be told without booting them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lb.lab.fleet_topology import FleetTopology
from lb.lab.topology import VIP4

VAGRANT = Path(__file__).parents[2] / "vagrant"
SCRIPTS = sorted(VAGRANT.glob("provision/*.sh"))


def test_machines_and_addresses_are_those_of_the_fleet() -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    topology = FleetTopology("")
    for group, side, address in (
        (topology.members, "control", topology.control_address),
        (topology.nodes, "control", topology.control_address),
        (topology.nodes, "front", lambda name: topology.node_addresses(name)[0]),
        (topology.backends, "front", lambda name: topology.back_addresses(name)[0]),
    ):
        kind = group[0].rstrip("1")
        first, _, host = str(address(group[0])).rpartition(".")
        line = next(each for each in re.findall(r"MACHINES\[.*", text) if f'"{kind}#{{n}}"' in each)
        written = re.search(rf'{side}: "([\d.]+)\.(?:#{{(\d+) \+ n}}|#{{n}})"', line)
        assert written, line
        assert written[1] == first
        assert int(written[2] or 0) + 1 == int(host)
        assert f"(1..{len(group)})" in text
    (client, *_) = topology.client_addresses
    assert f'clients: "{client}"' in text


def test_the_router_knows_the_vip_and_all_nodes() -> None:
    topology = FleetTopology("")
    (_, line), *_ = topology.ways_to_vip(topology.nodes)
    assert f"ip {line}" in (VAGRANT / "provision/router.sh").read_text()
    for name in ("node", "backend"):
        assert f"ip address replace {VIP4}/32 dev lo" in (VAGRANT / f"provision/{name}.sh").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_read_by_the_shell(script: Path) -> None:
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant (Debian: vagrant, 300 MB)")
def test_vagrant_takes_the_file(tmp_path: Path) -> None:
    env = {**os.environ, "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"), "VAGRANT_HOME": str(tmp_path)}
    command = ["vagrant", "validate", "--ignore-provider"]
    done = subprocess.run(command, cwd=VAGRANT, env=env, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def test_every_role_has_a_script() -> None:
    roles = set(re.findall(r'role: "(\w+)"', (VAGRANT / "Vagrantfile").read_text()))
    assert {each.stem for each in SCRIPTS} == roles | {"common", "lab"}
