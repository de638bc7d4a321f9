"""`make check-health`: servers that fail for real, how soon that is found, and what clients lose, with
lb and with HAProxy.

Both ask the same servers, at the same time, with the same interval, timeout, rise and fall; both get the
same new connections. The last line has the figures of this run; PASS if every failure was found, and
mended, in the time that lb promises, and nothing was lost after it was found. What HAProxy loses is
stated, not judged: as a proxy it may try another server where lb, which forwards packets, can't.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from lb.errors import LbError
from lb.lab import nginx
from lb.lab.faults import Server
from lb.lab.lab import Lab
from lb.lab.shell import wait_until
from lb.lab.topology import VIP4, front

sys.path.insert(0, str(Path(__file__).parent.parent / "lab"))
from checked import FALL, HEALTH, INTERVAL, RISE, TIMEOUT, checked, serve
from helpers import create, service
from slots import Slots

ALLOWED = 0.1  # seconds for all that isn't waiting
ROUNDS = 5  # of each failure, at different phases of the interval
RATE = 200  # new connections a second, to each of both
LEAD, REST = 0.5, 2.5  # seconds of traffic before a failure, and after it
SETTLE = 0.05  # what began so shortly before the slots changed may still go to the old server
SLOW = 2 * TIMEOUT  # a slow server answers after that: too late for a check, not for a client
PHASES = 20  # of the interval, at which a server flaps
BLIP = 0.15  # seconds: shorter than the time between two checks, so that one check fails at most
PROXY_PORT = 8080
ARRIVALS = Path(__file__).parent.parent / "lab" / "arrivals.py"

PROXY = f"""\
global
    maxconn 4000
defaults
    mode tcp
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    timeout check {int(TIMEOUT * 1000)}ms
    retries 3
    option redispatch
listen web
    bind {front(1)[0]}:{PROXY_PORT}
    balance roundrobin
    option httpchk GET /
    http-check expect status 200-399
