"""HTTP/1.1, plain and in TLS: one request, no redirects, no reuse. The protocol is h11's work; the body
is read only if somebody wants something in it."""

from __future__ import annotations

import ssl
from asyncio import StreamReader

import h11

from lb.model.health import HttpCheck, HttpsCheck
from lb.probe import tls
from lb.probe.base import MAX_ANSWER, Attempt, Failed, Target, excerpt
from lb.probe.tcp import connection

_END = h11.EndOfMessage()


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
        peer = _Peer(reader)
        request = target.kept.get("request")
        if not isinstance(request, h11.Request):  # to make and validate it takes a tenth of a check
            request = target.kept["request"] = _request(check, target)
        # There is no body, so the end of the message sends nothing.
        writer.write(peer.http.send(request) or b"")
        peer.http.send(_END)
        answer = await peer.next()
        while isinstance(answer, h11.InformationalResponse):  # others come before the final one
            answer = await peer.next()
        assert isinstance(answer, h11.Response)
        status = answer.status_code
        reason = f" ({text})" if (text := answer.reason.decode("latin-1").strip()) else ""
        if not check.is_good(status):
            raise Failed(f"status {status}{reason}, expected {' or '.join(check.status)}")
        if check.body is not None:
            attempt.connected(f"status {status}, but no end of the body")
            body = b""
            while len(body) < MAX_ANSWER and isinstance(part := await peer.next(), h11.Data):
                body += part.data
            if check.body.encode() not in body[:MAX_ANSWER]:
                raise Failed(
                    f"status {status}, but the body has no {check.body!r}: it is {excerpt(body)}"
                )
        return f"status {status}{reason}"


def _request(check: HttpCheck, target: Target) -> h11.Request:
    default = 443 if isinstance(check, HttpsCheck) else 80
    own = target.authority if target.port == default else f"{target.authority}:{target.port}"
    headers = [("Host", check.host or own), ("Connection", "close")]
    if not any(name.lower() == "user-agent" for name in check.headers):
        headers.append(("User-Agent", "lb-health"))
    if check.method == "POST":
        headers.append(("Content-Length", "0"))
    return h11.Request(
        method=check.method,
        target=check.path,
        headers=[(name.encode(), value.encode()) for name, value in (*headers, *check.headers.items())],
    )


class _Peer:
    """The server, event by event."""

    def __init__(self, reader: StreamReader) -> None:
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER)
        self._reader = reader
        self._first = b""

    async def next(self) -> object:
        """Raises Failed if what comes isn't HTTP, or isn't whole."""
        try:
            event = self.http.next_event()
            while event is h11.NEED_DATA:
                data = await self._reader.read(MAX_ANSWER)
                self._first = self._first or data
                self.http.receive_data(data)
                event = self.http.next_event()
        except h11.RemoteProtocolError as error:
            raise Failed(self._explain(error)) from None
        if isinstance(event, h11.ConnectionClosed):
            raise Failed("connection closed without an answer")
        return event

    def _explain(self, error: h11.RemoteProtocolError) -> str:
        if self._reader.at_eof() and not self._first:
            return "connection closed without an answer"
        if not self._first.startswith(b"HTTP/"):
            return f"the answer is not HTTP: {excerpt(self._first)}"
        if self._reader.at_eof():
            return "connection closed in the middle of the answer"
        return f"the answer is not good HTTP: {error}"
