"""Two nodes that check the same servers: a second lbd, in the client's namespace, shares the store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from checked import FALL, INTERVAL, checked, out_of_reach, serve
from slots import Slots

from lb.lab.faults import Server
from lb.lab.lab import Lab, program
from lb.lab.shell import PATIENCE, wait_until

SECOND = "node2"
# Seconds for all that is not waiting: a bound against what is broken; the figure is check-health's.
ALLOWED = 3.0 * PATIENCE


@pytest.fixture(scope="module")
def second(lab: Lab) -> Iterator[Path]:
    """Its settings. It has an interface on the clients' segment, at the hook that disturbs least."""
    lab.start_lbd()
    lab.bpf_mount("client")
    folder = lab.folder / lab.topology.client
    config, log = folder / "lb.toml", folder / "lbd.log"
    config.write_text(
        f'store = "{lab.store}"\n'
        f'pin_dir = "{folder}/bpf/lb"\n'
        f'node = "{SECOND}"\n'
        f'interfaces = ["front0"]\n'
        f'hook = "tc"\n'
        f"[checks]\n"
        f'memory = "{folder}/health.json"\n'
    )
    with log.open("w") as output:
        lbd = lab.popen("client", program("lbd"), output=output, env={"LB_CONFIG": str(config)})
    wait_until("the second lbd", lambda: "lbd: ready" in log.read_text(), timeout=60)
    yield config
    lbd.terminate()
    assert lbd.wait(timeout=30) == 0


def nodes(lab: Lab) -> dict[str, dict[str, Any]]:
    listed = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
    return {each["node"]: each for each in listed}


def state(lab: Lab, node: str, backend: str) -> str:
    found: str = nodes(lab)[node]["health"][f"web/{lab.namespace(backend)}"]["state"]
    return found


def cut_off(lab: Lab, *backends: str) -> AbstractContextManager[None]:
    """The second node's checks of these backends are refused on their way."""
    names = map(lab.namespace, backends)
    return out_of_reach(lab, "client", *(lab.topology.front_addresses(each)[0] for each in names))


@pytest.fixture
def web(lab: Lab, second: Path) -> tuple[Slots, Slots]:
    """A service, whose servers both nodes find healthy, as each of them has it."""
    asked = checked(lab)
    for each in asked["backends"]:
        each["address"] = str(lab.topology.front_addresses(each["name"])[0])
    return serve(lab, asked), serve(lab, asked, second)


def test_a_server_that_fails_is_out_on_both_once_both_found_it(
    lab: Lab, web: tuple[Slots, Slots]
) -> None:
    server = Server(lab, "backend1")
    before = web[0]()
    server.stop()
    broken = time.monotonic()
    try:
        for slots in web:
            out = slots.until(lambda held: held[server.name] == 0) - broken
            assert out <= FALL * INTERVAL + ALLOWED
    finally:
        server.start()
    for slots in web:
        slots.until(lambda held: held == before)
    wait_until(
        "both to find it healthy",
        lambda: {state(lab, node, "backend1") for node in nodes(lab)} == {"healthy"},
    )


def test_one_node_that_does_not_reach_a_server_takes_it_out_nowhere(
    lab: Lab, web: tuple[Slots, Slots]
) -> None:
    before = [slots() for slots in web]
    with cut_off(lab, "backend1"):
        wait_until("its finding", lambda: state(lab, SECOND, "backend1") == "unhealthy")
        # What it reports is in its kernel.
        assert [slots() for slots in web] == before
        assert "only this node's" not in str(nodes(lab)[SECOND]["problems"])
    wait_until("its recovery", lambda: state(lab, SECOND, "backend1") == "healthy")


def test_a_node_that_alone_finds_all_of_them_unhealthy_goes_by_the_others(
    lab: Lab, web: tuple[Slots, Slots]
) -> None:
    before = [slots() for slots in web]
    others = lab.topology.backends
    server = Server(lab, "backend1")

    def warnings() -> str:
        return str([each for each in nodes(lab)[SECOND]["problems"] if each["warning"]])

    try:
        with cut_off(lab, *others):
            wait_until("the suspicion", lambda: "only this node's checks" in warnings())
            wait_until(
                "its findings",
                lambda: all(state(lab, SECOND, each) == "unhealthy" for each in others),
            )
            assert [slots() for slots in web] == before
            assert "only this node's" not in str(nodes(lab)[lab.topology.node]["problems"])
            # The word of the other one is enough for it.
            server.stop()
            for slots in web:
                slots.until(lambda held: held[server.name] == 0)
            server.start()
            for slots in web:
                slots.until(lambda held: held[server.name] > 0)
        wait_until("the all-clear", lambda: "only this node's checks" not in warnings())
        assert [slots() for slots in web] == before
    finally:
        server.mend()


def test_a_node_that_is_gone_has_no_vote(lab: Lab, web: tuple[Slots, Slots]) -> None:
    pid = str(nodes(lab)[SECOND]["pid"])
    server = Server(lab, "backend1")
    lab.run("client", ["kill", "-STOP", pid])
    try:
        server.stop()
        wait_until("its finding", lambda: state(lab, lab.topology.node, "backend1") == "unhealthy")
        assert web[0].of(server.name) > 0  # the other one may still reach it
        wait_until("the lease's end", lambda: SECOND not in nodes(lab), timeout=20)
        web[0].until(lambda held: held[server.name] == 0)
    finally:
        lab.run("client", ["kill", "-CONT", pid])
        server.mend()
