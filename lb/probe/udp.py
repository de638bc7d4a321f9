"""UDP: send a datagram, wait for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import SOCK_DGRAM

from lb.model.health import UdpCheck
from lb.probe.base import Attempt, Failed, Target, excerpt, new_socket


class Socket(asyncio.DatagramProtocol):
    """A connected UDP socket: datagrams of the peer, and what ICMP says of it."""

    def __init__(self) -> None:
        self._came: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
        """Of asyncio."""
        self._came.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        """Of asyncio: an ICMP error."""
        self._came.put_nowait(exc)

    async def receive(self) -> bytes:
        """The next datagram. Raises Failed, OSError."""
        came = await self._came.get()
        if isinstance(came, ConnectionRefusedError):
            raise Failed("refused: nobody listens on this port (ICMP port unreachable)")
        if isinstance(came, Exception):
            raise came
        return came


@asynccontextmanager
async def exchange(target: Target, attempt: Attempt, data: bytes) -> AsyncIterator[Socket]:
    """The datagram is sent; what comes back can be received."""
    loop = asyncio.get_running_loop()
    plain = new_socket(target, attempt, SOCK_DGRAM)
    try:
        plain.connect((target.host, target.port))
        transport, protocol = await loop.create_datagram_endpoint(Socket, sock=plain)
    except BaseException:
        plain.close()
        raise
    try:
        transport.sendto(data)
        yield protocol
    finally:
        transport.abort()


async def ask(target: Target, attempt: Attempt) -> str:
    """Raises Failed, OSError."""
    check = target.health.check
    assert isinstance(check, UdpCheck)
    async with exchange(target, attempt, check.send.encode()) as socket:
        answer = await socket.receive()
    if check.expect is not None and check.expect.encode() not in answer:
        raise Failed(f"answered {excerpt(answer)}, expected {check.expect!r} in it")
    return "answered"
