"""Health checks with real servers that really fail, and what clients see of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme
from checked import FALL, HEALTH, INTERVAL, RISE, TIMEOUT, checked, serve
from helpers import create, found, held, outcomes, service
from slots import Slots

from lb.lab.faults import Server
from lb.lab.lab import Lab
from lb.lab.load import Client, finish
from lb.lab.shell import PATIENCE, wait_until
from lb.lab.topology import VIP4

# Below those that wrk takes: a server in TIME_WAIT of another connection would not send a reset.
FIRST_PORT = 200
# Seconds for all that is not waiting: a bound against what is broken; the figure is check-health's.
ALLOWED = 3.0 * PATIENCE


UDP_CLIENT = """
import socket, sys
address, port, source = sys.argv[1:]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.bind(("", int(source)))
    client.settimeout(5)
    client.sendto(b"hello", (address, int(port)))
    print(client.recv(1000).decode())
"""


def web(lab: Lab, **health: Any) -> Slots:
    """A service whose backends have all been found healthy."""
    return serve(lab, checked(lab, **health))


@pytest.fixture
def first(running: Lab) -> Iterator[Server]:
    """The server of the first backend; it works again afterwards."""
    server = Server(running, "backend1")
    yield server
    server.mend()


Fault = tuple[Callable[[Server], None], Callable[[Server], None], float, str]
FAULTS: dict[str, Fault] = {
    "stopped": (Server.stop, Server.start, 0, "connection refused"),
    "frozen": (Server.freeze, Server.thaw, TIMEOUT, "connected, but no answer in 0.3 s"),
    "status 500": (
        lambda server: server.answer(500),
        lambda server: server.answer(200),
        0,
        "status 500 (Internal Server Error), expected 200-399",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_gets_no_new_flow_until_it_works_again(first: Server, fault: str) -> None:
    break_it, mend_it, waiting, words = FAULTS[fault]
    lab, slots = first.lab, web(first.lab)
    before = slots()
    break_it(first)
    broken = time.monotonic()
    out = slots.until(lambda held: held[first.name] == 0) - broken
    assert out <= FALL * INTERVAL + waiting + ALLOWED
    assert sum(slots().values()) == 65536
    wait_until("the words", lambda: found(lab, "backend1")["error"] == words)
    tally = Client(lab).run(2000)
    assert (tally.failed, tally.names[first.name]) == (0, 0)
    mend_it(first)
    mended = time.monotonic()
    back = slots.until(lambda held: held[first.name] > 0) - mended
    assert back <= RISE * INTERVAL + ALLOWED
    assert slots() == before  # exactly its own
    shown = found(lab, "backend1")
    assert [each["state"] for each in shown["history"]] == ["healthy", "unhealthy", "healthy"]
    assert shown["error"] == ""


def test_no_flow_before_the_first_passed_check(first: Server) -> None:
    lab = first.lab
    first.stop()
    create(lab, checked(lab, grace=60))
    slots = Slots(lab)
    slots.until(lambda held: sum(held.values()) == 65536)
    assert slots.of(first.name) == 0
    wait_until("a check", lambda: found(lab, "backend1")["error"] == "connection refused")
    assert found(lab, "backend1")["state"] == "unknown"
    first.start()
    slots.until(lambda held: held[first.name] == 16384)


def test_an_expired_certificate(first: Server) -> None:
    lab = first.lab
    now = datetime.now(UTC)
    ca = trustme.CA()
    address, _ = lab.topology.back_addresses(first.name)
    (lab.folder / "ca.pem").write_bytes(ca.cert_pem.bytes())

    def serve(after: timedelta) -> None:
        cert = ca.issue_cert(str(address), not_before=now - timedelta(days=9), not_after=now + after)
        chain = b"".join(each.bytes() for each in cert.cert_chain_pems)
        first.serve_tls(chain, cert.private_key_pem.bytes())

    serve(timedelta(days=1))
    check = {"kind": "https", "port": 443, "ca_file": str(lab.folder / "ca.pem")}
    create(lab, service(lab, "web", VIP4, health={**HEALTH, "check": check}))
    slots = Slots(lab)
    slots.until(lambda held: held[first.name] == 65536)  # the others have no TLS
    serve(-timedelta(days=3, hours=1))
    slots.until(lambda held: held[first.name] == 0)
    assert found(lab, "backend1")["error"] == "certificate expired 3 days ago"
    shown = lab.lbctl("check", f"https://{address}/", check=False)  # which knows no such CA
    assert shown.returncode == 1
    (first.folder / "more.conf").unlink()


def test_half_of_the_pool_gone_and_back(running: Lab) -> None:
    slots = web(running)
    before = slots()
    servers = [Server(running, name) for name in ("backend1", "backend2")]
    try:
        for server in servers:
            server.stop()
        slots.until(lambda held: not any(held[server.name] for server in servers))
        assert [abs(count - 32768) <= 1 for count in sorted(slots().values())[2:]] == [True, True]
        assert Client(running).run(2000).failed == 0
    finally:
        for server in servers:
            server.start()
    slots.until(lambda held: held == before)


@pytest.mark.parametrize("panic", [0, 50])
def test_all_gone(running: Lab, panic: int) -> None:
    """Clients are told that nobody is there; or, if that was asked for, all are used, loudly."""
    slots = web(running, panic=panic)
    before = slots()
    servers = [Server(running, name) for name in running.topology.backends]
    try:
        for server in servers:
            server.answer(500)
        wait_until(
            "the verdict", lambda: all(found(running, s.name)["state"] == "unhealthy" for s in servers)
        )
        curl = ["curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", f"http://{VIP4}/"]
        if panic:
            assert slots() == before
            assert running.run("client", curl, check=False).stdout == "500"
            assert "panic: less than 50 %" in said(running)
        else:
            slots.until(lambda held: sum(held.values()) == 0)
            refused = running.run("client", curl, check=False)
            assert (refused.returncode, refused.stdout) == (7, "000")  # refused at once, not in 2 s
            assert "panic" not in said(running)
    finally:
        for server in servers:
            server.answer(200)
    slots.until(lambda held: held == before)
    wait_until("the all-clear", lambda: "panic" not in said(running))


def said(lab: Lab) -> str:
    """The node's problems. (On a busy machine that checks begin late may be among them.)"""
    [node] = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
    return str([each["message"] for each in node["problems"]])


