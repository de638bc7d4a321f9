"""One new HTTP connection from each of many addresses: `python clients.py ADDRESS PORT SOURCE…` prints
the answers (the backends' names, or "!" and the error) as one JSON list."""

from __future__ import annotations

import json
import socket
import sys

from held import ask


def new_connection(address: str, port: int, source: str) -> str:
    try:
        sock = socket.create_connection((address, port), timeout=15, source_address=(source, 0))
    except OSError as error:
        return f"!{error}"
    with sock:
        return ask(sock)


def main() -> None:
    address, port, *sources = sys.argv[1:]
    print(json.dumps([new_connection(address, int(port), source) for source in sources]))


if __name__ == "__main__":
    main()
