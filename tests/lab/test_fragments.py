"""Datagrams that come in several pieces, to real servers and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import ENOUGH, create, outcomes, service
from transfers import LARGE, MODES, PIECE_MTU, ask_in_pieces

from lb.lab.lab import UDP_PORT, Lab
from lb.lab.topology import VIP4, VIP6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_large_datagrams(node: Callable[[str], Lab], hook: str, mode: str) -> None:
    lab = node(hook)
    lab.open_tunnels()
    lab.start_udp_servers()
    for vip in (VIP4, VIP6):
        create(lab, service(lab, "udp", vip, mode=mode, port=UDP_PORT, protocol="udp"))
        before = outcomes(lab)
        assert ask_in_pieces(lab, vip, range(20000, 20000 + ENOUGH)) == set(lab.topology.backends)
        after = outcomes(lab)
        assert after["drop_fragment"] == before["drop_fragment"]
        pieces = 40 * (LARGE // PIECE_MTU)
        assert after["forward_redirect"] - before["forward_redirect"] > pieces
        if mode in ("nat", "fullnat"):
            assert after["reply_redirect"] - before["reply_redirect"] > pieces
        lab.lbctl("service", "rm", "udp", "--cascade", "--wait")