def test_a_restart_keeps_what_was_known(first: Server) -> None:
    lab, slots = first.lab, web(first.lab)
    first.freeze()
    slots.until(lambda held: held[first.name] == 0)
    since = found(lab, "backend1")["since"]
    run = Client(lab).start(4000, 4)
    lab.kill_lbd()
    before = slots()
    logged = lab.lbd_log.stat().st_size
    lab.start_lbd()
    # While the checks begin anew nobody flashes up, and nobody is taken out.
    until = time.monotonic() + 2 * INTERVAL
    while time.monotonic() < until:
        assert slots() == before
    tally = finish(run)
    assert (tally.failed, tally.names[first.name]) == (0, 0)
    assert found(lab, "backend1")["since"] == since
    with lab.lbd_log.open() as log:
        log.seek(logged)
        assert "from=" not in log.read()
    first.thaw()
    slots.until(lambda held: held[first.name] > 0)


def test_recovery_never_undoes_a_drain_and_a_drain_has_an_end(first: Server) -> None:
    lab, slots = first.lab, web(first.lab)
    with held(lab, VIP4, 40, FIRST_PORT) as connections:
        names = connections.ask()
        at = [index for index, name in enumerate(names) if name == first.name]
        assert at
        lab.lbctl("backend", "drain", "web", first.name, "--wait")
        assert slots.of(first.name) == 0
        first.freeze()
        wait_until("unhealthy", lambda: found(lab, "backend1")["state"] == "unhealthy")
        first.thaw()
        wait_until("healthy", lambda: found(lab, "backend1")["state"] == "healthy")
        assert slots.of(first.name) == 0
        row = json.loads(lab.lbctl("backend", "show", "web", first.name, "-o", "json").stdout)
        assert (row["admin"], row["health"]) == ("drain", "healthy")
        # Those that are still there are counted once they have said something.
        assert [connections.ask()[index] for index in at] == [first.name] * len(at)
        row = json.loads(lab.lbctl("backend", "show", "web", first.name, "-o", "json").stdout)
        assert row["flows_left"] == len(at)
        lab.lbctl("backend", "drain", "web", first.name, "--deadline", "1s", "--wait")

        def admin() -> str:
            listed = json.loads(lab.lbctl("backend", "list", "web", "-o", "json").stdout)
            return next(str(each["admin"]) for each in listed if each["name"] == first.name)

        wait_until("the deadline", lambda: admin() == "down")
        wait_until("its end", lambda: all(connections.ask()[index].startswith("!") for index in at))
    lab.lbctl("backend", "up", "web", first.name, "--wait")
    slots.until(lambda held: abs(held[first.name] - 16384) <= 1)


