"""Rollouts on the fleet: each split is written once whoever dies, and an abort is in all kernels."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from field import SERVICE, Field, abort
from helpers import service

from lb.lab.shell import wait_until
from lb.lab.topology import VIP4

# A bound against what is broken; the figure is check-rollout's.
IN_ALL_KERNELS_MS = 10_000


@pytest.fixture
def canary(field: Field) -> Iterator[list[str]]:
    """The service `web` in mode fullnat, whose last two backends are the canary."""
    found = list(field.fleet.topology.backends[2:])
    entry = service(field.fleet, SERVICE, VIP4, mode="fullnat")  # type: ignore[arg-type]
    for backend in entry["backends"]:
        backend["pool"] = "canary" if backend["name"] in found else "stable"
    text = json.dumps({"services": [entry]})
    empty = ("apply", "-f", "-", "--prune", "--force", "--wait")
    field.fleet.lbctl(*empty, text="services: []")
    field.fleet.lbctl("apply", "-f", "-", "--wait", text=text)
    yield found
    field.fleet.lbctl(*empty, text="services: []")


def start(field: Field, *arguments: str) -> None:
    field.fleet.lbctl("rollout", "start", SERVICE, "--to", "canary", "--no-analysis", *arguments)


def phase(field: Field) -> tuple[str, int]:
    status = field.rollout()["status"]
    return status["phase"], status["step"]


def test_who_runs_it_is_killed_in_the_middle_of_a_step(field: Field, canary: list[str]) -> None:
    """Another node goes on with the same step; no split is written twice, and no request is lost."""
    start(field, "--steps", "10,50", "--every", "1h")
    wait_until("the first step", lambda: phase(field) == ("baking", 1), timeout=20)
    node = field.runner()
    assert node
    with field.traffic() as requests:
        node.kill_lbd(signal.SIGKILL)
        try:
            field.fleet.lbctl("rollout", "step", SERVICE)  # by time it would come while we look
            wait_until("the second step", lambda: phase(field) == ("baking", 2), timeout=60)
            field.fleet.lbctl("rollout", "step", SERVICE, "--wait", "--timeout", "60")
        finally:
            node.start_lbd()
    history = field.rollout()["status"]["history"]
    assert [each["split"]["canary"] for each in history if each["split"]] == [10, 50, 100]
    assert len({each["by"] for each in history} & {each.name for each in field.fleet.nodes}) == 2
    assert not requests.failed, requests.failures
    assert set(requests.answers) >= set(canary)


def test_an_abort_is_in_all_kernels(field: Field, canary: list[str]) -> None:
    start(field, "--steps", "50", "--every", "1h")
    wait_until("the step", lambda: phase(field) == ("baking", 1), timeout=20)
    found = abort(field.fleet, SERVICE, canary)
    assert 0 < found["decision"] <= found["command"] < IN_ALL_KERNELS_MS
    assert not found["back"]
    wait_until("the end", lambda: phase(field) == ("aborted", 1), timeout=20)


@pytest.mark.usefixtures("canary")
def test_a_node_that_does_not_forward_says_so(field: Field) -> None:
    """In mode fullnat answers come by the node, and it would lose them."""
    fleet = field.fleet
    node = fleet.nodes[1]
    assert "not forwarded" not in field.problems()
    try:
        fleet.run(node.name, ["sysctl", "-qw", "net.ipv4.ip_forward=0"])
        field.weight(80)  # else it is seen within 15 s
        assert "IPv4 is not forwarded on front0" in field.problems()
        doctor = json.loads(node.lbctl("doctor", "-o", "json", check=False).stdout)
        assert {"net.ipv4.ip_forward"} <= {each["name"] for each in doctor if each["ok"] is False}
    finally:
        fleet.run(node.name, ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    field.weight(81)
    assert "not forwarded" not in field.problems()
