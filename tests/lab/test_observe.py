"""What nodes see of real connections to real servers, good ones and others."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import create, service

from lb.core import histogram
from lb.lab import nginx
from lb.lab.faults import Server
from lb.lab.lab import Lab
from lb.lab.node import program
from lb.lab.shell import wait_until
from lb.lab.topology import VIP4, VIP6, Address
from lb.model import keys
from lb.model.flows import FlowReport, FlowTotals
from lb.store.opening import open_store

# What some of the answers do, as nftables sees it: the first packet of each kind is lost.
EVERY_OTHER = "tcp flags & psh == psh numgen inc mod 2 0 drop"


def reports(lab: Lab) -> dict[str, FlowReport]:
    """Of service web, by observer."""
    store = open_store(lab.store)
    try:
        found = store.read(keys.observed("web", "")).items
    finally:
        store.close()
    each = [FlowReport.model_validate_json(item.value) for item in found]
    return {report.node: report for report in each}


class Watched:
    """A service in front of one server, and what an observer says of it."""

    def __init__(self, lab: Lab, vip: Address, mode: str, *, by_itself: bool = False) -> None:
        self.lab, self.vip = lab, vip
        self.backend = lab.topology.backends[0]
        self.server = Server(lab, self.backend)
        self.observer = self.backend if by_itself else lab.name
        web = service(lab, "web", vip, mode=mode, observe=True)
        create(lab, {**web, "backends": web["backends"][:1]})
        self.epoch = ""
        wait_until("a report", lambda: self.observer in reports(lab))
        self.before = self.totals()

    def totals(self) -> FlowTotals:
        report = reports(self.lab)[self.observer]
        self.epoch = report.epoch
        return report.backends.get(self.backend, FlowTotals())

    def ask(self, times: int, seconds: float = 2.0) -> None:
        """So many connections, one after the other."""
        host = f"[{self.vip}]" if self.vip.version == 6 else self.vip
        curl = f"curl -s -o /dev/null --noproxy '*' -m {seconds} http://{host}/"
        self.lab.run("client", ["sh", "-c", f"for i in $(seq {times}); do {curl}; done"], check=False)

    def await_(self, **counted: int) -> FlowTotals:
        """Until this was counted since the last time, and nothing else was; but for times, whose numbers
        are compared, and for what isn't an outcome."""
        new = FlowTotals()

        def is_so() -> bool:
            nonlocal new
            now = self.totals()
            new = since(self.before, now)
            numbers = {
                **new.model_dump(exclude_defaults=True, exclude={"http", "handshake", "first_byte"}),
                **{f"http_{each}": count for each, count in new.http.items() if count},
            }
            for free in {"syn_retransmissions", "retransmits_by_client"} - counted.keys():
                numbers.pop(free, None)
            if numbers != counted:
                return False
            self.before = now
            return True

        try:
            wait_until("the totals", is_so)
        except Exception as error:
            raise AssertionError(f"wanted {counted}, got {new}") from error
        assert sum(new.handshake.values()) == counted.get("established", 0)
        return new


def since(before: FlowTotals, after: FlowTotals) -> FlowTotals:
    def less(one: Any, other: Any) -> Any:
        if isinstance(one, dict):
            return {
                key: count - other.get(key, 0) for key, count in one.items() if count != other.get(key)
            }
        return one - other

    return FlowTotals(**{name: less(value, getattr(before, name)) for name, value in after})


@contextmanager
def loss(lab: Lab, namespace: str, rule: str) -> Iterator[None]:
    """What comes in to this namespace is lost where the rule says so."""
    table = "add table inet loss; add chain inet loss in { type filter hook input priority 0; };"
    lab.run(namespace, ["nft", f"{table} add rule inet loss in {rule}"])
    try:
        yield
    finally:
        lab.run(namespace, ["nft", "delete table inet loss"])


