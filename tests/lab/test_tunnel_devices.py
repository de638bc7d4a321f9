"""Modes ipip and gue, opened by somebody else: the kernel's own ipip, sit and ip6tnl devices, and its
receiver of GUE. `make test-kernel` runs this where the running kernel has no such devices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import create, held, outcomes, service
from transfers import download, publish

from lb.lab.lab import Lab
from lb.lab.topology import VIP4, VIP6
from lb.model.objects import GUE_PORT

SIZE = 20_000_000
# By the families inside and outside. A packet in GUE is handed to the same devices, by its protocol.
DEVICES = {
    (4, 4): "link add lb44 type ipip local {v4} remote any",
    (6, 4): "link add lb64 type sit local {v4} remote any",
    (4, 6): "link add lb46 type ip6tnl mode ipip6 local {v6} remote any",
    (6, 6): "link add lb66 type ip6tnl mode ip6ip6 local {v6} remote any",
}
PAIRS = [pytest.param(*pair, id=f"{pair[0]}in{pair[1]}") for pair in DEVICES]


@pytest.fixture(scope="module")
def receivers(lab: Lab) -> None:
    """The backends take tunnels' packets without our program."""
    for name in lab.topology.backends:
        v4, v6 = lab.topology.back_addresses(name)
        for line in DEVICES.values():
            device = line.split()[2]
            made = lab.run(name, ["ip", *line.format(v4=v4, v6=v6).split()], check=False)
            if made.returncode:
                pytest.skip(f"this kernel has no tunnel devices: {made.stderr.strip()}")
            lab.run(name, ["ip", "link", "set", device, "up"])


@pytest.fixture(scope="module")
def gue(lab: Lab) -> None:
    for name in lab.topology.backends:
        for family in ("-4", "-6"):
            line = ["ip", family, "fou", "add", "port", str(GUE_PORT), "gue"]
            made = lab.run(name, line, check=False)
            if made.returncode:
                pytest.skip(f"this kernel has no receiver of GUE: {made.stderr.strip()}")


def reached(lab: Lab, mode: str, inside: int, outside: int) -> None:
    vip = VIP4 if inside == 4 else VIP6
    checksum, before = publish(lab, SIZE), outcomes(lab)
    create(lab, service(lab, "web", vip, mode=mode, via=outside))
    with held(lab, vip, 40) as connections:
        answers = connections.ask()
        assert set(answers) == set(lab.topology.backends)
        assert connections.ask() == answers
    assert download(lab, vip) == checksum
    sent = outcomes(lab)["forward_redirect"] - before["forward_redirect"]
    for name in lab.topology.backends:
        stats = lab.run(name, ["ip", "-s", "-j", "link", "show", f"lb{inside}{outside}"]).stdout
        assert '"packets":0' not in stats.partition('"rx"')[2].partition("}")[0]
    assert sent >= 5 * 40


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
