"""A QUIC client (aioquic) that changes its source port in the middle of each connection, as behind a NAT
that forgot it: `python quic_client.py ADDRESS PORT CONNECTIONS`. Prints a JSON list of pairs: who
answered before and after, or "!" and what went wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.configuration import QuicConfiguration

SECONDS = 3


async def ask(client: QuicConnectionProtocol) -> str:
    reader, writer = await client.create_stream()
    writer.write(b"?")
    writer.write_eof()
    return (await asyncio.wait_for(reader.read(), SECONDS)).decode()


async def move(client: QuicConnectionProtocol) -> None:
    """From another socket from now on."""
    old = client._transport
    family = old.get_extra_info("socket").family
    fresh = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        fresh.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    fresh.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: client, sock=fresh)
    client._transport = transport
    old.abort()


async def both(address: str, port: int) -> tuple[str, str]:
    configuration = QuicConfiguration(alpn_protocols=["lb"], verify_mode=ssl.CERT_NONE)
    answers = []
    try:
        async with connect(address, port, configuration=configuration) as client:
            answers.append(await ask(client))
            await move(client)
            answers.append(await ask(client))
    except (TimeoutError, ConnectionError) as error:
        answers.append(f"!{type(error).__name__}")
    return answers[0], answers[-1]


async def main() -> None:
    address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps([await both(address, port) for _ in range(count)]))


if __name__ == "__main__":
    asyncio.run(main())
