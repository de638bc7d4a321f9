"""Maps too small for what others wrote to the store: what has no room is out, all else goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import create, service
from slots import Slots

from lb.lab.lab import Lab
from lb.lab.shell import wait_until
from lb.lab.topology import VIP4, VIP6
from lb.model import keys
from lb.model.objects import Backend, Service
from lb.store.base import Put
from lb.store.opening import open_store

# Of both, one is nobody's: two services, six backends.
SMALL = "[limits]\nservices = 3\nbackends = 7\n"


@pytest.fixture
def small(lab: Lab) -> Iterator[Lab]:
    lab.more_settings = SMALL
    try:
        lab.start_lbd()
        yield lab
    finally:
        lab.more_settings = ""
        lab.detach_lbd()
        lab.lbd = None
        lab.write_config()


def status(lab: Lab) -> dict[str, Any]:
    [node] = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
    return dict(node)


def wait_left_out(lab: Lab, *names: str) -> None:
    wait_until(f"{names} to be left out", lambda: status(lab)["left_out"] == [*names])


def test_what_has_no_room_is_named_and_all_else_works_on(small: Lab) -> None:
    lab = small
    create(lab, service(lab, "web", VIP4))
    b1, b2, *_ = names = lab.topology.backends
    # lbctl would refuse it; nobody asks those who write to the store themselves.
    documents: dict[str, Service | Backend] = {
        keys.service("api"): Service(name="api", vip=VIP6, port=80),
        keys.service("zoo"): Service(name="zoo", vip=VIP4, port=8080),
        **{
            keys.backend("api", name): Backend(
                service="api", name=name, address=lab.topology.back_addresses(name)[1]
            )
            for name in names
        },
    }
    with open_store(lab.store) as store:
        store.commit([Put(key, each.model_dump_json()) for key, each in documents.items()])
    wait_left_out(lab, "zoo", *(f"api/{name}" for name in names[2:]))
    found = {each["where"]: each for each in status(lab)["problems"]}
    for where, full in (
        (keys.service("zoo"), "services map is full (2 entries): this node does not serve it"),
        (keys.backend("api", names[2]), "backends map is full (6 entries): it gets no traffic"),
    ):
        assert full in found[where]["message"]
        name = full.partition(" ")[0]
        raised = f"raise limits.{name} in lb.toml, then lbd --detach and start lbd again"
        assert found[where]["hint"] == raised
        shown = lab.lbctl("status").stdout
        assert full in shown
        assert raised in shown
    assert "up, no room" in lab.lbctl("backend", "list", "api").stdout

    # The newcomer serves with those that are in, in equal shares.
    held = Slots(lab, "api")()
    assert [held[name] for name in names] == pytest.approx([32768, 32768, 0, 0], abs=1)
    assert {lab.answer(VIP6) for _ in range(10)} <= {b1, b2}
    # Weights, health and whoever is down go on as if nothing were.
    web = Slots(lab)
    lab.lbctl("backend", "weight", "web", f"{b1}=300", "--wait")
    assert web.of(b1) == pytest.approx(32768, abs=1)
    lab.lbctl("backend", "down", "web", b1, "--wait")
    assert web.of(b1) == 0
    assert b1 not in {lab.answer(VIP4) for _ in range(10)}
    refused = lab.lbctl("backend", "weight", "api", names[3], "7", "--wait", check=False)
    assert refused.returncode == 8
    assert f"stored, but node {lab.name} could not apply it" in refused.stderr
    assert "raise limits.backends" in refused.stderr

    # A restart changes nothing of that; room that comes is taken.
    lab.kill_lbd()
    lab.start_lbd()
    wait_left_out(lab, "zoo", *(f"api/{name}" for name in names[2:]))
    lab.lbctl("backend", "rm", "web", b1, "--wait")
    wait_left_out(lab, "zoo", f"api/{names[3]}")
    assert Slots(lab, "api").of(names[2]) > 0
    lab.lbctl("service", "rm", "web", "--cascade", "--wait")
    wait_left_out(lab)
    lab.lbctl("backend", "weight", "api", names[3], "100", "--wait")
    assert [*Slots(lab, "api")().values()] == pytest.approx([16384] * 4, abs=1)
