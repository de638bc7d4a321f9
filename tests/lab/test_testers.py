"""Testers are put on the canary by their addresses, with real clients; and a VIP with many ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from helpers import ENOUGH, create, held, outcomes, service
from sticky import CLIENTS, Sticky, many_clients
from transfers import MODES, ask_udp

from lb.lab.lab import Lab
from lb.lab.topology import VIP4, VIP6

TESTERS = "198.51.100.160/28"
INSIDE = CLIENTS[20:36]  # .160 to .175


@pytest.fixture
def web(running: Lab) -> Iterator[Sticky]:
    with many_clients(running) as sticky:
        yield sticky


def test_testers_are_on_the_canary_and_only_they(web: Sticky) -> None:
    web.split(0)
    lab, canary = web.lab, set(web.canary)
    with held(lab, VIP4, 10, 21000) as before:  # from an address that is no tester's
        first = before.ask()
        lab.lbctl("rule", "add", "web", TESTERS, "canary", "--wait")
        answers = web.ask()
        assert {client for client, name in answers.items() if name in canary} == set(INSIDE)
        assert {answers[client] for client in INSIDE} <= canary
        trace = lab.lbctl("trace", f"{INSIDE[0]}:4000", f"{VIP4}:80").stdout
        assert "a rule sends the client to pool 'canary'" in trace
        # Nobody in the canary takes flows: its testers are served by the others.
        for name in web.canary:
            lab.lbctl("backend", "drain", "web", name, "--wait")
        assert not {*web.ask().values()} & canary
        for name in web.canary:
            lab.lbctl("backend", "up", "web", name, "--wait")
        lab.lbctl("rule", "rm", "web", TESTERS, "--wait")
        assert not {*web.ask().values()} & canary
        assert before.ask() == first


@pytest.mark.parametrize("mode", MODES)
def test_connections_of_testers_stay_where_they_are_when_a_rule_comes_and_goes(
    node: Callable[[str], Lab], mode: str
) -> None:
    lab = node("auto")
    lab.open_tunnels()
    for vip, everybody in ((VIP4, "0.0.0.0/0"), (VIP6, "::/0")):
        entry = service(lab, "web", vip, mode=mode, split={"stable": 100, "canary": 0})
        for backend in entry["backends"][2:]:
            backend["pool"] = "canary"
        create(lab, entry)
        with held(lab, vip, 20) as older:
            was = older.ask()
            lab.lbctl("rule", "add", "web", everybody, "canary", "--wait")
            with held(lab, vip, 20) as newer:
                now = newer.ask()
                assert set(now) == set(lab.topology.backends[2:])
                assert older.ask() == was
                assert set(was) == set(lab.topology.backends[:2])
                lab.lbctl("rule", "rm", "web", everybody, "--wait")
                assert newer.ask() == now
                assert older.ask() == was
        lab.lbctl("service", "rm", "web", "--cascade", "--wait")


@pytest.mark.parametrize("mode", MODES)
def test_a_service_with_a_range_of_ports(node: Callable[[str], Lab], mode: str) -> None:
    lab = node("auto")
    lab.open_tunnels()
    lab.start_udp_servers()
    # nginx listens on 80 and the UDP servers on one port; everything else of the range has nobody.
    for vip, suffix in ((VIP4, ""), (VIP6, "6")):
        wide = {"port": 1, "end_port": 9999}
        create(
            lab,
            {**service(lab, f"tcp{suffix}", vip, mode=mode), **wide},
            {**service(lab, f"udp{suffix}", vip, mode=mode, protocol="udp"), **wide},
        )
        with held(lab, vip, ENOUGH) as connections:
            assert set(connections.ask()) == set(lab.topology.backends)
        assert ask_udp(lab, vip, range(20000, 20000 + ENOUGH)) == set(lab.topology.backends)
    before = outcomes(lab)
    refused = lab.run("client", ["curl", "-sS", "--noproxy", "*", f"http://{VIP4}:81/"], check=False)
    assert refused.returncode == 7  # "failed to connect", and at once: a server said so, not the node
    assert outcomes(lab)["reject_rst"] == before["reject_rst"]
