"""TCP: connect; with `send` and `expect`, also talk."""

from __future__ import annotations

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext

from lb.model.health import TcpCheck
from lb.probe.base import MAX_ANSWER, Attempt, Failed, Target, excerpt, new_socket

# A close that sends RST: the side that closes first would keep the connection for a minute
# (TIME_WAIT), which are 120,000 at 2,000 checks a second. HAProxy's checks do the same.
_ABORT = struct.pack("ii", 1, 0)


@asynccontextmanager
async def connection(
    target: Target, attempt: Attempt, tls: SSLContext | None = None, name: str | None = None
) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    """A connection to the target, aborted in the end."""
    attempt.connecting()
    plain = new_socket(target, attempt, socket.SOCK_STREAM)
    try:
        await asyncio.get_running_loop().sock_connect(plain, (target.host, target.port))
        reader, writer = await asyncio.open_connection(
            sock=plain, limit=MAX_ANSWER, ssl=tls, server_hostname=name if tls else None
        )
    except BaseException:  # cancelled, too
        plain.close()
        raise
    attempt.connected()
    try:
        yield reader, writer
    finally:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        writer.transport.abort()


async def ask(target: Target, attempt: Attempt) -> str:
    """Raises Failed, OSError."""
    check = target.health.check
    assert isinstance(check, TcpCheck)
    async with connection(target, attempt) as (reader, writer):
        if check.send is not None:
            writer.write(check.send.encode())
        if check.expect is None:
            return "connected"
        answer = b""
        while check.expect.encode() not in answer:
            more = await reader.read(MAX_ANSWER - len(answer))
            if not more:
                raise Failed(f"answered {_said(answer)}, expected {check.expect!r} in it")
            answer += more
            attempt.connected(f"answered {_said(answer)}, but nothing with {check.expect!r}")
        return "answered as expected"


def _said(answer: bytes) -> str:
    return excerpt(answer) if answer else "nothing"