"""


@dataclass(frozen=True)
class Fault:
    """What is done to how many servers, and how it is undone."""

    name: str
    break_it: Callable[[Server], None]
    mend_it: Callable[[Server], None]
    waiting: float = 0.0  # that a check takes to fail
    servers: int = 1


FAULTS = (
    Fault("stopped", Server.stop, Server.start),
    Fault("frozen", Server.freeze, Server.thaw, TIMEOUT),
    Fault("status 500", lambda server: server.answer(500), lambda server: server.answer(200)),
    Fault("closes", lambda server: server.answer(nginx.CLOSES), lambda server: server.answer(200)),
    Fault("resets", lambda server: server.answer(nginx.RESETS), lambda server: server.answer(200)),
    Fault("slow", lambda server: server.slow_down(SLOW), Server.hurry, TIMEOUT),
    Fault("half stopped", Server.stop, Server.start, servers=2),
)


@dataclass
class Found:
    """What was measured."""

    failures: int = 0
    lost: int = 0
    lost_proxy: int = 0
    detections: list[float] = field(default_factory=list)

    def fail(self, words: str) -> None:
        """Something is not as promised."""
        self.failures += 1
        print(f"  failed: {words}", flush=True)

    def line(self) -> str:
        """The last line."""
        ordered = sorted(self.detections)
        p99 = 1000 * ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)] if ordered else 0
        verdict = "PASS" if not self.failures and ordered else "FAIL"
        return (
            f"check-health: {verdict} failures={self.failures} lost_requests={self.lost}"
            f" lost_requests_haproxy={self.lost_proxy} detection_p99_ms={p99:.0f}"
        )


def start_proxy(lab: Lab) -> None:
    """HAProxy on the node, in front of the same servers."""
    servers = [
        f"    server {name} {lab.topology.back_addresses(name)[0]}:80 check"
        f" inter {INTERVAL * 1000:.0f}ms fastinter {INTERVAL * 500:.0f}ms fall {FALL} rise {RISE}\n"
        for name in lab.topology.backends
    ]
    config = lab.node_folder / "haproxy.cfg"
    config.write_text(PROXY + "".join(servers))
    lab.popen("node1", ["haproxy", "-db", "-f", str(config)])
    wait_until("HAProxy", lambda: lab.answer(front(1)[0], PROXY_PORT) in lab.topology.backends)


TARGETS = (f"{VIP4}:80", f"{front(1)[0]}:{PROXY_PORT}")  # lb's and HAProxy's
# When each connection began (Unix time), and what went wrong with it, if anything.
Arrivals = list[tuple[float, str]]


def connect(lab: Lab) -> subprocess.Popen[str]:
    """New connections to both, for LEAD + REST seconds."""
    argv = [sys.executable, str(ARRIVALS), str(RATE), str(LEAD + REST), *TARGETS]
    return lab.popen("client", argv, output=subprocess.PIPE)


def came_of(client: subprocess.Popen[str]) -> tuple[Arrivals, Arrivals]:
    """What came of them, by lb and by HAProxy."""
    answers: dict[str, Arrivals] = json.loads(client.communicate(timeout=30)[0])
    ours, proxys = (answers[target] for target in TARGETS)
    return ours, proxys


def one_round(
    lab: Lab, slots: Slots, fault: Fault, found: Found, dice: random.Random
) -> tuple[int, int]:
    """Break servers under traffic, and mend them; returns what was lost by lb and by HAProxy."""
    names = dice.sample(lab.topology.backends, fault.servers)
    servers = [Server(lab, name) for name in names]
    before = slots()
    client = connect(lab)
    time.sleep(LEAD + dice.random() * INTERVAL)  # any phase of the interval
    promised = FALL * INTERVAL + fault.waiting + ALLOWED
    # What is measured is from the first moment on; what was promised, from when the fault is surely
    # there: nginx takes a while to read its configuration anew.
    broken: dict[str, float] = {}
    surely: dict[str, float] = {}
    for server in servers:
        broken[server.name] = time.monotonic()
        fault.break_it(server)
        surely[server.name] = time.monotonic()
    gone = 0.0
    for server in servers:
        try:
            out = slots.until(lambda held, name=server.name: held[name] == 0)  # type: ignore[misc]
        except AssertionError:
            found.fail(f"{fault.name}: {server.name} was never found")
            continue
        gone = time.time()
        found.detections.append(out - broken[server.name])
        if (took := out - surely[server.name]) > promised:
            found.fail(f"{fault.name}: found after {took:.2f} s, not {promised:.2f}")
    ours, proxys = ([each for each in arrivals if each[1]] for arrivals in came_of(client))
    if late := [words for began, words in ours if began > gone + SETTLE]:
        found.fail(f"{fault.name}: {len(late)} lost after it was found: {sorted(set(late))}")
    for server in servers:
        fault.mend_it(server)
    mended = time.monotonic()
    try:
        back = slots.until(lambda held: held == before) - mended
    except AssertionError:
        found.fail(f"{fault.name}: the slots did not come back")
    else:
        if back > RISE * INTERVAL + ALLOWED:
            found.fail(f"{fault.name}: back after {back:.2f} s")
    time.sleep(RISE * INTERVAL)  # HAProxy has to see it, too
    return len(ours), len(proxys)


def all_gone(lab: Lab, slots: Slots, found: Found) -> None:
    """All servers stop: clients are refused at once, as `no_backend: reject` says, rather than left to
    wait. Then all come back. What is lost meanwhile nobody could have served, so it isn't added up."""
    servers = [Server(lab, name) for name in lab.topology.backends]
    before = slots()
    client = connect(lab)
    time.sleep(LEAD)
    broken = 0.0
    for server in servers:
        broken = time.monotonic()
        server.stop()
    surely = time.monotonic()
    try:
        out = slots.until(lambda held: not any(held.values()))
        gone, took = time.time(), out - broken
        found.detections.append(took)
        if out - surely > FALL * INTERVAL + ALLOWED:
            found.fail(f"all gone: found after {out - surely:.2f} s")
        late = [words for began, words in came_of(client)[0] if began > gone + SETTLE]
        refused = sum(words.startswith("Connect call failed") for words in late)
        if not late or refused < len(late):
            found.fail(f"all gone: {refused} of {len(late)} refused: {sorted(set(late))}")
    finally:
        for server in servers:
            server.start()
    mended = time.monotonic()
    back = slots.until(lambda held: held == before) - mended
    if back > RISE * INTERVAL + ALLOWED:
        found.fail(f"all gone: back after {back:.2f} s")
    if lab.answer(VIP4) not in lab.topology.backends:
        found.fail("all gone: nobody answers after they are back")
    time.sleep(RISE * INTERVAL)  # HAProxy has to see it, too
    print(
        f"{'all gone':14}found in {took:.2f} s; from then on {refused} of {len(late)} new connections"
        f" refused at once; back in {back:.2f} s",
        flush=True,
    )


