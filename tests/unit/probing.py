"""Servers to probe, on the loopback, and one way to probe them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lb.core.health import Result
from lb.model.health import Health
from lb.probe.ask import ask
from lb.probe.base import Target

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def target(check: dict[str, Any], address: str = "127.0.0.1", **more: Any) -> Target:
    folder = more.pop("exec_dir", Path("/nowhere"))
    health = Health.model_validate({"check": check, "timeout": 2, **more})
    return Target("web", "b1", ip_address(address), health, folder)


def probe(check: dict[str, Any], address: str = "127.0.0.1", **more: Any) -> Result:
    return asyncio.run(ask(target(check, address, **more)))


def against(talk: Talk, check: dict[str, Any], *, ssl: Any = None, host: str = "127.0.0.1",
            **more: Any) -> Result:  # fmt: skip
    """Probe a server that talks so."""

    async def run() -> Result:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await talk(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(guarded, host, 0, ssl=ssl)
        port = server.sockets[0].getsockname()[1]
        try:
            return await ask(target({**check, "port": port}, host, **more))
        finally:
            server.close()

    return asyncio.run(run())


def saying(answer: bytes, *, hold: bool = False) -> Talk:
    """A server that reads a head and says this; `hold`: it then keeps the connection."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if hold:
            await reader.read()

    return talk
