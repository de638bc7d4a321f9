"""Links that lose, delay, reorder and duplicate packets: no flow breaks while weights change and servers
drain, and health checks don't flap."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import create, held, service
from judged import begin, pools, status, traffic_until_over

from lb.lab.lab import Lab
from lb.lab.shell import wait_until
from lb.lab.topology import VIP4

# On the way there and on the way back alike.
NETEM = "loss 2% delay 50ms 20ms reorder 5% duplicate 1%"
CHANGES = 6
CHECKS = 12  # of each backend, at least


@contextmanager
def bad_links(lab: Lab) -> Iterator[None]:
    ends = [("client", "front0"), ("node1", "back0")]
    ends += [(name, link) for name in lab.topology.backends for link in ("front0", "back0")]
    try:
        for namespace, device in ends:
            line = f"tc qdisc add dev {device} root netem {NETEM}"
            made = lab.run(namespace, line.split(), check=False)
            if made.returncode:
                pytest.skip(f"this kernel has no netem: {made.stderr.strip()}")
        yield
    finally:
        for namespace, device in ends:
            lab.run(namespace, ["tc", "qdisc", "del", "dev", device, "root"], check=False)


@pytest.mark.parametrize("mode", ["dsr", "nat"])
def test_no_flow_breaks_and_no_check_flaps(running: Lab, mode: str) -> None:
    lab = running
    # A lost SYN is sent again after a second: a check has to wait for it.
    checked = {"check": {"kind": "http", "path": "/"}, "interval": 1, "timeout": 3}
    create(lab, service(lab, "web", VIP4, mode=mode, health=checked))
    everybody = len(lab.topology.backends)
    wait_until(
        "health", lambda: [each["state"] for each in health(lab)] == ["healthy"] * everybody, timeout=30
    )
    first, *_, last = lab.topology.backends
    with bad_links(lab), held(lab, VIP4, 40) as connections:
        was = connections.ask()
        assert set(was) == set(lab.topology.backends)
        begun = checks(lab, last)
        for change in range(CHANGES):
            if change % 2:
                lab.lbctl("backend", "weight", "web", f"{last}={100 * change}", "--wait")
            else:
                lab.lbctl("backend", "up" if change % 4 else "drain", "web", first, "--wait")
            assert connections.ask() == was
        wait_until("more checks", lambda: checks(lab, last) >= begun + CHECKS, timeout=60)
        assert connections.ask() == was
        # The one that made it healthy, and no other.
        assert [len(each["history"]) for each in health(lab)] == [1] * everybody


# A loss is repaired by sending again, and a delay varies: what would be called worse too easily.
METRICS = """\
metrics:
  - {name: failed_handshakes, min_samples: 30}
  - {name: resets, min_samples: 30}
  - {name: retransmits, min_samples: 30}
  - {name: handshake_p50, min_samples: 30}
"""


def test_a_canary_that_is_not_worse_is_promoted(running: Lab) -> None:
    pools(running, mode="nat")
    with bad_links(running):
        begin(running, ("--steps", "50,100", "--every", "5s", "--deadline", "20m"), METRICS)
        ending, tally = traffic_until_over(running)
    assert ending == "promoted", status(running)["status"]
    verdicts = [each["verdict"] for each in status(running)["status"]["verdicts"]]
    assert {each["outcome"] for each in verdicts} == {"pass"}
    assert all(each["canary_samples"] >= 30 for each in verdicts)
    assert tally.requests > 60


def health(lab: Lab) -> list[dict[str, Any]]:
    [node] = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
    return list(node["health"].values())


def checks(lab: Lab, backend: str) -> int:
    """Connections that a server took so far: those of its clients, which are held, and the checks'."""
    status = lab.run(backend, ["curl", "-s", "http://127.0.0.1/status"]).stdout
    return int(status.splitlines()[2].split()[0])
