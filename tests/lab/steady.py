"""A client that asks without a pause, until its standard input ends: `python steady.py ADDRESS PORT`.
Each datagram waits a second (times LB_PATIENCE) for its answer. Prints a line when the first was
answered and, at the end, how many were asked and how many had no answer, as JSON."""

from __future__ import annotations

import json
import os
import select
import socket
import sys


def main() -> None:
    address, port = sys.argv[1], int(sys.argv[2])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.connect((address, port))
    client.settimeout(float(os.environ.get("LB_PATIENCE", "1")))
    asked = lost = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        asked += 1
        try:
            client.send(b"?")
            client.recv(100)
        except OSError:
            lost += 1
            continue
        if asked - lost == 1:
            print("answered", flush=True)
    print(json.dumps({"asked": asked, "lost": lost}))


if __name__ == "__main__":
    main()
