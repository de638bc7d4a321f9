"""gRPC: ask the health service (grpc.health.v1) how it is.

HTTP/2 is h2's work. The two messages have one field each, so they are written and read by hand: the
grpcio package would bring a second event loop and protobuf for that (docs/decisions/009).
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from dataclasses import dataclass, field
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from lb.model.health import GrpcCheck
from lb.probe import tls
from lb.probe.base import MAX_ANSWER, Attempt, Failed, Target, excerpt
from lb.probe.tcp import connection

_STATUS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_SERVING = 1
_SETTINGS = 4  # type of a frame
_CODES = {
    1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND",
    6: "ALREADY_EXISTS", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION",
    10: "ABORTED", 11: "OUT_OF_RANGE", 12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE",
    15: "DATA_LOSS", 16: "UNAUTHENTICATED",
}  # fmt: skip
_CONFIG = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")


async def ask(target: Target, attempt: Attempt) -> str:
    """Raises Failed, OSError."""
    check = target.health.check
    assert isinstance(check, GrpcCheck)
    if not check.tls:
        return await _exchange(target, check, attempt, None, None)
    name = tls.name_for(check, target)
    try:
        return await _exchange(target, check, attempt, tls.context_for(check), name)
    except ssl.SSLError as error:
        raise Failed(await tls.explain(error, target, name)) from None


@dataclass
class _Answer:
    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    is_whole: bool = False


async def _exchange(
    target: Target, check: GrpcCheck, attempt: Attempt, context: ssl.SSLContext | None, name: str | None
) -> str:
    http = h2.connection.H2Connection(_CONFIG)
    answer = _Answer()
    async with connection(target, attempt, context, name) as (reader, writer):
        http.initiate_connection()
        stream = http.get_next_available_stream_id()
        http.send_headers(stream, _headers(target, check))
        http.send_data(stream, request(check.service), end_stream=True)
        writer.write(http.data_to_send())
        try:
            # The first frame is SETTINGS (RFC 9113, 3.4). h2 would wait for the end of anything else.
            data = await reader.readexactly(9)
            if data[3] != _SETTINGS:
                raise Failed(f"the answer is not HTTP/2: {excerpt(data)}")
            while not answer.is_whole:
                data = data or await reader.read(MAX_ANSWER)
                if not data:
                    raise Failed("connection closed without an answer")
                for event in http.receive_data(data):
                    _take(event, answer, http)
                writer.write(http.data_to_send())
                data = b""
        except asyncio.IncompleteReadError:
            raise Failed("connection closed without an answer") from None
        except h2.exceptions.ProtocolError:
            raise Failed("the answer is not HTTP/2") from None
    return _read(answer, check)


def _headers(target: Target, check: GrpcCheck) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "https" if check.tls else "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", check.host or f"{target.authority}:{target.port}"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "lb-health"),
    ]


def _take(event: h2.events.Event, answer: _Answer, http: h2.connection.H2Connection) -> None:
    if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
        answer.headers |= {str(name): str(value) for name, value in event.headers or ()}
    elif isinstance(event, h2.events.DataReceived):
        answer.data = (answer.data + event.data)[:MAX_ANSWER]
        http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
    elif isinstance(event, h2.events.StreamEnded):
        answer.is_whole = True
    elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
        raise Failed(f"the server ended the stream: {_reason(event.error_code)}")


def _reason(code: int | None) -> str:
    known = {each.value: each.name for each in h2.errors.ErrorCodes}
    return known.get(code or 0, f"error {code}")


def _read(answer: _Answer, check: GrpcCheck) -> str:
    status = answer.headers.get(":status", "")
    if status != "200":
        raise Failed(f"status {status} of HTTP/2, expected 200")
    code = answer.headers.get("grpc-status", "")
    if code != "0":
        known = _CODES.get(int(code), code) if code.isdigit() else "no grpc-status"
        said = unquote(answer.headers.get("grpc-message", ""))
        if known == "NOT_FOUND" and check.service:
            raise Failed(f"the server knows no service {check.service!r} (NOT_FOUND)")
        if known == "UNIMPLEMENTED":
            raise Failed("the server has no health service (UNIMPLEMENTED)")
        raise Failed(f"gRPC {known}" + (f": {said}" if said else ""))
    found = serving_status(answer.data)
    if found != _SERVING:
        raise Failed(f"the server says {_STATUS.get(found, found)}")
    return "SERVING"


def request(service: str) -> bytes:
    """A HealthCheckRequest { string service = 1 }, framed: no compression, length, message."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return struct.pack(">BI", 0, len(message)) + message


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def serving_status(data: bytes) -> int:
    """The enum of a framed HealthCheckResponse { ServingStatus status = 1 }. Raises Failed.

    A field that isn't there has its default, 0; those that we don't know come after it or are none.
    """
    if len(data) < 5:
        raise Failed("the answer has no message")
    compressed, length = struct.unpack_from(">BI", data)
    message = data[5 : 5 + length]
    if compressed or len(message) < length:
        raise Failed("the answer's message can't be read")
    return message[1] if message[:1] == b"\x08" and len(message) > 1 else 0
