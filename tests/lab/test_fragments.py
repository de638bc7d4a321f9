"""Datagrams that come in several pieces, to real servers and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import create, outcomes, service
from transfers import MODES, ask_udp

from lb.lab.lab import UDP_PORT, Lab
from lb.lab.topology import VIP4, VIP6

# So that a piece fits into a tunnel, too. (What doesn't is counted: drop_too_big.)
PATH_MTU = 1400
SIZE = 9000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_large_datagrams(node: Callable[[str], Lab], hook: str, mode: str) -> None:
    lab = node(hook)
    lab.open_tunnels()
    lab.start_udp_servers()
    for vip in (VIP4, VIP6):
        length = 32 if vip.version == 4 else 128
        route = [f"{vip}/{length}", "dev", "front0", "mtu", "lock", str(PATH_MTU)]
        lab.run("client", ["ip", "route", "replace", *route])
        try:
            create(lab, service(lab, "udp", vip, mode=mode, port=UDP_PORT, protocol="udp"))
            before = outcomes(lab)
            answers = ask_udp(lab, vip, range(20000, 20040), SIZE)
            assert answers == set(lab.topology.backends)
            after = outcomes(lab)
            assert after["drop_fragment"] == before["drop_fragment"]
            pieces = 40 * (SIZE // PATH_MTU)
            assert after["forward_redirect"] - before["forward_redirect"] > pieces
            if mode in ("nat", "fullnat"):
                assert after["reply_redirect"] - before["reply_redirect"] > pieces
        finally:
            lab.run("client", ["ip", "route", "del", *route[:3]])
            lab.lbctl("service", "rm", "udp", "--cascade", "--wait")