def flaps(slots: Slots, server: Server, found: Found) -> None:
    """A server that refuses for a moment, at every phase of the interval, stays in; one that is away for
    longer, again and again, is found and back in time, each time."""
    before = slots()
    taken_out = 0
    for phase in range(PHASES):
        server.refuse()
        until = time.monotonic() + BLIP
        while time.monotonic() < until:
            taken_out += slots() != before
            time.sleep(0.005)  # leave lbd some of the CPU
        server.accept()
        # Until a check has passed, which ends the row of failures, and then on to the next phase.
        until = time.monotonic() + INTERVAL * (1 + phase / PHASES)
        while time.monotonic() < until:
            taken_out += slots() != before
            time.sleep(0.005)  # leave lbd some of the CPU
    if taken_out:
        found.fail("flapping: it was taken out for a moment's failure")
    slots.until(lambda held: held == before)
    took, back = [], []
    for phase in range(PHASES // 2):
        time.sleep(phase * INTERVAL / PHASES * 2)
        server.refuse()
        broken = time.monotonic()
        took.append(slots.until(lambda held: held[server.name] == 0) - broken)
        server.accept()
        mended = time.monotonic()
        back.append(slots.until(lambda held: held == before) - mended)
    found.detections += took
    if max(took) > FALL * INTERVAL + ALLOWED or max(back) > RISE * INTERVAL + ALLOWED:
        found.fail(f"flapping: found after up to {max(took):.2f} s, back after {max(back):.2f} s")
    verdict = "taken out" if taken_out else "never out"
    print(
        f"{'flapping':14}{PHASES} moments of {BLIP} s, at all phases: {verdict};"
        f" {len(took)} times for longer: found in {min(took):.2f} to {max(took):.2f} s,"
        f" back in {min(back):.2f} to {max(back):.2f} s",
        flush=True,
    )


def expired_certificate(lab: Lab, server: Server, found: Found) -> None:
    """Its certificate ends while it serves; the others have no TLS, so the service has nobody then."""
    ca, now = trustme.CA(), datetime.now(UTC)
    address = str(lab.topology.back_addresses(server.name)[0])
    bundle = lab.folder / "ca.pem"
    bundle.write_bytes(ca.cert_pem.bytes())

    def serve(end: timedelta) -> None:
        cert = ca.issue_cert(address, not_before=now - timedelta(days=9), not_after=now + end)
        chain = b"".join(each.bytes() for each in cert.cert_chain_pems)
        server.serve_tls(chain, cert.private_key_pem.bytes())

    serve(timedelta(days=1))
    check = {"kind": "https", "port": 443, "ca_file": str(bundle)}
    create(lab, service(lab, "tls", VIP4, port=443, health={**HEALTH, "check": check}))
    slots = Slots(lab, "tls")
    slots.until(lambda held: held[server.name] == 65536)
    began = time.monotonic()
    serve(-timedelta(days=1))
    served = time.monotonic() - began  # nginx goes over to it somewhere in this time
    out = slots.until(lambda held: held[server.name] == 0) - began
    found.detections.append(out)
    if out > served + FALL * INTERVAL + ALLOWED:
        found.fail(f"expired certificate: found after {out:.2f} s")
    serve(timedelta(days=1))
    slots.until(lambda held: held[server.name] == 65536)
    lab.lbctl("service", "rm", "tls", "--cascade", "--wait")
    print(
        f"{'certificate':14}expired: found in {out:.2f} s, of which nginx took {served:.2f}", flush=True
    )


def main() -> int:
    """Run everything; 0 if all is as promised."""
    found = Found()
    dice = random.Random()
    seed = dice.randrange(2**32)
    dice.seed(seed)
    print(
        f"check every {INTERVAL} s, timeout {TIMEOUT} s, fall {FALL}, rise {RISE};"
        f" {RATE} new connections a second to lb and to HAProxy each, 4 servers; seed {seed}"
    )
    try:
        with Lab(prefix="lbc-") as lab:
            lab.start_lbd()
            slots = serve(lab, checked(lab))
            start_proxy(lab)
            for fault in FAULTS:
                already = len(found.detections)
                rounds = [one_round(lab, slots, fault, found, dice) for _ in range(ROUNDS)]
                lost, lost_proxy = (sum(each) for each in zip(*rounds, strict=True))
                found.lost += lost
                found.lost_proxy += lost_proxy
                took = found.detections[already:] or [0.0]
                print(
                    f"{fault.name:14}{ROUNDS} times: found in {min(took):.2f} to {max(took):.2f} s; lost"
                    f" {lost / ROUNDS:.1f} requests a failure, HAProxy {lost_proxy / ROUNDS:.1f}",
                    flush=True,
                )
            all_gone(lab, slots, found)
            server = Server(lab, lab.topology.backends[0])
            flaps(slots, server, found)
            expired_certificate(lab, server, found)
    except LbError as error:
        found.fail(error.message)
    except AssertionError as error:  # of Slots.until: it never came to that
        found.fail(f"the slots stayed at {error}")
    print(found.line())
    return int(not found.line().startswith("check-health: PASS"))


if __name__ == "__main__":
    sys.exit(main())
