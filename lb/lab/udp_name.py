"""`python -m lb.lab.udp_name NAME PORT ADDRESS…`: answer each datagram with a name, and spaces
behind it up to the length of the question.

One socket per address, so that an answer comes from the address that was asked (a VIP, mostly).
"""

from __future__ import annotations

import selectors
import socket
import sys
from collections.abc import Sequence


def serve(name: str, port: int, addresses: Sequence[str]) -> None:
    """Answer until killed."""
    selector = selectors.DefaultSelector()
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.socket(family, socket.SOCK_DGRAM)
        server.bind((address, port))
        selector.register(server, selectors.EVENT_READ)
    answer = f"{name}\n".encode()
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            question, client = key.fileobj.recvfrom(65535)
            key.fileobj.sendto(answer.ljust(len(question)), client)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
