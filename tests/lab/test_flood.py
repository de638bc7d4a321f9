"""A flood of SYNs, while slots move: established connections are kept, and new ones get through."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import create, held, service

from lb.lab.lab import Lab
from lb.lab.topology import VIP4
from lb.settings import Limits

FLOOD = Path(__file__).with_name("flood.py")
SYNS = 100_000
ROOM = Limits().embryonic


@pytest.mark.parametrize("tracking", ["moving", "always"])
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_established_connections_outlive_a_flood(
    node: Callable[[str], Lab], hook: str, tracking: str
) -> None:
    lab = node(hook)
    create(lab, service(lab, "web", VIP4, tracking=tracking))
    names = lab.topology.backends
    with held(lab, VIP4, 100) as older:
        was = older.ask()
        assert set(was) == set(names)
        # All slots move, so that from here on every flow is one that has to be remembered.
        weights = [f"{names[0]}=1", *(f"{name}=100" for name in names[1:])]
        lab.lbctl("backend", "weight", "web", *weights, "--wait")
        assert older.ask() == was
        with held(lab, VIP4, 100) as younger:
            now = younger.ask()
            before = flows(lab)
            flood(lab)
            # More than the map of such flows has room for: it did push out what it could.
            assert flows(lab) - before > ROOM
            for name in names[1:]:
                lab.lbctl("backend", "drain", "web", name, "--wait")
            assert older.ask() == was
            assert younger.ask() == now
            with held(lab, VIP4, 20) as newest:
                assert set(newest.ask()) == {names[0]}


def flows(lab: Lab) -> int:
    [row] = json.loads(lab.lbctl("service", "list", "-o", "json").stdout)
    return int(row["flows"])


def flood(lab: Lab) -> None:
    link = json.loads(lab.run("node1", ["ip", "-json", "link", "show", "front0"]).stdout)[0]
    argv = [sys.executable, str(FLOOD), "front0", link["address"], str(VIP4), "80", str(SYNS)]
    lab.run("client", argv)
