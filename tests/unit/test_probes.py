"""Each kind of check against real sockets: what passes, and in which words the rest fails."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import grpc
import pytest
import trustme
from probing import against, probe, saying, target

from lb.probe import ask as asking
from lb.probe import tls
from lb.probe.base import Inconclusive
from lb.probe.grpc import request, serving_status

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nup\n"

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


@pytest.fixture(autouse=True)
def never_too_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs these tests may be; that is another test's matter."""
    monkeypatch.setattr(asking, "STALL_SECONDS", 60.0)


# --- tcp ------------------------------------------------------------------------------------------


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def banner(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail ready\r\n")
    await writer.drain()


def test_tcp_connects() -> None:
    result = against(silent, {"kind": "tcp"})
    assert (result.passed, result.words) == (True, "connected")
    assert 0 < result.latency < 1
    assert against(silent, {"kind": "tcp"}, host="::1").passed


def test_tcp_refused() -> None:
    result = probe({"kind": "tcp", "port": free_port()})
    assert (result.passed, result.words) == (False, "connection refused")


def test_tcp_leaves_no_connection_behind() -> None:
    """Not even in TIME_WAIT: 2,000 checks a second would leave 120,000 of them."""
    seen: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[1])
        await reader.read()

    assert against(talk, {"kind": "tcp"}).passed
    states = Path("/proc/net/tcp").read_text()
    assert f":{seen[0]:04X} " not in states


def test_tcp_nobody_accepts() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # fills the queue
            result = probe({"kind": "tcp", "port": port}, timeout=1)
    assert (result.passed, result.words) == (False, "no connection in 1 s")
    assert 1 <= result.latency < 30


@pytest.mark.parametrize(
    ("check", "passed", "words"),
    [
        ({"expect": "220"}, True, "answered as expected"),
        ({"expect": "421"}, False, "answered \"220 mail ready\", expected '421' in it"),
    ],
)
def test_tcp_talks(check: dict[str, Any], passed: bool, words: str) -> None:
    assert against(banner, {"kind": "tcp", **check})[:2] == (passed, words)


def test_tcp_sends_first() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"you said " + await reader.readline())
        await writer.drain()

    assert against(echo, {"kind": "tcp", "send": "PING\n", "expect": "said PING"}).passed


def test_tcp_silence_and_half_an_answer() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"22")
        await reader.read()

    quiet = against(silent, {"kind": "tcp", "expect": "220"}, timeout=1)
    assert quiet.words == "connected, but no answer in 1 s"
    short = against(half, {"kind": "tcp", "expect": "220"}, timeout=1)
    assert short.words == "answered \"22\", but nothing with '220' in 1 s"


