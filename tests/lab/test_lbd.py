"""lbd as people meet it: what it refuses, and in which words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import create, remove_all, service

from lb.lab.lab import Lab
from lb.lab.node import program
from lb.lab.shell import PATIENCE, wait_until
from lb.lab.topology import VIP4
from lb.model import keys
from lb.store.base import Put
from lb.store.opening import open_store


def test_what_lbd_refuses(lab: Lab) -> None:
    pins = lab.node_folder / "bpf"
    for arguments, status, words in (
        (["--interface", "nope"], 3, "interface 'nope' does not exist"),
        (["--interface", "lo"], 2, "is the loopback"),
        (["--config", "/nowhere.toml"], 3, "/nowhere.toml does not exist"),
        (["--store", "redis://somewhere"], 2, "redis"),
    ):
        refused = _lbd(lab, *arguments)
        assert refused.returncode == status, refused.stderr
        assert words in refused.stderr
        assert "hint: " in refused.stderr
    assert not (pins / "lb").exists()
    assert "xdp" not in lab.run("node1", ["ip", "link", "show", "front0"]).stdout


def _lbd(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{lab.topology.node}", *program("lbd"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **lab.lb_environment},
        check=False,
    )


def test_somebody_elses_xdp_program_is_named_and_left_alone(lab: Lab) -> None:
    foreign = lab.node_folder / "bpf/pass"  # the lab's own, from the other ends of the veths
    lab.run("node1", ["ip", "link", "set", "dev", "back0", "xdpdrv", "pinned", str(foreign)])
    try:
        lab.write_config("xdp")
        refused = _lbd(lab)
        assert refused.returncode == 6
        assert "'back0' carries somebody else's XDP program 'lab_pass'" in refused.stderr
        assert "ip link set back0 xdp off" in refused.stderr
        assert "lab_pass" in lab.run("node1", ["ip", "-d", "link", "show", "back0"]).stdout
        # Nothing was changed: front0 is not attached either.
        assert "xdp" not in lab.run("node1", ["ip", "link", "show", "front0"]).stdout
        # tc can stand beside it, and auto takes it.
        lab.start_lbd("auto")
        assert "hook=tc" in lab.lbd_ready_line
    finally:
        lab.detach_lbd()
        lab.lbd = None
        lab.run("node1", ["ip", "link", "set", "dev", "back0", "xdp", "off"])


def test_a_second_lbd_is_refused(running: Lab) -> None:
    refused = _lbd(running)
    assert refused.returncode == 4
    assert f"pid {_main_pid(running)}" in refused.stderr


def _main_pid(lab: Lab) -> int:
    (node,) = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
    return int(node["pid"])


def test_a_map_that_is_full_is_named_and_nothing_is_changed(lab: Lab) -> None:
    lab.detach_lbd()  # of the test before
    lab.lbd = None
    lab.write_config()
    small = lab.node_folder / "small.toml"
    small.write_text(lab.config.read_text() + "[limits]\nbackends = 4\n")
    env = {**os.environ, "LB_CONFIG": str(small)}
    lab.config, whole = small, lab.config
    try:
        # start_lbd writes the file anew; so start it by hand.
        child = lab.popen("node1", program("lbd"), env=env)
        wait_until(
            "lbd", lambda: json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"], timeout=30
        )
        lab.lbctl("service", "add", "web", "--vip", f"{VIP4}:80")
        for number in range(1, 4):
            lab.lbctl("backend", "add", "web", f"b{number}", f"203.0.113.{10 + number}", "--wait")
        full = lab.lbctl("backend", "add", "web", "b4", "203.0.113.14", check=False)
        assert full.returncode == 8
        assert "is full (3): 4 entries are needed" in full.stderr
        assert "limits.backends" in full.stderr
        assert "b4" not in lab.lbctl("backend", "list", "web").stdout
        remove_all(lab)
        child.terminate()
        child.wait(timeout=10)
        lab.detach_lbd()
    finally:
        lab.config = whole


def test_documents_that_make_no_sense_do_not_stop_what_is_served(running: Lab) -> None:
    """Also not after a restart, when lbd has no earlier version of them in memory."""
    lab = running
    create(lab, service(lab, "web", VIP4))
    with open_store(str(lab.node_folder / "store.db")) as store:
        for key in (keys.service("web"), keys.CONFIG):
            good = store.get(key)
            assert good
            lab.kill_lbd()
            store.commit([Put(key, good.value.replace("{", '{"of_another_version": 1, ', 1))])
            lab.start_lbd()
            assert lab.answer(VIP4) in lab.topology.backends
            quarantined = json.loads(lab.lbctl("status", "-o", "json").stdout)["quarantined"]
            assert "of_another_version" in str(quarantined)
            # Nothing of that makes lbd write: its own reports are not a reason for the next ones.
            before = store.read(keys.ROOT).revision
            assert lab.lbd
            lab.lbd.send_signal(signal.SIGHUP)
            assert lab.answer(VIP4) in lab.topology.backends
            assert store.read(keys.ROOT).revision - before <= 2
            store.commit([Put(key, good.value)])
    wait_until("the good version", lambda: not _quarantined(lab))


def test_numbers_that_no_table_has_do_not_end_lbd(running: Lab) -> None:
    """Nor at a start, when no good version of it is known: then the table is begun anew."""
    lab = running
    create(lab, service(lab, "web", VIP4))
    with open_store(str(lab.node_folder / "store.db")) as store:
        good = store.get(keys.table("web"))
        assert good
        for fields in (
            {"runs": [[10**30, 65536]]},
            {"runs": [[0, 1 << 62]] * 4 + [[0, 65536]]},  # as many as there are slots, modulo 2^64
            {"moves": [[0, 10, 0, 10**30]]},
        ):
            store.commit([Put(good.key, json.dumps({**json.loads(good.value), **fields}))])
            assert good.key in str(_quarantined(lab))
            assert lab.answer(VIP4) in lab.topology.backends
            lab.kill_lbd()
            lab.start_lbd()
            wait_until("a table that can be read", lambda: not _quarantined(lab))
            assert lab.answer(VIP4) in lab.topology.backends
            assert lab.lbd
            assert lab.lbd.poll() is None


def _quarantined(lab: Lab) -> list[object]:
    found: list[object] = json.loads(lab.lbctl("status", "-o", "json").stdout)["quarantined"]
    return found


def test_an_interface_taken_by_somebody_else_is_reported_and_retried(node: Callable[[str], Lab]) -> None:
    lab = node("xdp")
    create(lab, service(lab, "web", VIP4))
    foreign = lab.node_folder / "bpf/pass"
    # In one step: lbd takes back at once what is only taken off.
    lab.run("node1", ["ip", "-force", "link", "set", "dev", "front0", "xdpdrv", "pinned", str(foreign)])
    assert lab.lbd
    lab.lbd.send_signal(signal.SIGHUP)

    def problems() -> str:
        (node,) = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
        return str(node["problems"])

    wait_until("the report", lambda: "somebody else's XDP program" in problems())
    # That is no reason to leave everything else undone; and it is said for as long as it lasts.
    lab.lbctl("backend", "weight", "web", lab.topology.backends[0], "7", "--wait")
    assert "somebody else's XDP program" in problems()
    lab.run("node1", ["ip", "link", "set", "dev", "front0", "xdp", "off"])
    wait_until("the way back", lambda: lab.answer(VIP4) in lab.topology.backends)
    wait_until("the all-clear", lambda: problems() == "[]")
    assert lab.lbd.poll() is None


def test_what_a_killed_lbd_left_half_made_is_no_obstacle(lab: Lab) -> None:
    lab.detach_lbd()
    lab.lbd = None
    half = lab.node_folder / "bpf/lb/maps_new"
    half.mkdir(parents=True)
    lab.start_lbd()
    assert not half.exists()
    lab.kill_lbd()
    missing = lab.node_folder / "bpf/lb/maps/outcomes"
    missing.unlink()
    lab.start_lbd()  # as of a version that had no such map
    assert missing.exists()
    assert "another version of lbd was here: made outcomes" in lab.lbd_log.read_text()
    lab.kill_lbd()
    lab.detach_lbd()
    assert not (lab.node_folder / "bpf/lb").exists()


def test_doctor_names_what_is_wrong(lab: Lab) -> None:
    lab.write_config()
    checks = _doctor(lab, lab.config)
    assert not [each for each in checks if each["ok"] is False]
    assert {"kernel", "bcc", "headers", "interface front0"} <= {each["name"] for each in checks}
    broken = lab.node_folder / "broken.toml"
    broken.write_text(lab.config.read_text().replace('"back0"', '"nope"'))
    lab.run("node1", ["ip", "link", "set", "front0", "mtu", "1400"])
    try:
        wrong = {each["name"]: each for each in _doctor(lab, broken) if each["ok"] is False}
        assert "does not exist" in wrong["interface nope"]["detail"]
        small = [each for each in _doctor(lab, lab.config) if each["name"] == "mtu"]
        assert "front0 mtu 1500" in small[0]["hint"]
    finally:
        lab.run("node1", ["ip", "link", "set", "front0", "mtu", "1500"])


def _doctor(lab: Lab, config: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{lab.topology.node}", *program("lbctl"), "doctor", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        env={**os.environ, "LB_CONFIG": str(config)},
        check=False,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.returncode == any(each["ok"] is False for each in found)
    return found
