"""lbctl service slots: what the kernel holds, what is planned, what a change would move."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from lb.core.slots import Member, plan
from lb.datapath.view import Moving

WEIGHTS = {"b1": 100, "b2": 100}


@dataclass
class FakeKernel:
    held: list | None = None
    runs: list = field(default_factory=list)

    def slots(self, _service):
        return self.held

    def moving(self, _service):
        return None if self.held is None else self.runs


@pytest.fixture
def kernel(monkeypatch):
    fake = FakeKernel()
    monkeypatch.setattr("lb.cli.kernel.open_kernel", lambda _settings, _state: fake)
    return fake


@pytest.fixture
def two(lbctl):
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80")
    for number, name in enumerate(WEIGHTS, 1):
        lbctl.ok("backend", "add", "web", name, f"10.1.0.{number}")
    return lbctl


def test_what_the_kernel_holds(two, kernel):
    kernel.held = ["b1"] * 40000 + [None] * 36 + ["b2"] * 25500
    kernel.runs = [Moving(39990, 10, "b2", int(time.time()) + 60), Moving(65000, 5, None, 10**10)]
    data = two.json("service", "slots", "web")
    assert (data["service"], data["source"]) == ("web", "kernel")
    assert data["slots"] == kernel.held
    assert data["moving"][0] == {
        "first": 39990,
        "length": 10,
        "origin": "b2",
        "closes": kernel.runs[0].closes,
    }
    lines = two.ok("service", "slots", "web").out.splitlines()
    assert lines[1].split() == ["b1", "40,000", "61.04", "50", "10", "0"]
    assert lines[2].split() == ["b2", "25,500", "38.91", "50", "5", "10"]
    assert lines[3].split() == ["(nobody)", "36", "0.05", "-", "0", "5"]
    assert "15 slots are moving" in lines[-2]
    assert lines[-1] == f"digest {data['digest']}"


@pytest.mark.usefixtures("kernel")
def test_a_kernel_without_the_service(two):
    result = two("service", "slots", "web")
    assert result.code == 6
    assert "--planned" in result.err


def test_what_is_planned_needs_no_kernel(two):
    data = two.json("service", "slots", "web", "--planned")
    assert Counter(data["slots"]) == {"b1": 32768, "b2": 32768}
    assert (data["source"], data["moving"]) == ("planned", [])
    assert "no slot moved lately" in two.ok("service", "slots", "web", "--planned").out


def test_what_a_change_would_move(two, tmp_path):
    manifest = tmp_path / "change.json"
    backends = [
        {"name": "b1", "address": "10.1.0.1", "weight": 300},
        {"name": "b2", "address": "10.1.0.2"},
    ]
    service = {"name": "web", "vip": "10.0.0.1", "port": 80, "backends": backends}
    manifest.write_text(json.dumps({"services": [service]}))
    data = two.json("service", "slots", "web", "--changes", str(manifest))
    [pair] = data["pairs"]
    assert (pair["from"], pair["to"], pair["slots"]) == ("b2", "b1", data["moved"])
    assert abs(data["moved"] - 16384) <= 1
    assert data["least_possible"]
    assert sum(run["length"] for run in data["runs"]) == data["moved"]
    before = two.json("service", "slots", "web", "--planned")["slots"]
    for run in data["runs"]:
        assert set(before[run["first"] : run["first"] + run["length"]]) == {run["from"]}
    text = two.ok("service", "slots", "web", "--changes", str(manifest)).out
    assert "moves 16,38" in text
    # Nothing was written.
    assert two.json("service", "slots", "web", "--planned")["slots"] == before
    service["backends"][0]["weight"] = 100
    manifest.write_text(json.dumps({"services": [service]}))
    assert "no slot moves" in two.ok("service", "slots", "web", "--changes", str(manifest)).out


def test_bad_questions(two, tmp_path):
    assert two("service", "slots", "wob").code == 3
    assert two("service", "slots", "web", "--changes", str(tmp_path / "none")).code == 3
    assert two("service", "slots", "web", "--planned", "--changes", "x").code == 2


def test_window(two):
    two.ok("service", "set", "web", "--window", "60")
    assert two.json("service", "show", "web")["service"]["window"] == 60
    assert "moving (window 60 s)" in two.ok("service", "show", "web").out
    assert two("service", "set", "web", "--window", "0").code == 2


def test_the_digest_is_the_one_that_nodes_report(two):
    """Of the backends that the table names, whether or not each has a slot."""
    two.ok("backend", "weight", "web", "b1", "0")
    data = two.json("service", "slots", "web", "--planned")
    backends = [Member(name, "stable", weight) for name, weight in (("b1", 0), ("b2", 100))]
    assert data["digest"] == plan(backends, {"stable": 100.0}, None).digest


def test_a_change_of_affinity_says_what_it_breaks(two):
    changed = two.json("service", "set", "web", "--affinity", "client", "--dry-run")
    assert changed["rehashed"] == [
        {
            "service": "web",
            "before": "flow",
            "after": "client",
            "breaks_established": True,
            "other_backend_percent": 50.0,
        }
    ]
    said = two.ok("service", "set", "web", "--affinity", "client").out
    assert "hashes all flows anew: about 50 % of the established flows go to another backend" in said
    two.ok("service", "set", "web", "--tracking", "always")
    kept = two.ok("service", "set", "web", "--affinity", "flow").out
    assert "established flows stay where their entries say" in kept


def test_a_service_with_nobody_breaks_nothing(lbctl):
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80")
    assert lbctl.json("service", "set", "web", "--affinity", "client")["rehashed"] == []
