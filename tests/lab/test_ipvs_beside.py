"""IPVS with the scheduler wrr, and lb, which takes the service over with the rules that IPVS saved: the
same requests, the shares compared."""

from __future__ import annotations

from ipaddress import IPv4Address
from math import sqrt

import pytest
from helpers import remove_all

from lb.lab.lab import Lab
from lb.lab.load import Client, Tally
from lb.lab.shell import wait_until

VIP = IPv4Address("198.51.100.101")
WEIGHTS = (50, 30, 20, 0)
REQUESTS = 2000
SIGMAS = 5.0


def ipvs(lab: Lab, *arguments: str) -> str:
    return lab.run("node1", ["ipvsadm", *arguments]).stdout


@pytest.fixture
def rules(running: Lab, record_property) -> str:
    """What IPVS serves on the node, as it saved it."""
    lab = running
    made = lab.run("node1", ["ipvsadm", "-A", "-t", f"{VIP}:80", "-s", "wrr"], check=False)
    if made.returncode:
        pytest.skip(f"this kernel has no IPVS: {made.stderr.strip()}")
    for name, weight in zip(lab.topology.backends, WEIGHTS, strict=True):
        address = f"{lab.topology.back_addresses(name)[0]}:80"
        ipvs(lab, "-a", "-t", f"{VIP}:80", "-r", address, "-m", "-w", str(weight))
    saved = ipvs(lab, "-S", "-n")
    record_property("rules", saved)
    return saved


def test_the_same_service_in_ipvs_and_in_lb(running: Lab, rules: str, record_property) -> None:
    lab = running
    lab.run("node1", ["ip", "addr", "add", f"{VIP}/32", "dev", "front0"])
    client = Client(lab, f"http://{VIP}/")
    try:
        wait_until("IPVS", lambda: bool(lab.answer(VIP)))
        theirs = client.measure(REQUESTS)
        ipvs(lab, "-C")
        manifest = lab.lbctl("import", "ipvs", "-", text=rules).stdout
        lab.lbctl("apply", "-f", "-", "--wait", text=manifest)
        wait_until("lb", lambda: bool(lab.answer(VIP)))
        ours = client.measure(REQUESTS)
    finally:
        ipvs(lab, "-C")
        lab.run("node1", ["ip", "addr", "del", f"{VIP}/32", "dev", "front0"])
        remove_all(lab)
    for name, tally in (("ipvs", theirs), ("lb", ours)):
        shares = [round(tally.share(each), 1) for each in lab.topology.backends]
        record_property(f"shares_{name}", shares)
        assert tally.failed == 0
        assert tally.requests > REQUESTS // 4
    # Turns are exact; a hash draws, so its shares are off as draws are.
    assert furthest(lab, theirs) < 1
    assert furthest(lab, ours) < 100 * SIGMAS * sqrt(0.25 / ours.requests)


def furthest(lab: Lab, tally: Tally) -> float:
    """How far the worst share is off, in percentage points."""
    wanted = zip(lab.topology.backends, WEIGHTS, strict=True)
    return max(abs(tally.share(name) - 100 * weight / sum(WEIGHTS)) for name, weight in wanted)