def test_slow_start(first: Server) -> None:
    slots = web(first.lab, slow_start=4)
    # They begin together, so none is held back; but only after that one is a quarter of the others.
    assert slots() == dict.fromkeys(first.lab.topology.backends, 16384)
    wait_until("the others' end", lambda: time.time() - found(first.lab, "backend2")["since"] > 4)
    first.stop()
    slots.until(lambda held: held[first.name] == 0)
    first.start()
    seen = [0]
    deadline = time.monotonic() + 15
    while seen[-1] < 16384:
        assert time.monotonic() < deadline, seen
        if (now := slots.of(first.name)) != seen[-1]:
            seen.append(now)
    # A quarter of a whole weight among three whole ones, then a half, then three quarters; on a busy
    # machine one may be missed.
    assert seen == sorted(seen)
    assert {0, 16384} < set(seen) <= {0, 5041, 9362, 13107, 16384}


def test_established_connections_stay_or_are_reset(first: Server) -> None:
    lab = first.lab
    for policy in ("keep", "reset"):
        slots = web(lab, established=policy)
        with held(lab, VIP4, 40, FIRST_PORT) as connections:
            at = [n for n, name in enumerate(connections.ask()) if name == first.name]
            assert at
            first.freeze()
            # What is reported is in the kernel: first the slots go, then the flows.
            wait_until("unhealthy", lambda: found(lab, "backend1")["state"] == "unhealthy")
            if policy == "keep":
                first.thaw()  # it may have been a pause: nobody has noticed
                assert [connections.ask()[n] for n in at] == [first.name] * len(at)
            else:
                told = outcomes(lab)["reject_rst"]
                answers = connections.ask()
                # By the node itself: their server is frozen still, and no other saw a packet.
                assert outcomes(lab)["reject_rst"] - told == len(at)
                assert {answers[n] for n in at} == {"![Errno 104] Connection reset by peer"}
                first.thaw()
        slots.until(lambda held: held[first.name] > 0)


def test_udp_flows_leave_a_server_that_fails(running: Lab) -> None:
    """Also those that go on: a datagram doesn't say whether it begins something."""
    lab = running
    lab.start_udp_servers()
    check = {"kind": "udp", "send": "?", "expect": "backend"}
    udp = service(lab, "udp", VIP4, port=9000, protocol="udp", health={**HEALTH, "check": check})
    create(lab, udp)
    slots = Slots(lab, "udp")
    slots.until(lambda held: all(held.get(name) for name in lab.topology.backends))

    def ask() -> str:
        """Always from the same port, so it is one flow."""
        argv = [sys.executable, "-c", UDP_CLIENT, str(VIP4), "9000", "5000"]
        return lab.run("client", argv, check=False).stdout.strip()

    name = ask()
    assert name in lab.topology.backends
    listing = lab.run(name, ["ss", "-Hulnp", "sport", "=", ":9000"]).stdout
    pid = int(listing.partition("pid=")[2].partition(",")[0])
    lab.run(name, ["kill", "-STOP", str(pid)])
    try:
        slots.until(lambda held: held[name] == 0)
        other = ask()
        assert other in lab.topology.backends
        assert other != name
    finally:
        lab.run(name, ["kill", "-CONT", str(pid)])
    slots.until(lambda held: held[name] > 0)


def test_a_backup_pool_stands_in_and_steps_back(running: Lab) -> None:
    """New flows go there and back; established ones stay where they are, both times."""
    lab = running
    *main, spare = lab.topology.backends
    web = service(lab, "web", VIP4, health=HEALTH, backup="spare")
    web["backends"][-1]["pool"] = "spare"
    create(lab, web)
    slots = Slots(lab)
    slots.until(lambda held: all(held[name] for name in main))
    before = slots()
    assert before[spare] == 0
    servers = [Server(lab, name) for name in main]

    def warnings() -> list[str]:
        [node] = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
        return [each["message"] for each in node["problems"] if each["warning"]]

    try:
        with held(lab, VIP4, 20, FIRST_PORT) as old:
            names = old.ask()
            assert spare not in names
            for server in servers:
                server.freeze()
            slots.until(lambda held: held == {**dict.fromkeys(main, 0), spare: 65536})
            tally = Client(lab).run(2000)
            assert (tally.failed, dict(tally.names).keys()) == (0, {spare})
            wait_until("the warning", lambda: "backup pool 'spare'" in str(warnings()))
            with held(lab, VIP4, 20, FIRST_PORT + 20) as young:
                assert young.ask() == [spare] * 20
                for server in servers:
                    server.thaw()
                slots.until(lambda held: held == before)
                assert young.ask() == [spare] * 20
                assert old.ask() == names
        tally = Client(lab).run(2000)
        assert (tally.failed, tally.names[spare]) == (0, 0)
        wait_until("the all-clear", lambda: not warnings())
    finally:
        for server in servers:
            server.mend()
