"""Rollouts with a real kernel and real clients: what they get, and what is left after a crash."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

from judged import begin, pools, status, traffic_until_over
from slots import Slots
from sticky import CLIENTS, many_clients

from lb.errors import ExitCode
from lb.lab.faults import Server
from lb.lab.lab import Lab
from lb.lab.load import Client, finish
from lb.lab.shell import PATIENCE, wait_until
from lb.model import keys
from lb.store.base import Put
from lb.store.opening import open_store

# What is not waiting for a step's time: nodes apply a split in some ten milliseconds.
ALLOWED = 5.0 * PATIENCE


def start(lab: Lab, *arguments: str) -> None:
    lab.lbctl("rollout", "start", "web", "--to", "canary", "--no-analysis", *arguments)


def share(slots: Slots, canary: list[str]) -> float:
    held = slots()
    return 100 * sum(held[name] for name in canary) / 65536


def test_promoted_with_traffic_and_no_client_goes_back(running: Lab) -> None:
    _, canary = pools(running, affinity="client")
    with many_clients(running) as web:
        child = Client(running).start(2000, 6)
        start(running, "--steps", "5,25,50,100", "--every", "1s")
        on_it: set[Any] = set()
        while True:
            over = status(running)["status"]["phase"] in ("promoted", "aborted")
            now = {client for client, name in web.ask().items() if name in canary}
            assert on_it <= now
            on_it = now
            if over:
                break
        assert on_it == set(CLIENTS)
    assert finish(child).failed == 0
    ended = running.lbctl("rollout", "wait", "web", check=False)
    assert ended.returncode == 0
    written = [each["split"] for each in status(running)["status"]["history"] if each["split"]]
    assert [each["canary"] for each in written] == [5, 25, 50, 100]
    assert status(running)["nodes"][0]["share"] == 100


def test_aborted_in_the_middle(running: Lab) -> None:
    slots, canary = pools(running)
    before = slots()
    start(running, "--steps", "10,50,100", "--every", "1h")
    wait_until("the first step", lambda: status(running)["status"]["phase"] == "baking")
    running.lbctl("rollout", "step", "web")
    wait_until("the second step", lambda: share(slots, canary) > 49)
    child = Client(running).start(500, 2)
    began = time.monotonic()
    running.lbctl("rollout", "abort", "web", "--wait")
    assert share(slots, canary) == 0  # it is true when the command returns
    assert time.monotonic() - began < ALLOWED
    assert slots() == before
    assert finish(child).failed == 0
    ended = running.lbctl("rollout", "wait", "web", check=False)
    assert ended.returncode == ExitCode.ROLLOUT_ABORTED
    for _ in range(20):  # longer than a step
        assert share(slots, canary) == 0
        time.sleep(0.1)


def test_what_stands_still_is_in_the_nodes_status(running: Lab) -> None:
    def said() -> str:
        [node] = json.loads(running.lbctl("status", "-o", "json").stdout)["nodes"]
        return str(node["problems"])

    pools(running)
    start(running, "--steps", "10", "--every", "1h")
    wait_until("the step", lambda: status(running)["status"]["phase"] == "baking")
    with open_store(str(running.node_folder / "store.db")) as store:
        good = store.get(keys.service("web"))
        assert good
        store.commit([Put(good.key, good.value.replace("{", '{"of_another_version": 1, ', 1))])
        wait_until("that it is said", lambda: "it stands still" in said())
        assert "that can be read" in status(running)["awaits"]
        store.commit([Put(good.key, good.value)])
    wait_until("that it goes on", lambda: "it stands still" not in said())
    running.lbctl("rollout", "abort", "web", "--wait")


def test_lbd_killed_in_the_middle_of_a_step(running: Lab) -> None:
    """Its lock goes with its lease; the next one goes on with the same step, and does none twice."""
    slots, canary = pools(running)
    start(running, "--steps", "10,50", "--every", "3s")
    wait_until("the first step", lambda: share(slots, canary) > 0)
    running.kill_lbd(signal.SIGKILL)
    running.start_lbd()
    done = running.lbctl("rollout", "wait", "web", "--timeout", "60")
    assert "promoted" in done.stdout
    history = status(running)["status"]["history"]
    assert [each["split"]["canary"] for each in history if each["split"]] == [10, 50, 100]
    assert share(slots, canary) == 100


def test_abort_while_no_lbd_runs(running: Lab) -> None:
    slots, canary = pools(running)
    start(running, "--steps", "10,100", "--every", "1h")
    wait_until("the first step", lambda: status(running)["status"]["phase"] == "baking")
    running.kill_lbd(signal.SIGKILL)
    running.lbctl("rollout", "abort", "web")
    running.start_lbd()
    wait_until("the end", lambda: status(running)["status"]["phase"] == "aborted")
    assert share(slots, canary) == 0


def test_a_canary_that_refuses_is_taken_back_by_health_checks(running: Lab) -> None:
    health = {"check": {"kind": "tcp"}, "interval": 0.3, "fall": 2, "rise": 1, "timeout": 0.2}
    slots, canary = pools(running, health=health)
    slots.until(lambda held: all(held[name] for name in running.topology.backends[:2]))
    start(running, "--steps", "20,100", "--every", "1h")
    wait_until("the first step", lambda: status(running)["status"]["phase"] == "baking")
    servers = [Server(running, name) for name in canary]
    try:
        for server in servers:
            server.refuse()  # a link that is down would take routes with it, that don't come back
        ended = running.lbctl("rollout", "wait", "web", "--timeout", "20", check=False)
        assert ended.returncode == ExitCode.ROLLOUT_UNHEALTHY
        assert share(slots, canary) == 0
    finally:
        for server in servers:
            server.accept()


# Judged by what the node's kernel sees. In mode nat answers pass it.
def test_a_good_canary_is_promoted_by_what_the_kernel_saw(running: Lab) -> None:
    _, canary = pools(running, mode="nat")
    begin(running)
    ending, tally = traffic_until_over(running)
    assert ending == "promoted", status(running)["status"]
    assert tally.failed == 0
    verdicts = status(running)["status"]["verdicts"]
    assert {each["step"] for each in verdicts} == {1, 2, 3}
    assert {each["verdict"]["outcome"] for each in verdicts} == {"pass"}
    assert all(each["verdict"]["canary_samples"] >= 5 for each in verdicts)
    assert set(tally.names) >= set(canary)


def test_a_canary_that_answers_500_is_aborted(running: Lab) -> None:
    slots, canary = pools(running, mode="nat")
    servers = [Server(running, name) for name in canary]
    for server in servers:
        server.answer(500)
    try:
        begin(running)
        ending, tally = traffic_until_over(running)
    finally:
        for server in servers:
            server.answer(200)
    assert ending == "analysis", status(running)["status"]
    assert share(slots, canary) == 0
    words = status(running)["status"]["words"]
    assert "http_5xx" in words
    assert tally.failed < 0.4 * tally.requests
    assert running.lbctl("rollout", "wait", "web", check=False).returncode == ExitCode.ROLLOUT_WORSE
