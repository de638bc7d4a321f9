"""Modes ipip and gue, opened by somebody else: the kernel's own ipip, sit and ip6tnl devices, and its
receiver of GUE. `make test-kernel` runs this where the running kernel has no such devices."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from helpers import ENOUGH, create, held, outcomes, service
from transfers import download, publish

from lb.lab.lab import Lab
from lb.lab.topology import VIP4, VIP6
from lb.model.objects import GUE_PORT

SIZE = 20_000_000
# A packet in GUE is handed to the same devices, by its protocol. One ip6tnl takes both families: a
# second one with these ends is refused.
DEVICES = {
    "lb44": "type ipip local {v4} remote any",
    "lb64": "type sit local {v4} remote any",
    "lb6": "type ip6tnl mode any local {v6} remote any",
}
BY_FAMILIES = {(4, 4): "lb44", (6, 4): "lb64", (4, 6): "lb6", (6, 6): "lb6"}  # inside, outside
PAIRS = [pytest.param(*pair, id=f"{pair[0]}in{pair[1]}") for pair in BY_FAMILIES]


@pytest.fixture(scope="module")
def receivers(lab: Lab) -> None:
    """The backends take tunnels' packets without our program."""
    for name in lab.topology.backends:
        v4, v6 = lab.topology.back_addresses(name)
        for device, kind in DEVICES.items():
            line = ["ip", "link", "add", device, *kind.format(v4=v4, v6=v6).split()]
            made = lab.run(name, line, check=False)
            if "Unknown device type" in made.stderr:
                pytest.skip(f"this kernel has no tunnel devices: {made.stderr.strip()}")
            assert not made.returncode, made.stderr
            lab.run(name, ["ip", "link", "set", device, "up"])


@pytest.fixture(scope="module")
def gue(lab: Lab) -> None:
    # Unlike devices, it isn't loaded when it is asked for.
    lab.run("client", ["modprobe", "-q", "fou"], check=False)
    for name in lab.topology.backends:
        for family in ("-4", "-6"):
            line = ["ip", family, "fou", "add", "port", str(GUE_PORT), "gue"]
            made = lab.run(name, line, check=False)
            if made.returncode:
                pytest.skip(f"this kernel has no receiver of GUE: {made.stderr.strip()}")


def received(lab: Lab, backend: str, device: str) -> int:
    """Packets that a device has opened."""
    (link,) = json.loads(lab.run(backend, ["ip", "-s", "-j", "link", "show", device]).stdout)
    return int(link["stats64"]["rx"]["packets"])


def reached(lab: Lab, mode: str, inside: int, outside: int) -> None:
    vip = VIP4 if inside == 4 else VIP6
    device = BY_FAMILIES[inside, outside]
    checksum, before = publish(lab, SIZE), outcomes(lab)
    taken = {name: received(lab, name, device) for name in lab.topology.backends}
    create(lab, service(lab, "web", vip, mode=mode, via=outside))
    with held(lab, vip, ENOUGH) as connections:
        answers = connections.ask()
        assert set(answers) == set(lab.topology.backends)
        assert connections.ask() == answers
    assert download(lab, vip) == checksum
    sent = outcomes(lab)["forward_redirect"] - before["forward_redirect"]
    for name, packets in taken.items():
        assert received(lab, name, device) > packets
    assert sent >= 5 * ENOUGH


@pytest.mark.usefixtures("receivers")
@pytest.mark.parametrize(("inside", "outside"), PAIRS)
def test_ipip_is_opened_by_tunnel_devices(node: Callable[[str], Lab], inside: int, outside: int) -> None:
    reached(node("auto"), "ipip", inside, outside)


@pytest.mark.usefixtures("receivers", "gue")
@pytest.mark.parametrize(("inside", "outside"), PAIRS)
def test_gue_is_opened_by_the_kernels_receiver(
    node: Callable[[str], Lab], inside: int, outside: int
) -> None:
    reached(node("auto"), "gue", inside, outside)
