"""Health on the command line: setting checks, showing both states, trying a check by hand."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

import pytest
from doubles import Lbctl, Nodes

from lb.cli import check
from lb.model.reports import (
    BackendHealth,
    EjectionReport,
    HealthChange,
)
from lb.probe.base import Target


def health(state: str = "healthy", **fields: Any) -> BackendHealth:
    since = fields.pop("since", time.time() - 200)
    return BackendHealth(state=state, since=since, share=fields.pop("share", 1.0), **fields)


# --- setting --------------------------------------------------------------------------------------


def test_a_check_is_set_changed_and_taken_away(web: Lbctl) -> None:
    said = web.ok("service", "set", "web", "--check", "http:/healthz", "--rise", "4").out
    assert "health none -> http:/healthz" in said
    said = web.ok("service", "set", "web", "--interval", "500ms", "--panic", "30").out
    assert "health interval 2 -> 0.5" in said
    assert "health panic 0 -> 30" in said
    assert "rise" not in said
    shown = web.ok("service", "show", "web").out
    assert "checked with http:/healthz every 0.5 s (rise 4, fall 3)" in shown
    assert web.json("service", "show", "web")["service"]["check"] == "http:/healthz"
    said = web.ok("service", "set", "web", "--check", "tcp:81").out
    assert "health check http:/healthz -> tcp:81" in said
    assert "unchanged" in web.ok("service", "set", "web", "--rise", "4").out
    web.ok("service", "set", "web", "--check", "none")
    assert web.json("service", "show", "web")["service"]["check"] is None


def test_passive_detection_is_set_with_and_without_a_check(web: Lbctl) -> None:
    def shown() -> tuple[Any, Any]:
        [service] = web.json("export")["services"]
        health = service.get("health")
        return health and health.get("check", {}).get("kind", "tcp"), health and health.get("passive")

    refused = web("service", "set", "web", "--passive")
    assert refused.code == 2
    assert "in mode dsr answers don't come by the node" in refused.err
    web.ok("service", "set", "web", "--mode", "nat", "--passive")
    assert shown()[0] == "none"
    assert "not checked, but who fails" in web.ok("service", "show", "web").out
    web.ok("service", "set", "web", "--check", "http:/")
    assert shown()[0] == "http"
    assert "and who fails for clients is ejected" in web.ok("service", "show", "web").out
    web.ok("service", "set", "web", "--check", "none")
    kind, passive = shown()
    assert (kind, passive["failures"]) == ("none", 5)
    web.ok("service", "set", "web", "--no-passive")
    assert shown() == (None, None)


def test_which_way_checks_go(web: Lbctl) -> None:
    web.ok("service", "set", "web", "--check", "http:/", "--check-via", "vip")
    assert "checked with http:/ via the VIP every" in web.ok("service", "show", "web").out
    refused = web("service", "set", "web", "--check", "tcp:81")
    assert refused.code == 2
    assert "only the VIP's port 80 can be asked, not 81" in refused.err
    # By hand: only where an lbd does so, too.
    done = web("check", "web", "-o", "json")
    assert done.code == 1
    said = done.json
    assert {(row["passed"], row["via"]) for row in said} == {(None, "vip")}
    assert "only a node can" in said[0]["words"]


def test_an_ejection_is_shown_beside_what_checks_found(web: Lbctl, nodes: Nodes) -> None:
    now = time.time()
    ejection = EjectionReport(since=now - 5, until=now + 25, times=2, words="5 in a row failed")
    nodes.put("n1", 99, health={"web/b1": health(ejection=ejection), "web/b2": health()})
    nodes.put("n2", 99, health={"web/b1": health(), "web/b2": health()})
    listed = web.ok("backend", "list", "web").out
    assert "healthy 3m, ejected on 1 of 2, 25s left" in listed
    assert "5 in a row failed" in listed
    assert ejection.words in web.ok("backend", "show", "web", "b1").out
    row = next(each for each in web.json("backend", "list", "web") if each["name"] == "b1")
    assert row["health"] == "healthy"
    assert row["health_on"]["n1"]["ejection"]["times"] == 2


def test_a_service_begins_with_a_check(lbctl: Lbctl) -> None:
    options = ["--check", "dns:www.example.com", "--slow-start", "1m", "--check-timeout", "300ms"]
    lbctl.ok("service", "add", "dns", "--vip", "10.0.0.1:53", "--protocol", "udp", *options)
    [exported] = lbctl.json("export")["services"]
    assert exported["health"]["check"]["name"] == "www.example.com"
    assert (exported["health"]["slow_start"], exported["health"]["timeout"]) == (60, 0.3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--check", "icmp"], "--check: 'icmp' is not one of tcp"),
        (["--check", "http:x"], "--check: check.path: 'x' does not begin with /"),
        (["--interval", "soon", "--check", "tcp"], "health.interval: 'soon' is not a duration"),
        (["--rise", "0", "--check", "tcp"], "health.rise: must be at least 1, not 0"),
        (["--rise", "3"], "rise of which check?"),
        (["--check", "none", "--rise", "3"], "leaves nothing to set"),
    ],
)
def test_what_is_refused(web: Lbctl, options: list[str], words: str) -> None:
    refused = web("service", "set", "web", *options)
    assert (refused.code, words in refused.err) == (2, True), refused.err
    assert "hint: " in refused.err
    assert web.json("service", "show", "web")["service"]["check"] is None


def test_a_drain_has_a_deadline_until_somebody_wants_something_else(web: Lbctl) -> None:
    drained = web.ok("backend", "drain", "web", "b1", "--deadline", "10m").out
    assert re.search(r"drain until none -> 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \(in 10 min\)", drained)
    until = web.json("backend", "show", "web", "b1")["drain_until"]
    assert until == pytest.approx(time.time() + 600, abs=30)
    shown = web.ok("backend", "show", "web", "b1").out
    assert "flows left: not visible here" in shown
    assert "; down in " in shown
    for other in ("up", "drain", "down"):
        web.ok("backend", "drain", "web", "b1", "--deadline", "10m")
        web.ok("backend", other, "web", "b1")
        assert web.json("backend", "show", "web", "b1")["drain_until"] is None
    refused = web("backend", "drain", "web", "b1", "--deadline", "later")
    assert (refused.code, "--deadline: 'later' is not a duration" in refused.err) == (2, True)


# --- showing --------------------------------------------------------------------------------------


def test_both_states_are_shown_apart(web: Lbctl, nodes: Nodes) -> None:
    web.ok("backend", "drain", "web", "b1")
    words = "status 500 (Oops), expected 200-399"
    found = {
        "web/b1": health(latency=0.0042),
        "web/b2": health("unhealthy", error=words, since=time.time() - 7500),
        "web/b3": health(share=0.25, latency=0.001),
    }
    nodes.put("n1", 99, health=found)
    b1, b2, b3 = web.json("backend", "list")
    assert (b1["admin"], b1["health"]) == ("drain", "healthy")
    assert (b2["admin"], b2["health"]) == ("up", "unhealthy")
    assert b3["health_on"]["n1"]["share"] == 0.25
    head, first, second, third = web.ok("backend", "list").out.splitlines()
    assert "HEALTH" in head
    assert "drain  healthy 3m" in first
    assert "4.2 ms" in first
    assert "up     unhealthy 2h" in second
    assert words in second
    assert "healthy 3m, starting (25%)" in third


def test_without_checks_there_are_no_such_columns(web: Lbctl) -> None:
    assert "HEALTH" not in web.ok("backend", "list").out
    assert web.json("backend", "list")[0]["health"] is None


def test_nodes_may_differ(web: Lbctl, nodes: Nodes) -> None:
    nodes.put("n1", 99, health={"web/b1": health()})
    nodes.put("n2", 99, health={"web/b1": health("unhealthy", error="connection refused")})
    b1 = web.json("backend", "list")[0]
    assert b1["health"] == "mixed"
    assert b1["health_on"]["n2"]["state"] == "unhealthy"
    line = web.ok("backend", "list").out.splitlines()[1]
    assert "healthy on 1 of 2" in line
    assert "connection refused" in line


def test_the_history_of_a_backend(web: Lbctl, nodes: Nodes) -> None:
    changes = (
        HealthChange(at=1000.0, state="healthy", words="status 200 (OK)"),
        HealthChange(at=2000.0, state="unhealthy", words="no answer in 1 s"),
    )
    nodes.put(
        "n1", 99, health={"web/b1": health("unhealthy", error="no answer in 1 s", history=changes)}
    )
    lines = web.ok("backend", "show", "web", "b1").out.splitlines()
    assert any(line.startswith("n1: unhealthy for 3m") for line in lines)
    assert any(line.endswith("; last one failed: no answer in 1 s") for line in lines)
    assert lines[-2].split()[2:] == ["n1", "healthy", "status", "200", "(OK)"]
    assert lines[-1].split()[2:] == ["n1", "unhealthy", "no", "answer", "in", "1", "s"]


# --- trying ---------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 500)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_url_is_checked(lbctl: Lbctl, port: int) -> None:
    passed = lbctl.ok("check", f"http://127.0.0.1:{port}/healthz")
    assert "passed" in passed.out
    assert "status 200 (OK)" in passed.out
    failed = lbctl("check", f"http://localhost:{port}/other", "-o", "json")
    assert failed.code == 1
    [row] = failed.json
    assert (row["passed"], row["backend"]) == (False, None)
    assert row["words"] == "status 500 (Internal Server Error), expected 200-399"
    assert 0 < row["latency"] < 1


def test_other_kinds_by_url(lbctl: Lbctl, port: int) -> None:
    assert "connected" in lbctl.ok("check", f"tcp://127.0.0.1:{port}").out
    grpc = lbctl("check", f"grpc://127.0.0.1:{port}/a.B")
    assert (grpc.code, "not HTTP/2" in grpc.out) == (1, True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"dns://127.0.0.1:{silent.getsockname()[1]}/www.example.com"
        dns = lbctl("check", url, "--check-timeout", "100ms")
    assert (dns.code, "no answer in 0.1 s" in dns.out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ftp://127.0.0.1"], 2, "is not a URL that can be checked"),
        (["tcp://127.0.0.1"], 2, "has no port"),
        (["tcp://127.0.0.1:x"], 2, "Port could not be cast"),
        (["http://127.0.0.1", "--check", "tcp"], 2, "says the check already"),
        (["http://127.0.0.1", "--check-timeout", "0"], 2, "timeout: must be at least 0.01, not 0"),
        (["other"], 3, "no service 'other'"),
        (["web/b9"], 3, "has no backend 'b9'"),
        (["web"], 2, "service 'web' has no check"),
        (["web", "--check", "x"], 2, "is not one of tcp"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked(web: Lbctl, arguments: list[str], code: int, words: str) -> None:
    refused = web("check", *arguments)
    assert (refused.code, words in refused.err) == (code, True), refused.err


def test_a_backend_is_checked_as_its_service_says(
    web: Lbctl, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backends are never on the loopback, so one thing is not as it is: where the target is."""
    made = check.Target

    def nearby(service: str, backend: str, _: Any, *more: Any) -> Target:
        return made(service, backend, ip_address("127.0.0.1"), *more)

    monkeypatch.setattr(check, "Target", nearby)
    web.ok("service", "set", "web", "--check", f"http:{port}/healthz")
    rows = web.json("check", "web")
    assert [(row["backend"], row["passed"]) for row in rows] == [
        ("b1", True),
        ("b2", True),
        ("b3", True),
    ]
    assert [row["backend"] for row in web.json("check", "web/b2")] == ["b2"]
    tried = web("check", "web/b2", "--check", f"http:{port}/other")
    assert (tried.code, "FAILED" in tried.out) == (1, True)
    assert web.json("service", "show", "web")["service"]["check"] == f"http:{port}/healthz"
