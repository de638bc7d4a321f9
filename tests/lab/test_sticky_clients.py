"""Slot tables end to end: what real clients see of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import held
from sticky import CLIENTS, Sticky, many_clients

from lb.lab.lab import Lab
from lb.lab.topology import VIP4


@pytest.fixture
def web(running: Lab) -> Iterator[Sticky]:
    with many_clients(running) as sticky:
        yield sticky


def test_who_is_on_the_canary_stays_there_while_it_grows(web: Sticky) -> None:
    web.split(0)
    assert not {*web.ask().values()} & {*web.canary}
    back, on_it = web.grow()
    assert (back, on_it) == (0, len(CLIENTS))


@pytest.mark.parametrize("change", [("drain",), ("weight", "0")])
def test_drain_and_weight_0_give_no_new_flow_sticky_clients_included(
    web: Sticky, change: tuple[str, ...]
) -> None:
    web.split(50)
    before = web.ask()
    [victim] = {before[CLIENTS[0]]}
    first = {client for client, name in before.items() if name == victim}
    lab = web.lab
    with held(lab, VIP4, 1) as connection:
        was = connection.ask()
        for each in lab.topology.backends[:2]:  # wherever that one connection is
            command, *rest = change
            lab.lbctl("backend", command, "web", each, *rest, "--wait")
        if victim not in lab.topology.backends[:2]:
            command, *rest = change
            lab.lbctl("backend", command, "web", victim, *rest, "--wait")
        after = web.ask()
        assert victim not in after.values()
        assert not any(name.startswith("!") for name in after.values())
        assert first
        assert connection.ask() == was


def test_the_table_that_is_shown_is_the_one_that_traffic_meets(web: Sticky) -> None:
    web.split(25)
    assert web.misplaced() == 0
    web.lab.lbctl("backend", "weight", "web", web.lab.topology.backends[0], "37", "--wait")
    assert web.misplaced() == 0
    moving = web.slots()["moving"]
    assert {each["origin"] for each in moving} <= {*web.lab.topology.backends}
    assert sum(each["length"] for each in moving) > 0
