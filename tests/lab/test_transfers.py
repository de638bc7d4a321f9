"""Every mode with what real clients do: downloads, many connections, UDP, DNS, and a path whose MTU
somebody has to tell the server. `make check-datapath` does the same with more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import ENOUGH, held
from transfers import (
    MODES,
    ask_dns,
    ask_udp,
    download,
    download_through_small_hop,
    everything,
    publish,
    put_client_behind_small_hop,
    start_dns_servers,
)

from lb.lab.lab import Lab
from lb.lab.topology import VIP4, VIP6

SIZE = 5_000_000


@pytest.fixture(scope="module")
def far(lab: Lab) -> str:
    start_dns_servers(lab)
    return put_client_behind_small_hop(lab)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_what_real_clients_do(node: Callable[[str], Lab], far: str, hook: str, mode: str) -> None:
    lab = node(hook)
    lab.start_udp_servers()
    everything(lab, mode)
    everybody = set(lab.topology.backends)
    checksum = publish(lab, SIZE)
    for vip in (VIP4, VIP6):
        assert download(lab, vip) == checksum
        assert ask_udp(lab, vip, range(20000, 20000 + ENOUGH)) == everybody
        assert "" not in ask_dns(lab, vip, 4)
        # Its router says "too big" to the VIP, and the server that the flow is on must hear it.
        got, told = download_through_small_hop(lab, far, vip)
        assert got == checksum
        assert told > 0
        with held(lab, vip, 100) as connections:
            assert set(connections.ask()) == everybody
