"""Soft limits of connections: counted in the kernel, with real ones."""

from __future__ import annotations

import json
from typing import Any

from helpers import create, held, service
from slots import Slots

from lb.lab.lab import Lab
from lb.lab.shell import wait_until
from lb.lab.topology import VIP4


def row(lab: Lab, backend: str) -> dict[str, Any]:
    rows = json.loads(lab.lbctl("backend", "list", "web", "-o", "json").stdout)
    [found] = [each for each in rows if each["name"] == backend]
    return dict(found)


def limit(lab: Lab, connections: str, *backends: str) -> None:
    lab.lbctl("backend", "limit", "web", *backends, "--max-connections", connections, "--wait")


def test_who_is_full_gets_no_new_connection_and_keeps_those_it_has(running: Lab) -> None:
    lab = running
    create(lab, service(lab, "web", VIP4, mode="fullnat"))
    slots = Slots(lab)
    before = slots()
    first, *others = lab.topology.backends
    limit(lab, "5", first)
    with held(lab, VIP4, 100) as clients:  # some 25 of them
        names = clients.ask()
        slots.until(lambda held: held[first] == 0 and sum(held.values()) == 65536)
        count = names.count(first)  # the first report may be of a moment when not all were open
        told = [{"connections": count, "limit": 5}]
        wait_until("the report", lambda: [*row(lab, first)["full_on"].values()] == told)
        words = f"up, full: {count} of 5 connections"
        assert words in lab.lbctl("backend", "list", "web").stdout
        with held(lab, VIP4, 40) as later:
            assert set(later.ask()) == set(others)
        assert clients.ask() == names
        # All are full: all are used, loudly.
        limit(lab, "1", *others)
        slots.until(lambda held: held == before)
        wait_until("the warning", lambda: "are full, so all" in lab.lbctl("status", check=False).stdout)
        limit(lab, "none", *others)
        slots.until(lambda held: held[first] == 0)
        assert clients.ask() == names
    slots.until(lambda held: held == before)
    wait_until("the all-clear", lambda: not row(lab, first)["full_on"])