# --- http -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "check", "passed", "words"),
    [
        (OK, {}, True, "status 200 (OK)"),
        (b"HTTP/1.1 204\r\n\r\n", {}, True, "status 204"),
        (b"HTTP/1.0 302 Found\r\n\r\n", {}, True, "status 302 (Found)"),
        (b"HTTP/1.1 302 Found\r\n\r\n", {"status": [200]}, False, "status 302 (Found), expected 200"),
        (b"HTTP/1.1 500 Oops\r\n\r\n", {}, False, "status 500 (Oops), expected 200-399"),
        (b"HTTP/1.1 404 No\r\n\r\n", {"status": [200, "404-405"]}, True, "status 404 (No)"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", {}, True, "status 200 (OK)"),
        (OK, {"body": "up"}, True, "status 200 (OK)"),
        (OK, {"body": "down"}, False, "status 200, but the body has no 'down': it is \"up\""),
        (b"HTTP/1.1 200 OK\r\n\r\nno length", {"body": "length"}, True, "status 200 (OK)"),
        (
            # The framing must not hide what is in the body, nor be taken for it.
            CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
            {"body": "hello"},
            True,
            "status 200 (OK)",
        ),
        (CHUNKED + b"zz\r\n", {"body": "x"}, False, "the answer is not good HTTP: illegal chunk"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nup", {"body": "up"}, False, "in the middle"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", {}, False, 'the answer is not HTTP: "SSH-2.0-OpenSSH_9.2"'),
        (b"", {}, False, "connection closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n", {}, False, "connection closed in the middle of the answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, {}, False, "buffer too long"),
        (b"x" * 200_000, {}, False, "the answer is not HTTP: \"xxx"),
    ],
)  # fmt: skip
def test_http(answer: bytes, check: dict[str, Any], passed: bool, words: str) -> None:
    result = against(saying(answer), {"kind": "http", **check})
    assert result.passed is passed
    assert words in result.words


def test_http_asks_what_was_asked_for() -> None:
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await writer.drain()

    check = {"kind": "http", "method": "HEAD", "path": "/x?y=1", "headers": {"X-Who": "lb"}}
    assert against(talk, check).passed
    assert against(talk, {**check, "host": "www.example.com"}).passed
    assert against(talk, {"kind": "http"}, host="::1").passed
    assert heads[0].startswith(b"HEAD /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Who: lb\r\n" in heads[0]
    assert b"\r\nConnection: close\r\n" in heads[0]
    assert b"\r\nHost: www.example.com\r\n" in heads[1]
    assert b"\r\nHost: [::1]:" in heads[2]


def test_http_silence() -> None:
    quiet = against(silent, {"kind": "http"}, timeout=1)
    assert quiet.words == "connected, but no answer in 1 s"
    held = against(
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nup", hold=True),
        {"kind": "http", "body": "x"},
        timeout=1,
    )
    assert held.words == "status 200, but no end of the body in 1 s"


# --- https ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, str]:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return ca, str(path)


def server_side(ca: trustme.CA, *names: str, **more: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names, **more).configure_cert(context)
    return context


def days(count: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=count)


def test_https_verifies(authority: tuple[trustme.CA, str]) -> None:
    ca, path = authority
    by_address = server_side(ca, "127.0.0.1")
    by_name = server_side(ca, "www.example.com")
    check = {"kind": "https", "ca_file": path}
    assert against(saying(OK), check, ssl=by_address).words == "status 200 (OK)"
    assert against(saying(OK), {**check, "host": "www.example.com"}, ssl=by_name).passed
    assert against(saying(OK), {**check, "sni": "www.example.com"}, ssl=by_name).passed
    other = against(saying(OK), check, ssl=by_name)
    assert (other.passed, other.words) == (False, "certificate is not for '127.0.0.1'")
    named = against(saying(OK), {**check, "sni": "b.example.com"}, ssl=by_name)
    assert named.words == "certificate is not for 'b.example.com'"
    unknown = against(saying(OK), {"kind": "https"}, ssl=by_address)
    assert unknown.words.startswith("certificate not trusted: ")
    assert against(saying(OK), {"kind": "https", "verify": False}, ssl=by_name).passed


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (-10, -3.5, "certificate expired 3 days ago"),
        (-10, -1.5, "certificate expired 1 day ago"),
        (-10, -0.1, "certificate expired 2 hours ago"),
        (5, 10, "certificate is not valid yet: from 20"),
    ],
)
def test_https_out_of_date(
    authority: tuple[trustme.CA, str], before: float, after: float, words: str
) -> None:
    ca, path = authority
    context = server_side(ca, "127.0.0.1", not_before=days(before), not_after=days(after))
    result = against(saying(OK), {"kind": "https", "ca_file": path}, ssl=context)
    assert result.passed is False
    assert result.words.startswith(words)


def test_validity_of_both_forms_of_time() -> None:
    """RFC 5280, 4.1.2.5: years from 2050 on are written with four digits."""
    end = datetime(2060, 1, 2, 3, 4, 5, tzinfo=UTC)
    cert = trustme.CA().issue_cert("x", not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=end)
    der = ssl.PEM_cert_to_DER_cert(cert.cert_chain_pems[0].bytes().decode())
    assert tls.validity(der) == (datetime(2020, 1, 1, tzinfo=UTC), end)
    assert tls.validity(b"nothing of that kind") == (None, None)


def test_https_to_a_server_without_tls(authority: tuple[trustme.CA, str]) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    result = against(plain, {"kind": "https", "ca_file": authority[1]})
    assert result.passed is False
    assert result.words.startswith("the answer is not TLS")


def test_https_ca_file_of_no_use(tmp_path: Path) -> None:
    assert "No such file" in probe({"kind": "https", "port": 1, "ca_file": "/nowhere"}).words
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    assert f"ca_file {junk}" in probe({"kind": "https", "port": 1, "ca_file": str(junk)}).words


# --- udp, dns -------------------------------------------------------------------------------------


