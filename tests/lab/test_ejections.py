"""Passive detection with real servers and clients, and no check at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from helpers import create, found, service
from slots import Slots

from lb.lab import nginx
from lb.lab.faults import Server
from lb.lab.lab import Lab
from lb.lab.load import Client
from lb.lab.shell import wait_until
from lb.lab.steady import traffic
from lb.lab.topology import VIP4

RATE = 200.0  # requests a second
BASE = 5.0  # long enough that a slow machine sees it
HEALTH = {"check": {"kind": "none"}, "passive": {"failures": 5, "base": BASE}}


BREAK: dict[str, Callable[[Server], None]] = {
    "refuses": Server.stop,
    "resets": lambda server: server.answer(nginx.RESETS),
}


@pytest.fixture
def first(running: Lab) -> Iterator[Server]:
    server = Server(running, "backend1")
    yield server
    server.mend()


@pytest.mark.parametrize(("mode", "fault"), [("nat", "resets"), ("fullnat", "refuses")])
def test_who_fails_for_clients_is_ejected_and_tried_again(first: Server, mode: str, fault: str) -> None:
    lab = first.lab
    create(lab, service(lab, "web", VIP4, mode=mode, health=HEALTH))
    slots = Slots(lab)
    slots.until(lambda held: all(held.get(each) for each in lab.topology.backends))
    before = slots()
    # Good traffic ejects nobody, and says that they work.
    assert Client(lab).run(200).failed == 0
    wait_until("what was seen", lambda: found(lab, first.name).get("state") == "healthy")
    assert slots() == before
    with traffic(lab, VIP4, RATE):
        BREAK[fault](first)
        slots.until(lambda held: held[first.name] == 0, timeout=30)
        assert sum(slots().values()) == 65536
        wait_until("the report", lambda: found(lab, first.name).get("ejection"))
        ejection = found(lab, first.name)["ejection"]
        assert "failed" in ejection["words"]
        assert ejection["until"] - ejection["since"] == pytest.approx(BASE * ejection["times"])
    first.mend()
    slots.until(lambda held: held == before, timeout=30)
    assert Client(lab).run(200).failed == 0
