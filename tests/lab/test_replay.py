"""lbctl replay: the program's word on a capture, with everything that is alive left as it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dpkt
import pytest
from helpers import create, outcomes, service
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from lb.lab.lab import Lab
from lb.lab.node import program
from lb.lab.shell import environment
from lb.lab.topology import VIP4

CLIENT = "198.51.100.10"
FLOWS = 16
ELSEWHERE = "02:00:00:00:00:99"  # where the capture was made


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """SYNs of some flows, then an ACK of each; then what isn't for us."""
    path = tmp_path / "in.pcap"
    ether = Ether(src="02:00:00:00:00:01", dst=ELSEWHERE)
    frames = [
        ether / IP(src=CLIENT, dst=str(VIP4)) / TCP(sport=4000 + n, dport=80, flags=flags)
        for flags in ("S", "A")
        for n in range(FLOWS)
    ]
    frames += [
        ether / IP(src=CLIENT, dst=str(VIP4)) / UDP(sport=4000, dport=80),
        ether / IP(src=CLIENT, dst="203.0.113.99") / TCP(sport=4000, dport=80),
        ether / ARP(pdst=str(VIP4)),
        b"\x02short",
    ]
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for at, frame in enumerate(frames):
            writer.writepkt(bytes(frame), ts=1000 + at)
    return path


def _replay(lab: Lab, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *("nsenter", f"--net=/run/netns/{lab.topology.node}", *program("lbctl"), "replay"),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(lab.lb_environment),
        check=False,
    )


def _frames(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["frames"]
    return rows


@pytest.mark.parametrize("tracking", ["moving", "always"])
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_every_frame_is_listed_and_nothing_alive_is_touched(
    node: Callable[[str], Lab], capture: Path, tmp_path: Path, tracking: str, hook: str
) -> None:
    lab = node("auto")
    create(lab, service(lab, "web", VIP4, tracking=tracking))
    before, flows = _counted(lab), _conntrack(lab)
    out = tmp_path / "out.pcap"
    rows = _frames(_replay(lab, capture, "--to-us", "--hook", hook, "--write", out, "-o", "json"))
    assert (_counted(lab), _conntrack(lab)) == (before, flows)
    assert not list((lab.node_folder / "bpf/lb").glob("replay_*"))

    begun, went_on, rest = rows[:FLOWS], rows[FLOWS : 2 * FLOWS], rows[2 * FLOWS :]
    for row in begun:
        port = 3999 + row["frame"]
        traced = json.loads(lab.lbctl("trace", f"{CLIENT}:{port}", f"{VIP4}:80", "-o", "json").stdout)
        assert (row["service"], row["pool"], row["backend"]) == ("web", "stable", traced["backend"])
        assert row["outcome"] == "forward_redirect"
    assert [row["backend"] for row in went_on] == [row["backend"] for row in begun]
    assert len({row["backend"] for row in begun}) > 1
    assert [row["outcome"] for row in rest] == ["pass_not_ours"] * 4
    assert all((row["service"], row["verdict"]) == (None, "pass") for row in rest)

    with out.open("rb") as file:
        left = [bytes(frame) for _, frame in dpkt.pcap.Reader(file)]
    macs = {
        name: json.loads(lab.run(name, ["ip", "-j", "link", "show", "back0"]).stdout)[0]["address"]
        for name in lab.topology.backends
    }
    assert [Ether(frame).dst for frame in left[: 2 * FLOWS]] == [
        macs[row["backend"]] for row in (*begun, *went_on)
    ]


def _counted(lab: Lab) -> dict[str, int]:
    """All that nobody but us causes: neighbours ask for each other's addresses at any time."""
    return {name: packets for name, packets in outcomes(lab).items() if name != "pass_not_ours"}


def _conntrack(lab: Lab) -> set[str]:
    pins = lab.node_folder / "bpf/lb/maps"
    found = set()
    for name in ("conntrack", "embryonic"):
        command = ["bpftool", "-j", "map", "dump", "pinned", str(pins / name)]
        dumped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found |= {str(each["key"]) for each in json.loads(dumped)}
    return found


def test_frames_for_another_machine_are_not_ours(running: Lab, capture: Path) -> None:
    create(running, service(running, "web", VIP4))
    rows = _frames(_replay(running, capture, "-o", "json"))
    assert {row["outcome"] for row in rows} == {"pass_not_ours"}


def test_what_replay_refuses(running: Lab, tmp_path: Path) -> None:
    text = tmp_path / "notes.pcap"
    text.write_text("this is no capture, and long enough to be read as if it were one")
    for arguments, status, words in (
        ([tmp_path / "none.pcap"], 3, "does not exist"),
        ([text], 2, "is no capture"),
        ([tmp_path], 2, "is a directory"),
    ):
        refused = _replay(running, *arguments)
        assert (refused.returncode, words in refused.stderr) == (status, True), refused.stderr
        assert "hint: " in refused.stderr
