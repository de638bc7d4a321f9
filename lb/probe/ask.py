"""One check, whatever its kind: from a target to a result in words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from lb.core.health import Result
from lb.model.health import Via
from lb.probe import dns, grpc, http, program, tcp, udp
from lb.probe.base import Attempt, Failed, Inconclusive, Target, describe

ASK: dict[str, Callable[[Target, Attempt], Awaitable[str]]] = {
    "tcp": tcp.ask,
    "http": http.ask,
    "https": http.ask,
    "grpc": grpc.ask,
    "udp": udp.ask,
    "dns": dns.ask,
    "exec": program.ask,
}

# A timeout that is noticed so late was noticed by somebody who slept: the answer may be there.
STALL_SECONDS = 0.25


async def ask(target: Target, mark: int = 0) -> Result:
    """Ask once. `mark`: of the sockets, where the check goes `via: vip` (lb/datapath/probepath.py); 0 =
    not known. Raises Inconclusive if that says nothing about the backend."""
    timeout = target.health.timeout
    is_via_vip = target.health.via is Via.VIP
    if is_via_vip and not mark:
        raise Inconclusive("via the VIP, only a node can whose lbd checks this backend so, too")
    attempt = Attempt(mark if is_via_vip else 0)
    began = time.monotonic()
    passed = False
    try:
        async with asyncio.timeout(timeout) as limit:
            words = await ASK[target.health.check.kind](target, attempt)
            passed = True
    except Failed as failure:
        words = str(failure)
    except OSError as error:  # TimeoutError is one, too
        if limit.expired():
            if time.monotonic() - began > timeout + STALL_SECONDS:
                raise Inconclusive("this node was too busy to look in time") from None
            words = f"{attempt.missing} in {timeout:g} s"
        else:
            words = describe(error)
    return Result(passed, words, time.monotonic() - began)