class Answering(asyncio.DatagramProtocol):
    """Answers each datagram with what `answer` makes of it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        for each in self.answer(data):
            self.transport.sendto(each, addr)


def datagrams(answer: Any, check: dict[str, Any], host: str = "127.0.0.1", **more: Any) -> Any:
    async def run() -> Any:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Answering(answer), local_addr=(host, 0)
        )
        port = transport.get_extra_info("sockname")[1]
        try:
            return await asking.ask(target({**check, "port": port}, host, **more))
        finally:
            transport.close()

    return asyncio.run(run())


def test_udp() -> None:
    check = {"kind": "udp", "send": "ping"}
    assert datagrams(lambda data: [data], check).words == "answered"
    assert datagrams(lambda data: [data], {**check, "expect": "ping"}, "::1").passed
    other = datagrams(lambda _: [b"what?"], {**check, "expect": "pong"})
    assert (other.passed, other.words) == (False, "answered \"what?\", expected 'pong' in it")
    assert datagrams(lambda _: [], check, timeout=1).words == "no answer in 1 s"
    refused = probe({**check, "port": free_port(socket.SOCK_DGRAM)})
    assert refused.words == "refused: nobody listens on this port (ICMP port unreachable)"


def name_server(data: bytes, *, rcode: int = 0, records: int = 1, change: int = 0) -> list[bytes]:
    query = dns.message.from_wire(data)
    answer = dns.message.make_response(query)
    answer.id ^= change
    answer.set_rcode(dns.rcode.Rcode(rcode))
    question = query.question[0]
    if records:
        answer.answer.append(
            dns.rrset.from_text_list(
                question.name, 60, "IN", "A", [f"192.0.2.{n + 1}" for n in range(records)]
            )
        )
    return [answer.to_wire()]


def test_dns() -> None:
    check = {"kind": "dns", "name": "www.example.com"}
    assert datagrams(name_server, check).words == "answered with 1 record"
    two = datagrams(lambda data: name_server(data, records=2), check)
    assert two.words == "answered with 2 records"
    gone = datagrams(lambda data: name_server(data, rcode=3, records=0), check)
    assert (gone.passed, gone.words) == (False, "answered NXDOMAIN for www.example.com A")
    failed = datagrams(lambda data: name_server(data, rcode=2, records=0), check)
    assert failed.words == "answered SERVFAIL for www.example.com A"
    empty = datagrams(lambda data: name_server(data, records=0), check)
    assert empty.words == "no record for www.example.com A"
    assert datagrams(lambda _: [b"junk"], check).words.startswith("the answer is not DNS")
    # Somebody else's answer is none; ours may still come.
    late = datagrams(lambda data: name_server(data, change=1) + name_server(data), check)
    assert late.passed
    strange = datagrams(lambda data: name_server(data, change=1), check, timeout=1)
    assert strange.words == "no answer to our question in 1 s"


# --- grpc: against the implementation of those who made it -----------------------------------------


class HealthService(grpc.GenericRpcHandler):  # type: ignore[misc]
    """grpc.health.v1 without protobuf; the answer is chosen by the service that is asked for."""

    def __init__(self) -> None:
        self.answers = {b"": 1, b"\x0a\x04good": 1, b"\x0a\x03bad": 2}

    def service(self, details: Any) -> Any:
        if details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self.check)

    def check(self, asked: bytes, context: Any) -> bytes:
        if asked not in self.answers:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return bytes((0x08, self.answers[asked]))


def grpc_server(*handlers: Any, credentials: Any = None) -> tuple[Any, int]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(handlers)
    if credentials:
        return server, server.add_secure_port("127.0.0.1:0", credentials)
    return server, server.add_insecure_port("127.0.0.1:0")


@pytest.fixture(scope="module")
def serving() -> Iterator[int]:
    server, port = grpc_server(HealthService())
    server.start()
    yield port
    server.stop(None)


@pytest.mark.parametrize(
    ("service", "passed", "words"),
    [
        ("", True, "SERVING"),
        ("good", True, "SERVING"),
        ("bad", False, "the server says NOT_SERVING"),
        ("other", False, "the server knows no service 'other' (NOT_FOUND)"),
    ],
)
def test_grpc(serving: int, service: str, passed: bool, words: str) -> None:
    result = probe({"kind": "grpc", "port": serving, "service": service})
    assert result[:2] == (passed, words)


def test_grpc_server_without_health_service() -> None:
    server, port = grpc_server()
    server.start()
    try:
        result = probe({"kind": "grpc", "port": port})
    finally:
        server.stop(None)
    assert result.words == "the server has no health service (UNIMPLEMENTED)"


def test_grpc_in_tls(authority: tuple[trustme.CA, str]) -> None:
    ca, path = authority
    cert = ca.issue_cert("127.0.0.1")
    pair = cert.private_key_pem.bytes(), b"".join(each.bytes() for each in cert.cert_chain_pems)
    server, port = grpc_server(HealthService(), credentials=grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        check = {"kind": "grpc", "port": port, "tls": True}
        assert probe({**check, "ca_file": path}).words == "SERVING"
        assert probe(check).words.startswith("certificate not trusted")
    finally:
        server.stop(None)


def test_grpc_to_somebody_else() -> None:
    result = against(saying(OK), {"kind": "grpc"})
    assert (result.passed, result.words) == (False, 'the answer is not HTTP/2: "HTTP/1.1"')
    assert against(saying(b""), {"kind": "grpc"}).words == "connection closed without an answer"


def test_grpc_messages() -> None:
    assert request("") == bytes(5)
    assert request("a" * 200)[5:8] == b"\x0a\xc8\x01"  # a length of two bytes, least significant first
    assert serving_status(bytes((0, 0, 0, 0, 2, 8, 1))) == 1
    assert serving_status(bytes(5)) == 0  # the default is left out


# --- exec -----------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> str:
    path = folder / "check"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "passed", "words"),
    [
        ("exit 0", True, "status 0"),
        ("echo fine", True, 'status 0: "fine"'),
        ("echo too full >&2; exit 3", False, 'status 3: "too full"'),
        ("kill -9 $$", False, "the program was ended by signal SIGKILL"),
        ('test "$LB_SERVICE/$LB_BACKEND@$LB_ADDRESS:$LB_PORT" = web/b1@127.0.0.1:7', True, "status 0"),
        ('test -z "$HOME$SECRET"', True, "status 0"),
        ('test "$1" = "a b"', True, "status 0"),  # no shell in between takes arguments apart
    ],
)  # fmt: skip
def test_exec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, passed: bool, words: str
) -> None:
    monkeypatch.setenv("SECRET", "of lbd")
    check = {"kind": "exec", "argv": [script(tmp_path, text), "a b"], "port": 7}
    assert probe(check, exec_dir=tmp_path)[:2] == (passed, words)


def test_exec_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    text = f"sleep 60 & echo $! >{pids}; echo $$ >>{pids}; wait"
    result = probe({"kind": "exec", "argv": [script(tmp_path, text)]}, exec_dir=tmp_path, timeout=3)
    assert (result.passed, result.words) == (False, "no end in 3 s")
    assert result.latency < 30
    for pid in pids.read_text().split():
        deadline = time.monotonic() + 5
        while is_running(int(pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_running(int(pid))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_exec_with_much_to_say_and_with_a_child_that_stays(tmp_path: Path) -> None:
    much = probe({"kind": "exec", "argv": [script(tmp_path, "seq 100000")]}, exec_dir=tmp_path)
    assert much.passed
    stays = "sleep 60 >/dev/null 2>&1 & exit 0"
    assert probe({"kind": "exec", "argv": [script(tmp_path, stays)]}, exec_dir=tmp_path).passed


def test_exec_runs_programs_of_its_folder_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "checks", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(shutil.which("true") or "/bin/true")
    for path in (script(outside, "exit 0"), str(inside / "link"), f"{inside}/../elsewhere/check"):
        result = probe({"kind": "exec", "argv": [path]}, exec_dir=inside)
        assert result.passed is False
        assert f"is not in {inside}" in result.words
    missing = probe({"kind": "exec", "argv": [f"{inside}/missing"]}, exec_dir=inside)
    assert missing.words.endswith("can't be run: No such file or directory")


# --- what is no backend's fault -------------------------------------------------------------------


def test_our_own_troubles_are_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_files(*_: Any) -> str:
        raise OSError(24, os.strerror(24))

    monkeypatch.setitem(asking.ASK, "tcp", no_files)
    with pytest.raises(Inconclusive, match="Too many open files"):
        probe({"kind": "tcp", "port": 1})


def test_a_node_that_slept_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleepy(*_: Any) -> str:
        time.sleep(0.4)  # the whole thread
        await asyncio.sleep(10)
        return "never"

    monkeypatch.setitem(asking.ASK, "tcp", sleepy)
    monkeypatch.setattr(asking, "STALL_SECONDS", 0.25)
    with pytest.raises(Inconclusive, match="too busy"):
        probe({"kind": "tcp", "port": 1}, timeout=0.1)