@pytest.mark.parametrize(("mode", "vip"), [("nat", VIP4), ("fullnat", VIP6)])
def test_both_directions_on_the_node(running: Lab, mode: str, vip: Address) -> None:
    lab = running
    web = Watched(lab, vip, mode)
    answered = {"opened": 10, "established": 10, "requests": 10}

    web.ask(10)
    good = web.await_(**answered, http_2xx=10)
    web.server.answer(500)
    web.ask(10)
    web.await_(**answered, http_5xx=10)
    web.server.answer(nginx.RESETS)
    web.ask(10)
    web.await_(**answered, resets_by_server=10)
    web.server.answer(nginx.CLOSES)
    web.ask(10)
    web.await_(**answered, unserved=10)
    web.server.answer(200)
    web.server.slow_down(0.4)
    web.ask(3)
    slow = web.await_(opened=3, established=3, requests=3, http_2xx=3)
    web.server.hurry()
    web.server.refuse()
    web.ask(10)
    web.await_(opened=10, refused=10)
    web.server.accept()

    assert sum(good.first_byte.values()) == 10
    assert all(histogram.bounds(bucket)[1] > 400_000 for bucket in slow.first_byte)
    median = histogram.quantile(good.first_byte, 0.5)
    assert median is not None
    assert median < 400_000


@contextmanager
def observing_itself(lab: Lab, backend: str) -> Iterator[None]:
    """The backend observes its own connections, in which packets come and go by two interfaces."""
    lab.open_tunnels()
    pins = ["--pin-dir", str(lab.folder / backend / "bpf" / "lb")]
    interfaces = ["--interface", "back0", "--interface", "front0"]
    command = [*program("lbctl"), "backend-node", "observe", "--service", "web", *interfaces, *pins]
    child = lab.popen(backend, command, env=lab.lb_environment)
    try:
        yield
    finally:
        child.terminate()
        assert child.wait(20) == 0
        wait_until("the report is taken back", lambda: backend not in reports(lab))


@pytest.mark.parametrize(("mode", "vip"), [("dsr", VIP4), ("gue", VIP6)])
def test_the_backend_sees_what_the_node_cannot(running: Lab, mode: str, vip: Address) -> None:
    lab = running
    node = Watched(lab, vip, mode)
    with observing_itself(lab, node.backend):
        itself = Watched(lab, vip, mode, by_itself=True)
        answered = {"opened": 10, "established": 10, "requests": 10}

        node.ask(10)
        good = itself.await_(**answered, http_2xx=10)
        node.await_(**answered)  # by the client's acknowledgements
        itself.server.answer(nginx.RESETS)
        node.ask(10)
        itself.await_(**answered, resets_by_server=10)
        itself.server.answer(200)
        itself.server.slow_down(0.4)
        node.ask(3)
        slow = itself.await_(opened=3, established=3, requests=3, http_2xx=3)
        itself.server.hurry()
        itself.server.refuse()
        node.ask(10)
        itself.await_(opened=10, refused=10)
        itself.server.accept()
        assert sum(good.first_byte.values()) == 10
        assert all(histogram.bounds(bucket)[1] > 400_000 for bucket in slow.first_byte)

        found = json.loads(lab.lbctl("service", "metrics", "web", "-o", "json").stdout)
        assert found["pools"]["stable"]["totals"]["http"] == itself.totals().http
        assert found["unseen"].keys() == {"node", "backend"}


def test_what_is_lost_on_the_way(running: Lab) -> None:
    lab = running
    web = Watched(lab, VIP4, "nat")
    with loss(lab, "client", f"tcp sport 80 {EVERY_OTHER}"):
        web.ask(4, 10)
    web.await_(opened=4, established=4, requests=4, http_2xx=4, retransmits_by_server=4)
    with loss(lab, web.backend, "tcp dport 80 tcp flags & (syn | ack) == syn drop"):
        web.ask(1, 1.5)  # a SYN is sent again after a second
        new = web.await_(opened=1, unanswered=1, syn_retransmissions=1)
    assert new.handshake == {}


def test_totals_go_on_without_lbd(running: Lab) -> None:
    lab = running
    web = Watched(lab, VIP4, "nat")
    web.ask(5)
    web.await_(opened=5, established=5, requests=5, http_2xx=5)
    epoch = web.epoch
    lab.kill_lbd(signal.SIGKILL)
    web.ask(5)
    lab.start_lbd()
    web.await_(opened=5, established=5, requests=5, http_2xx=5)
    assert web.epoch == epoch
    lab.lbctl("service", "set", "web", "--no-observe", "--wait")
    wait_until("the report is taken back", lambda: not reports(lab))
    lab.lbctl("service", "set", "web", "--observe", "--wait")
    wait_until("a new report", lambda: bool(reports(lab)))
    assert (web.totals(), web.epoch != epoch) == (FlowTotals(), True)
