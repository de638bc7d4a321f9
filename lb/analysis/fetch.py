"""One HTTP request, bounded in time as a whole, and in what is read. No redirects, no proxy: what is
asked is what the file says."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from lb.analysis.context import MAX_ANSWER, NotMeasured
from lb.probe.base import excerpt


def post(url: str, body: bytes, headers: Mapping[str, str], timeout: float) -> tuple[int, bytes]:
    """Status and body of the answer, of which a little more than MAX_ANSWER bytes at most are read.
    Raises NotMeasured."""
    try:
        parts = urlsplit(url)
        connection = _connection(parts.scheme, parts.hostname or "", parts.port, timeout)
    except ValueError as error:
        raise NotMeasured(f"{url}: {error}") from None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    late = threading.Event()

    def end() -> None:
        late.set()
        with suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    # A timeout of the socket is one for each read: who sends a byte now and then would hold us for ever.
    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    try:
        connection.request("POST", path, body, dict(headers))
        answer = connection.getresponse()
        found = answer.read(MAX_ANSWER + 1)
        if late.is_set():
            raise NotMeasured(f"{url}: no whole answer within {timeout:g} s")
        return answer.status, found
    except (OSError, ValueError, http.client.HTTPException) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise NotMeasured(f"{url}: no answer within {timeout:g} s") from None
        raise NotMeasured(f"{url}: {str(error) or type(error).__name__}") from None
    finally:
        timer.cancel()
        connection.close()


def _connection(scheme: str, host: str, port: int | None, timeout: float) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(
            host, port, timeout=timeout, context=ssl.create_default_context()
        )
    return http.client.HTTPConnection(host, port, timeout=timeout)


def refused(url: str, status: int, body: bytes) -> NotMeasured:
    """An answer that is not 2xx, in words."""
    return NotMeasured(f"{url}: status {status}" + (f": {excerpt(body)}" if body else ""))
