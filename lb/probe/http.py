"""HTTP/1.1, plain and in TLS.

A client of our own, because a check needs very little of one, and 2,000 of them a second have to be
cheap: 0.12 ms each, where h11 alone would add as much (docs/decisions/009). One request, no redirects,
no reuse; the body is read only if somebody wants something in it.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from asyncio import StreamReader

from lb.model.health import HttpCheck, HttpsCheck
from lb.probe import tls
from lb.probe.base import MAX_ANSWER, Attempt, Failed, Target, excerpt
from lb.probe.tcp import connection

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r?\n")
_AGENT = "lb-health"


async def ask(target: Target, attempt: Attempt) -> str:
    """Raises Failed, OSError."""
    check = target.health.check
    assert isinstance(check, HttpCheck)
    if not isinstance(check, HttpsCheck):
        return await _exchange(target, check, attempt, None, None)
    name = tls.name_for(check, target)
    try:
        return await _exchange(target, check, attempt, tls.context_for(check), name)
    except ssl.SSLError as error:
        raise Failed(await tls.explain(error, target, name)) from None


async def _exchange(
    target: Target, check: HttpCheck, attempt: Attempt, context: ssl.SSLContext | None, name: str | None
) -> str:
    async with connection(target, attempt, context, name) as (reader, writer):
        writer.write(_request(check, target.authority, target.port))
        try:
            status, reason, head = await _head(reader)
            if not check.is_good(status):
                expected = " or ".join(check.status)
                raise Failed(f"status {status}{reason}, expected {expected}")
            if check.body is not None:
                attempt.connected(f"status {status}, but no end of the body")
                body = await _body(reader, head)
                if check.body.encode() not in body:
                    raise Failed(
                        f"status {status}, but the body has no {check.body!r}: it is {excerpt(body)}"
                    )
        except asyncio.IncompleteReadError as error:
            raise Failed(
                "connection closed in the middle of the answer"
                if error.partial
                else "connection closed without an answer"
            ) from None
        except (asyncio.LimitOverrunError, ValueError):
            raise Failed(f"the head of the answer is longer than {MAX_ANSWER} bytes") from None
        return f"status {status}{reason}"


def _request(check: HttpCheck, authority: str, port: int) -> bytes:
    default = 443 if isinstance(check, HttpsCheck) else 80
    host = check.host or (authority if port == default else f"{authority}:{port}")
    lines = [f"{check.method} {check.path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in check.headers.items()]
    if not any(name.lower() == "user-agent" for name in check.headers):
        lines.append(f"User-Agent: {_AGENT}")
    if check.method == "POST":
        lines.append("Content-Length: 0")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


async def _head(reader: StreamReader) -> tuple[int, str, bytes]:
    """Status, reason (" (OK)" or "") and the header lines of the final answer."""
    while True:
        line = await reader.readline()
        if not line:
            raise Failed("connection closed without an answer")
        found = _STATUS.fullmatch(line)
        if not found:
            raise Failed(f"the answer is not HTTP: {excerpt(line)}")
        head = b""
        while (line := await reader.readline()) not in (b"\r\n", b"\n"):
            head += line
            if not line or len(head) > MAX_ANSWER:
                raise Failed("the head of the answer has no end")
        status = int(found[1])
        if status >= 200:  # RFC 9110, 15.2: others come before the final one
            reason = (found[2] or b"").decode("latin-1").strip()
            return status, f" ({reason})" if reason else "", head


async def _body(reader: StreamReader, head: bytes) -> bytes:
    """The beginning of the body, without the framing (RFC 9112, 6.3)."""
    fields = head.lower()
    if re.search(rb"^transfer-encoding:.*\bchunked\s*$", fields, re.MULTILINE):
        body = b""
        while len(body) < MAX_ANSWER and (size := await _chunk_size(reader)):
            body += (await reader.readexactly(min(size, MAX_ANSWER) + 2))[:-2]
            if size > MAX_ANSWER:
                break
        return body[:MAX_ANSWER]
    length = re.search(rb"^content-length:\s*(\d+)\s*$", fields, re.MULTILINE)
    if length:
        return await reader.readexactly(min(int(length[1]), MAX_ANSWER))
    body = b""
    while len(body) < MAX_ANSWER and (more := await reader.read(MAX_ANSWER - len(body))):
        body += more
    return body


async def _chunk_size(reader: StreamReader) -> int:
    line = await reader.readline()
    found = re.match(rb"[0-9a-fA-F]{1,8}", line)
    if not found:
        raise Failed(f"the body's chunks are not HTTP: {excerpt(line)}")
    return int(found[0], 16)
