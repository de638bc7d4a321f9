"""Health checks `via: vip`: they fail with what clients need, where a straight check passes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from helpers import backend_node, create, found, service
from slots import Slots

from lb.lab.lab import Lab
from lb.lab.shell import wait_until
from lb.lab.topology import VIA_NODE, VIP4, VIP6

MODES = ["dsr", "ipip", "gue", "nat", "fullnat"]
# Both hooks where packets are encapsulated and where they are translated: the programs are the same, but
# what comes back meets the balancer before them (XDP) or after them (tc).
CASES = [*(("xdp", mode) for mode in MODES), ("tc", "gue"), ("tc", "nat")]
HEALTH = {
    "check": {"kind": "http"},
    "via": "vip",
    "interval": 0.5,
    "fall": 2,
    "rise": 1,
    "timeout": 0.4,
}


@contextmanager
def broken(lab: Lab, mode: str, backend: str) -> Iterator[None]:
    """What the mode needs of a server is missing there; its own address still answers the node."""
    line = f"rule {{}} from {lab.topology.back_addresses(backend)[0]} table {VIA_NODE}"
    if mode == "dsr":
        undo = f"addr add {VIP4}/32 dev lo"
        lab.run(backend, ["ip", "addr", "del", f"{VIP4}/32", "dev", "lo"])
    elif mode == "nat":
        undo = line.format("add")
        lab.run(backend, ["ip", *line.format("del").split()])
    else:  # the program that opens tunnels' packets
        undo = ""
        backend_node(lab, backend, "attach", "--interface", "back0", "--vip", str(VIP6))
    try:
        yield
    finally:
        if undo:
            lab.run(backend, ["ip", *undo.split()])
        else:
            both = ["--vip", str(VIP4), "--vip", str(VIP6)]
            backend_node(lab, backend, "attach", "--interface", "back0", *both)


@pytest.mark.parametrize(("hook", "mode"), CASES)
def test_a_check_goes_the_way_of_clients_packets(
    node: Callable[[str], Lab], hook: str, mode: str
) -> None:
    lab = node(hook)
    if mode in ("ipip", "gue"):
        lab.open_tunnels()
    create(
        lab,
        service(lab, "web", VIP4, mode=mode, health=HEALTH),
        service(lab, "web6", VIP6, mode=mode, health=HEALTH),
    )
    one, *others = lab.topology.backends
    for name in ("web", "web6"):
        Slots(lab, name).until(lambda held: all(held.get(each) for each in lab.topology.backends))
    # By hand it goes the same way.
    by_hand = ("check", f"web/{one}", "--check-timeout", "5s", "-o", "json")
    assert json.loads(lab.lbctl(*by_hand).stdout)[0]["passed"]
    if mode == "fullnat":  # needs nothing of the server
        return
    with broken(lab, mode, one):
        Slots(lab).until(lambda held: held[one] == 0 and all(held[each] for each in others))
        assert found(lab, one)["error"] == "no connection in 0.4 s"
        straight = f"http://{lab.topology.back_addresses(one)[0]}/"
        straight_on = ("check", straight, "--check-timeout", "5s", "-o", "json")
        assert json.loads(lab.lbctl(*straight_on).stdout)[0]["passed"]
        assert lab.lbctl("check", f"web/{one}", check=False).returncode == 1
    Slots(lab).until(lambda held: all(held[each] for each in lab.topology.backends))


def test_udp_through_a_tunnel(running: Lab) -> None:
    lab = running
    lab.open_tunnels()
    lab.start_udp_servers()
    check = {"kind": "udp", "send": "?", "expect": "backend"}
    health = {**HEALTH, "check": check}
    create(
        lab,
        service(lab, "udp", VIP4, mode="gue", port=9000, protocol="udp", health=health),
        service(lab, "udp6", VIP6, mode="gue", port=9000, protocol="udp", health=health),
    )
    for name in ("udp", "udp6"):
        Slots(lab, name).until(lambda held: all(held.get(each) for each in lab.topology.backends))


def test_the_programs_are_there_while_a_check_needs_them(running: Lab) -> None:
    lab = running

    def filters() -> str:
        listed = [lab.run(lab.topology.node, ["tc", "filter", "show", "dev", "back0", side]).stdout
                  for side in ("ingress", "egress")]  # fmt: skip
        return "".join(listed)

    create(lab, service(lab, "web", VIP4, health={**HEALTH, "via": "backend"}))
    wait_until("no filter", lambda: "pref 45" not in filters())
    create(lab, service(lab, "web", VIP4, health=HEALTH))
    wait_until("both filters", lambda: filters().count("direct-action") == 2)
    # Taken off by hand, they come back with the next audit.
    lab.run(lab.topology.node, ["tc", "qdisc", "del", "dev", "back0", "clsact"])
    assert lab.lbd
    lab.lbd.send_signal(signal.SIGHUP)
    wait_until("both filters", lambda: filters().count("direct-action") == 2)


def test_a_node_that_forwards_the_vip_elsewhere(node: Callable[[str], Lab]) -> None:
    """Its answers reach the node even where the VIP is none of its addresses."""
    lab = node("xdp")
    lab.run(lab.topology.node, ["ip", "addr", "del", f"{VIP4}/32", "dev", "front0"])
    try:
        create(lab, service(lab, "web", VIP4, mode="nat", health=HEALTH))
        Slots(lab).until(lambda held: all(held.get(each) for each in lab.topology.backends))
    finally:
        lab.run(lab.topology.node, ["ip", "addr", "add", f"{VIP4}/32", "dev", "front0"])
