"""Metrics from outside: a real Prometheus, real programs, a real HTTP server; and all that can go wrong
with them, which is a Measurement each time, and never an exception."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lb.analysis.measure import Context, measure
from lb.model.analysis import Metric

CONTEXT = Context("web", "stable", "canary", ("s1", "s2"), ("c1",), 2, 25.0, 30.4)


class Server(ThreadingHTTPServer):
    """Answers each POST with what `answer` makes of it: (status, body)."""

    def __init__(self, answer: Callable[[str, bytes], tuple[int, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.headers.append(dict(self.headers))
        status, answer = self.server.answer(self.path, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:  # what Prometheus scrapes
        answer = self.server.answer(self.path, b"")[1]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[str, bytes], tuple[int, bytes]] | tuple[int, bytes]) -> Server:
        given = answer if callable(answer) else lambda *_: answer
        servers.append(Server(given))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def webhook(url: str, **settings: Any) -> Metric:
    return Metric(name="m", webhook={"url": url, **settings})


# --- webhooks -------------------------------------------------------------------------------------


def test_a_webhook_gets_the_context_and_answers_figures(serve) -> None:
    came: list[dict[str, Any]] = []

    def answer(path: str, body: bytes) -> tuple[int, bytes]:
        came.append({"path": path, **json.loads(body)})
        return 200, b'{"canary": 1.5, "stable": 1, "more": []}'

    server = serve(answer)
    found = measure(webhook(f"{server.url}/a?b=c", headers={"X-Key": "k"}), CONTEXT)
    assert (found.canary, found.stable, found.error) == (1.5, 1.0, "")
    assert came == [
        {
            "path": "/a?b=c", "metric": "m", "service": "web", "stable": "stable", "canary": "canary",
            "stable_backends": ["s1", "s2"], "canary_backends": ["c1"], "step": 2, "share": 25.0,
            "seconds": 30.4,
        }
    ]  # fmt: skip
    assert server.headers[0]["X-Key"] == "k"
    assert server.headers[0]["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, b""), "the answer is neither a number nor JSON: it is empty"),
        ((200, b"fine"), 'the answer is neither a number nor JSON: it is "fine"'),
        ((200, b"NaN"), "the answer is nan, which is no figure"),
        ((200, b"1e400"), "the answer is inf, which is no figure"),
        ((200, b"1" + b"0" * 400), "the answer is inf, which is no figure"),
        ((200, b'{"stable": 1}'), 'the answer has no "canary"'),
        ((200, b'{"canary": null}'), "is not a number"),
        ((200, b'{"canary": true}'), "is not a number"),
        ((200, b'{"canary": 1, "stable": "2"}'), "is not a number"),
        ((200, b"[1]"), "is not a number"),
        ((200, b"[" * 60_000), "the answer is neither a number nor JSON"),
        ((200, b" " * 70_000 + b"1"), "the answer is longer than 65536 bytes"),
        ((302, b""), "status 302"),
        ((503, b"busy"), 'status 503: "busy"'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_answers_are_errors(serve, answer: tuple[int, bytes], error: str) -> None:
    found = measure(webhook(serve(answer).url), CONTEXT)
    assert found.canary is None
    assert error in found.error
    assert "\n" not in found.error


def test_who_is_not_there_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert "refused" in measure(webhook(f"http://127.0.0.1:{port}"), CONTEXT).error
    assert measure(webhook("http://127.0.0.1:99999"), CONTEXT).error
    assert measure(webhook("http://no-such-name.invalid"), CONTEXT).error
    assert measure(webhook("https://[::1"), CONTEXT).error


@pytest.mark.parametrize("drip", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_who_is_slow_is_ended_in_time_whatever_he_sends(drip: bytes) -> None:
    done = threading.Event()

    def talk(server: socket.socket) -> None:
        peer, _ = server.accept()
        with peer:
            peer.sendall(drip)
            while not done.wait(0.05):  # a byte now and then: each read succeeds
                try:
                    peer.sendall(b"1" if drip else b"H")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=talk, args=(server,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        found = measure(webhook(url, timeout=0.5), CONTEXT)
        done.set()
        thread.join(10)
    assert found.canary is None
    assert "within 0.5 s" in found.error


def test_what_is_not_http_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(100_000)
                peer.sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=talk, daemon=True).start()
        found = measure(webhook(f"http://127.0.0.1:{server.getsockname()[1]}"), CONTEXT)
    assert found.error


# --- programs -------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Metric]:
    def write(text: str, *arguments: str, **settings: Any) -> Metric:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return Metric(name="m", command={"argv": [str(path), *arguments], **settings})

    return write


def here(tmp_path: Path) -> Context:
    return Context(**{**CONTEXT.__dict__, "exec_dir": tmp_path})


def test_a_program_prints_a_number_or_json(script, tmp_path: Path) -> None:
    context = here(tmp_path)
    found = measure(script("echo 0.5; echo noise >&2"), context)
    assert (found.canary, found.stable) == (0.5, None)
    found = measure(script("""echo '{"canary": 2, "stable": 1}'"""), context)
    assert (found.canary, found.stable) == (2.0, 1.0)
    # No shell reads the arguments; the context is in the environment and on standard input.
    asks = 'test "$1" = "a b;\\$(c)" && test "$LB_SHARE" = 25 && grep -q \'"service": "web"\''
    program = script(f"{asks} && echo 3", "a b;$(c)")
    assert measure(program, context).canary == 3.0


def test_what_goes_wrong_with_programs(script, tmp_path: Path) -> None:
    context = here(tmp_path)
    for text, error in (
        ("echo 3; echo why >&2; exit 4", 'status 4: "why"'),
        ("kill -9 $$", "was ended by signal SIGKILL"),
        ("true", "it is empty"),
        ("yes | head -c 100000", "longer than"),
    ):
        found = measure(
            script(text, timeout=5) if text != "yes" else script("yes | head -c 100000"), context
        )
        assert found.canary is None
        assert error in found.error, text
    assert "is not in" in measure(Metric(name="m", command={"argv": ["/bin/true"]}), context).error
    gone = Metric(name="m", command={"argv": [str(tmp_path / "gone")]})
    assert "can't be run" in measure(gone, context).error


def test_a_program_without_an_end_is_ended_with_all_it_started(script, tmp_path: Path) -> None:
    program = script(f"sleep 600 & echo $! > {tmp_path}/child; wait", timeout=1)
    assert "no end within 1 s" in measure(program, here(tmp_path)).error
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # Whom nobody waits for stays as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


# --- Prometheus -----------------------------------------------------------------------------------


def asked(url: str, query: str = "up", **settings: Any) -> Metric:
    return Metric(name="m", prometheus={"url": url, "query": query, **settings})


def vector(*values: object) -> bytes:
    result = [{"metric": {}, "value": [1.5, value]} for value in values]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, vector()), "gives nothing"),
        ((200, vector("NaN")), "is nan, which is no figure"),
        ((200, vector("+Inf")), "is inf"),
        ((200, vector("1", "2")), "gives 2 series; aggregate"),
        ((200, vector(None)), "not as Prometheus's"),
        ((200, b'{"status": "success", "data": {"resultType": "matrix", "result": []}}'), "a matrix"),
        ((200, b'{"status": "success"}'), "not as Prometheus's"),
        ((422, b'{"status": "error", "errorType": "execution", "error": "why"}'), "execution: why"),
        ((200, b"<html>"), "not Prometheus's JSON"),
        ((502, b"<html>"), "status 502"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_answers_of_its_api_that_are_no_number(serve, answer, error: str) -> None:
    found = measure(asked(serve(answer).url), CONTEXT)
    assert found.canary is None
    assert error in found.error


def test_the_stable_pool_is_asked_for_while_it_is_compared_and_there(serve) -> None:
    queries: list[str] = []

    def answer(path: str, body: bytes) -> tuple[int, bytes]:
        assert path == "/api/v1/query"
        queries.append(body.decode())
        return 200, vector(str(len(queries)))

    server = serve(answer)
    found = measure(asked(server.url, 'x{{pool="{pool}",b=~"{backends}"}}[{seconds}s]'), CONTEXT)
    assert (found.canary, found.stable) == (1.0, 2.0)
    assert "pool%3D%22canary%22%2Cb%3D~%22c1%22%7D%7D%5B30s%5D" in queries[0]
    assert "pool%3D%22stable%22%2Cb%3D~%22s1%7Cs2%22" in queries[1]
    alone = Context(**{**CONTEXT.__dict__, "share": 100.0})
    assert measure(asked(server.url), alone).stable is None
    limited = Metric(name="m", limit=1, prometheus={"url": server.url, "query": "up"})
    assert measure(limited, CONTEXT).stable is None
    measure(asked(server.url, "a", stable_query="b"), CONTEXT)
    assert [each.partition("&")[0] for each in queries[-2:]] == ["query=a", "query=b"]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus isn't here")
def test_a_real_prometheus(serve, tmp_path: Path) -> None:
    exporter = serve((200, b'depth{pool="canary"} 7\ndepth{pool="stable"} 4\nnothing 0\n'))
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 100ms, scrape_timeout: 100ms}\n"
        "scrape_configs:\n- job_name: a\n  static_configs: [{targets: ['"
        + exporter.url.removeprefix("http://")
        + "']}]\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    argv = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=tmp_path)
    try:
        metric = asked(url, 'sum(depth{pool="{pool}"})')
        deadline = time.monotonic() + 60
        while (found := measure(metric, CONTEXT)).error:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, found.error
            time.sleep(0.1)
        assert (found.canary, found.stable) == (7.0, 4.0)
        assert measure(asked(url, "scalar(nothing)"), CONTEXT).canary == 0.0
        assert "no figure" in measure(asked(url, "sum(nothing) / sum(nothing)"), CONTEXT).error
        assert "gives nothing" in measure(asked(url, "sum(no_such)"), CONTEXT).error
        assert "gives 2 series" in measure(asked(url, "depth"), CONTEXT).error
        assert "gives a matrix" in measure(asked(url, "depth[1m]"), CONTEXT).error
        assert "bad_data" in measure(asked(url, "sum(("), CONTEXT).error
    finally:
        process.terminate()
        process.wait(30)
