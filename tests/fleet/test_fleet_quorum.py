"""Three nodes that check the same servers, and don't all reach them: the majority decides, on each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from checked import HEALTH, out_of_reach
from field import PATIENCE, SERVICE, Field
from helpers import create, service

from lb.lab.node import Node
from lb.lab.shell import wait_until
from lb.lab.topology import VIP4

SUSPICION = "only this node's checks"


def slots(node: Node) -> dict[str, int]:
    """What this node's kernel holds, by backend."""
    rows = json.loads(node.lbctl("backend", "list", SERVICE, "-o", "json").stdout)
    return {each["name"]: each["slots"] for each in rows}


def votes(field: Field, backend: str) -> list[str]:
    """What the nodes have found of a backend, in their order."""
    found = {each["node"]: each["health"] for each in field.status()["nodes"]}
    path = f"{SERVICE}/{backend}"
    return [found[node.name].get(path, {}).get("state", "") for node in field.fleet.nodes]


def shown(field: Field, backend: str) -> str:
    """The line of a backend, as people see it."""
    lines = field.fleet.lbctl("backend", "list", SERVICE).stdout.splitlines()
    [line] = [each for each in lines if backend in each]
    return line


@contextmanager
def unreachable(field: Field, nodes: list[Node], *backends: str) -> Iterator[None]:
    """None of these nodes' checks reach these backends."""
    topology = field.fleet.topology
    addresses = [topology.back_addresses(each)[0] for each in backends]
    with ExitStack() as stack:
        for node in nodes:
            stack.enter_context(out_of_reach(field.fleet, node.name, *addresses))
        yield


@pytest.fixture
def web(field: Field) -> Field:
    """Each node has found each server healthy."""
    # Who is out of reach refuses at once; who is only slow, on a busy machine, is healthy here.
    create(field.fleet, service(field.fleet, SERVICE, VIP4, health={**HEALTH, "timeout": 10.0}))
    for each in field.fleet.topology.backends:
        wait_until(
            "all to find all healthy",
            lambda each=each: votes(field, each) == ["healthy"] * 3,  # type: ignore[misc]
            timeout=PATIENCE,
        )
    return field


def test_one_of_three_that_does_not_reach_a_server_takes_it_out_nowhere(web: Field) -> None:
    fleet = web.fleet
    backend = fleet.topology.backends[0]
    before = [slots(node) for node in fleet.nodes]
    with web.traffic() as requests, unreachable(web, [fleet.nodes[2]], backend):
        wait_until(
            "its finding",
            lambda: votes(web, backend) == ["healthy", "healthy", "unhealthy"],
            timeout=PATIENCE,
        )
        assert "healthy on 2 of 3" in shown(web, backend)
        assert [slots(node) for node in fleet.nodes] == before
        assert SUSPICION not in web.problems()  # one server can't tell who of both is broken
    assert not requests.failed, requests.failures
    assert requests.answers[backend]


def test_what_two_of_three_do_not_reach_is_out_on_all_three(web: Field) -> None:
    fleet = web.fleet
    backend = fleet.topology.backends[0]
    before = [slots(node) for node in fleet.nodes]
    with web.traffic() as requests:
        with unreachable(web, fleet.nodes[:2], backend):
            wait_until(
                "it to be out everywhere",
                lambda: all(slots(node)[backend] == 0 for node in fleet.nodes),
                timeout=PATIENCE,
            )
            assert votes(web, backend) == ["unhealthy", "unhealthy", "healthy"]
            assert "healthy on 1 of 3" in shown(web, backend)
            web.agree()
        wait_until(
            "it to be back everywhere",
            lambda: [slots(node) for node in fleet.nodes] == before,
            timeout=PATIENCE,
        )
    assert not requests.failed, requests.failures


def test_a_node_that_alone_reaches_no_server_is_suspected_and_says_so(web: Field) -> None:
    fleet = web.fleet
    suspect = fleet.nodes[2]
    before = [slots(node) for node in fleet.nodes]

    def says() -> dict[str, str]:
        return {each["node"]: str(each["problems"]) for each in web.status()["nodes"]}

    with unreachable(web, [suspect], *fleet.topology.backends):
        for each in fleet.topology.backends:
            wait_until(
                "its findings",
                lambda each=each: votes(web, each)[2] == "unhealthy",  # type: ignore[misc]
                timeout=PATIENCE,
            )
        wait_until("the suspicion", lambda: SUSPICION in says()[suspect.name], timeout=PATIENCE)
        assert [name for name, words in says().items() if SUSPICION in words] == [suspect.name]
        assert SUSPICION in fleet.lbctl("status", check=False).stdout
        listed = json.loads(fleet.lbctl("node", "list", "-o", "json").stdout)
        assert {each["node"]: each["problems"] for each in listed}[suspect.name] >= 1
        assert [slots(node) for node in fleet.nodes] == before
    wait_until("the all-clear", lambda: SUSPICION not in says()[suspect.name], timeout=PATIENCE)
    assert [slots(node) for node in fleet.nodes] == before
