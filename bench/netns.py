"""A network namespace of its own for the packet suite: two veth pairs, connected to nothing outside.

Test runs send nothing; the interfaces are there because a test run names one as the packet's, and
because the balancer's next hops and devmap entries name them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute

from lb.datapath.bpf import Program, ProgramType

CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_XDP_PASS = 2

# Where packets come in, and the other arm.
INGRESS, OTHER = 10, 20
MAC = {INGRESS: bytes([2, 0, 0, 0, 1, INGRESS]), OTHER: bytes([2, 0, 0, 0, 1, OTHER])}


@contextmanager
def namespace() -> Iterator[None]:
    """This thread runs in a new namespace, which is gone afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open(_HERE, os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        error = ctypes.get_errno()
        os.close(home)
        raise OSError(error, f"new network namespace: {os.strerror(error)}")
    try:
        _build()
        yield
    finally:
        if libc.setns(home, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "return to the network namespace")
        os.close(home)


def _build() -> None:
    # A test run may name an interface only once its XDP receive queue is set up: a program attaches.
    idle = Program.constant(ProgramType.XDP, "bench_pass", _XDP_PASS)
    with IPRoute() as ip:
        for index, mac in MAC.items():
            name, far = f"bench{index}", f"bench{index}-far"
            ip.link("add", ifname=name, index=index, address=mac.hex(":"), kind="veth", peer=far)
            ip.link("set", index=index, state="up")
            ip.link("set", index=ip.link_lookup(ifname=far)[0], state="up")
        ip.link("set", index=INGRESS, xdp_fd=idle.fd)
