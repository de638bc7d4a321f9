"""Interfaces that are no card: bridge, VLAN, bonds, macvlan, VXLAN. lbd attaches to them as to any
other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from helpers import ENOUGH, create, held, outcomes, service

from lb.lab.lab import Lab
from lb.lab.shell import wait_until
from lb.lab.topology import CLIENT4, front

# A network of its own, beside the lab's.
CLIENTS = ("10.7.0.10/24", "2001:db8:7::10/64")
NODES = ("10.7.0.1/24", "2001:db8:7::1/64")
VIPS = {"nat": ip_address("10.7.0.100"), "fullnat": ip_address("2001:db8:7::100")}
KINDS = {
    "bridge": [
        ("node1", "link add x7 type bridge mcast_snooping 0"),
        ("node1", "link add p7 type veth peer name x7 netns {client}"),
        ("node1", "link set p7 master x7 up"),
    ],
    "vlan": [
        ("node1", "link add link front0 name x7 type vlan id 7"),
        ("client", "link add link front0 name x7 type vlan id 7"),
    ],
    "bond": [
        ("node1", "link add x7 type bond mode active-backup miimon 100"),
        ("client", "link add x7 type bridge mcast_snooping 0"),
        ("node1", "link add p7 type veth peer name p7 netns {client}"),
        ("node1", "link add q7 type veth peer name q7 netns {client}"),
        ("node1", "link set p7 master x7"),
        ("node1", "link set q7 master x7"),
        ("client", "link set p7 master x7 up"),
        ("client", "link set q7 master x7 up"),
    ],
    "bond-lacp": [
        *((end, "link add x7 type bond mode 802.3ad miimon 100") for end in ("node1", "client")),
        ("node1", "link add p7 type veth peer name p7 netns {client}"),
        ("node1", "link add q7 type veth peer name q7 netns {client}"),
        *((end, f"link set {port} master x7") for end in ("node1", "client") for port in ("p7", "q7")),
    ],
    "vxlan": [
        ("node1", f"link add x7 type vxlan id 7 dstport 4789 remote {CLIENT4[0]} local {front(1)[0]}"),
        ("client", f"link add x7 type vxlan id 7 dstport 4789 remote {front(1)[0]} local {CLIENT4[0]}"),
    ],
    "macvlan": [
        ("node1", "link add link front0 name x7 type macvlan mode bridge"),
        ("client", "link add link front0 name x7 type macvlan mode bridge"),
    ],
}


@contextmanager
def network(lab: Lab, kind: str) -> Iterator[None]:
    """The node is in that network by an interface x7 of this kind."""
    lines = [
        *KINDS[kind],
        *(("client", f"addr add {each} dev x7 nodad") for each in CLIENTS),
        *(("node1", f"addr add {each} dev x7 nodad") for each in NODES),
        ("node1", f"addr add {VIPS['nat']}/32 dev x7"),
        ("node1", f"addr add {VIPS['fullnat']}/128 dev x7 nodad preferred_lft 0"),
        ("client", "link set x7 up"),
        ("node1", "link set x7 up"),
    ]
    try:
        # On one wire (macvlan) no other interface may answer for these addresses.
        _arp_ignore(lab, 1)
        for namespace, line in lines:
            lab.run(namespace, ["ip", *line.format(client=lab.topology.client).split()])
        lab.run("client", ["ethtool", "-K", "x7", "tx", "off"])
        if kind in ("bond", "bond-lacp"):
            # Native XDP sends out of its ports: see Topology.offloads().
            for port in ("p7", "q7"):
                lab.run("client", ["ethtool", "-K", port, "gro", "on", "tx", "off"])
        # A bond's ends have to agree first.
        ping = ["ping", "-c", "1", "-W", "1", NODES[1].partition("/")[0]]
        wait_until("the link", lambda: lab.run("client", ping, check=False).returncode == 0, timeout=30)
        yield
    finally:
        _arp_ignore(lab, 0)
        for namespace in ("client", "node1"):
            for name in ("x7", "p7", "q7"):
                lab.run(namespace, ["ip", "link", "del", name], check=False)


def _arp_ignore(lab: Lab, value: int) -> None:
    for namespace in ("client", "node1"):
        lab.run(namespace, ["sysctl", "-qw", f"net.ipv4.conf.all.arp_ignore={value}"])


def makes(lab: Lab, kind: str) -> bool:
    """Does this kernel have such devices?"""
    link = "link front0 " if kind in ("vlan", "macvlan") else ""
    options = {"vlan": " id 8", "vxlan": " id 8 dstport 4789"}.get(kind, "")
    device = kind.partition("-")[0]
    made = lab.run("client", f"ip link add {link}name y7 type {device}{options}".split(), check=False)
    lab.run("client", ["ip", "link", "del", "y7"], check=False)
    return made.returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_clients_come_in_by_an_interface_that_is_no_card(lab: Lab, kind: str) -> None:
    if not makes(lab, kind):
        pytest.skip(f"this kernel has no {kind} devices")
    if lab.lbd:
        lab.kill_lbd()
    with network(lab, kind):
        try:
            # Its program stays from one kind to the next: no second one is compiled.
            lab.start_lbd("auto", interfaces=("x7", "back0"))
            assert "interfaces=x7,back0" in lab.lbd_ready_line
            create(lab, *(service(lab, mode, vip, mode=mode) for mode, vip in VIPS.items()))
            before = outcomes(lab)
            for vip in VIPS.values():
                with held(lab, vip, ENOUGH) as connections:
                    answers = connections.ask()
                    assert set(answers) == set(lab.topology.backends)
                    assert connections.ask() == answers
            after = outcomes(lab)
            for outcome in ("forward_redirect", "reply_redirect"):
                assert after[outcome] - before[outcome] >= ENOUGH * len(VIPS)
        finally:
            if lab.lbd:
                lab.kill_lbd()
