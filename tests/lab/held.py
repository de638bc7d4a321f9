"""A client that holds connections open: `python held.py ADDRESS PORT COUNT [FIRST_SOURCE_PORT]`.

It opens COUNT HTTP connections, and for each line on standard input asks once on each of them; the
answers (the backends' names, or "!" and the error) go out as one JSON list. With FIRST_SOURCE_PORT the
connections take consecutive source ports from there.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

# Where everything takes longer (lb/lab/shell.py), answers do, too.
TIMEOUT = 5 * float(os.environ.get("LB_PATIENCE", "1"))


def connect(address: str, port: int, source: int) -> socket.socket | str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if source:
            sock.bind(("", source))
        sock.connect((address, port))
    except OSError as error:
        return f"!{error}"
    return sock


def ask(sock: socket.socket | str) -> str:
    if isinstance(sock, str):
        return sock
    try:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: lb\r\n\r\n")
        data = b""
        while b"\r\n\r\n" not in data:
            data += _more(sock)
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        while len(body) < length:
            body += _more(sock)
    except OSError as error:
        return f"!{error}"
    return body.decode().strip()


def _more(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ConnectionError("closed by the server")
    return data


def main() -> None:
    address, port, count, *rest = sys.argv[1:]
    first = int(rest[0]) if rest else 0
    sources = [first + index if first else 0 for index in range(int(count))]
    with ThreadPoolExecutor(32) as pool:  # so that those which nobody answers are waited for together
        held = list(pool.map(lambda source: connect(address, int(port), source), sources))
    for _ in sys.stdin:
        print(json.dumps([ask(sock) for sock in held]), flush=True)


if __name__ == "__main__":
    main()
