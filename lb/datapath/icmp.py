"""Listening to ICMP errors that routers send to this machine, about packets of its tunnels."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable

from lb.core.pathmtu import TooBig, read_ipv4, read_ipv6

_SOL_RAW = 255  # linux/socket.h
_ICMP_FILTER, _ICMP6_FILTER = 1, 1  # uapi/linux/icmp.h, uapi/linux/icmpv6.h
_UNREACHABLE, _PACKET_TOO_BIG = 3, 2
_PAUSE = 1.0  # seconds


def listen(heard: Callable[[TooBig], None]) -> None:
    """Start a thread per family that calls `heard` with each word about a packet that was too big."""
    for family, read in ((socket.AF_INET, read_ipv4), (socket.AF_INET6, read_ipv6)):
        threading.Thread(
            target=_hear, args=(_open(family), read, heard), name="icmp", daemon=True
        ).start()


def _open(family: socket.AddressFamily) -> socket.socket:
    """A raw socket that gets only the kind of errors that are looked for."""
    if family == socket.AF_INET:
        found = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        blocked = struct.pack("=I", ~(1 << _UNREACHABLE) & 0xFFFFFFFF)
        found.setsockopt(_SOL_RAW, _ICMP_FILTER, blocked)
        return found
    found = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    words = [0xFFFFFFFF] * 8
    words[0] &= ~(1 << _PACKET_TOO_BIG)
    found.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
    return found


def _hear(
    source: socket.socket, read: Callable[[bytes], TooBig | None], heard: Callable[[TooBig], None]
) -> None:
    while True:
        try:
            message = source.recv(2048)
        except OSError:  # the kernel is short of memory
            time.sleep(_PAUSE)
            continue
        error = read(message)
        if error is not None:
            heard(error)
