"""lb/node/forwarding.py: a machine whose FIB gives no way back says so."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from lb.model.objects import Mode, Service
from lb.node import forwarding
from lb.node.forwarding import Forwarding, translated


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(forwarding, "SETTINGS", tmp_path)

    def put(version: int, interface: str, value: int) -> None:
        folder = tmp_path / f"ipv{version}/conf/{interface}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "forwarding").write_text(f"{value}\n")

    return put


def test_only_modes_whose_answers_come_by_the_node_need_it() -> None:
    def one(mode: Mode, vip: str) -> Service:
        return Service(name="web", vip=ip_address(vip), port=80, mode=mode)

    assert translated([one(Mode.DSR, "198.51.100.1"), one(Mode.GUE, "2001:db8::1")]) == set()
    assert translated([one(Mode.FULLNAT, "198.51.100.1")]) == {4}
    assert translated([one(Mode.NAT, "2001:db8::1"), one(Mode.NAT, "198.51.100.1")]) == {4, 6}


def test_each_interface_that_does_not_forward_is_named(put) -> None:  # type: ignore[no-untyped-def]
    for name, value in (("front0", 1), ("back0", 0), ("bond0.7", 0)):
        put(4, name, value)
        put(6, name, 1)
    found = Forwarding("node1")
    names = ["front0", "back0", "bond0.7", "gone0"]
    found.follow(frozenset(), names)
    assert found.problems == ()
    found.follow(frozenset({4, 6}), names)
    [problem] = found.problems
    assert "IPv4 is not forwarded on back0, bond0.7:" in problem.message
    assert problem.hint == "sysctl -w net.ipv4.ip_forward=1"
    assert problem.warning
    assert not found.look(names)
    put(4, "back0", 1)
    put(4, "bond0.7", 1)
    assert found.look(names)
    assert found.problems == ()
    assert not found.look(names)
