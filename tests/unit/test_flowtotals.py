"""What several observers saw of a service: added up, compared, and what none of them can see."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from doubles import Lbctl

from lb.core import sight
from lb.core.evidence import difference
from lb.core.flowtotals import between, merged
from lb.core.measures import pooled
from lb.model import keys
from lb.model.flows import FlowReport, FlowTotals, Vantage
from lb.model.objects import Mode
from lb.store.base import Put, Store

ONE = FlowTotals(opened=3, established=2, http={"2xx": 1}, handshake={10: 2})
MORE = FlowTotals(
    opened=5, established=4, refused=1, http={"2xx": 1, "5xx": 1}, handshake={10: 3, 11: 1}
)


def report(
    node: str, epoch: str = "1", vantage: Vantage = Vantage.NODE, **backends: FlowTotals
) -> FlowReport:
    return FlowReport(service="web", node=node, vantage=vantage, epoch=epoch, at=1.0, backends=backends)


def test_what_was_seen_between_two_looks() -> None:
    before = {n: report(n, b1=ONE) for n in ("n1", "n2", "gone")}
    after = {
        "n1": report("n1", b1=MORE, b2=ONE),
        "n2": report("n2", epoch="2", b1=ONE),
        "new": report("new", b1=ONE),
    }
    found, lost = between(before, after)
    assert {name: each.backends for name, each in found.items()} == {
        "n1": {"b1": difference(ONE, MORE), "b2": ONE}
    }
    assert lost == {"n2", "gone", "new"}


def test_who_observes_itself_is_not_counted_twice() -> None:
    several = [
        report("n1", b1=ONE, b2=ONE),
        report("n2", b1=ONE, b2=ONE),
        report("b2", vantage=Vantage.BACKEND, b2=MORE),
    ]
    assert merged(several) == {"b1": pooled([ONE, ONE]), "b2": MORE}


def test_the_page_shows_what_is_seen() -> None:
    page = (Path(__file__).parents[2] / "docs/howto/observe.md").read_text()
    for each in sight.SIGHTS:
        assert f"| {each.figure} | {each.both_ways} | {each.one_way} | {each.backend} |\n" in page
    table = page.partition("## What is seen")[2].partition("\n\n|")[2].partition("\n\n")[0]
    assert len(re.findall(r"^\|", "|" + table, re.MULTILINE)) == len(sight.SIGHTS) + 2


@pytest.mark.parametrize("mode", list(Mode))
def test_what_a_mode_is_blind_to(mode: Mode) -> None:
    words = "; ".join(sight.blind(mode, Vantage.NODE))
    assert ("resets by the server: no" in words) == (mode not in (Mode.NAT, Mode.FULLNAT))
    assert "resets by the client" not in words
    assert "refused" not in "; ".join(sight.blind(mode, Vantage.BACKEND))


def put(store: Store, *reports: FlowReport) -> None:
    store.commit([Put(keys.observed("web", each.node), each.model_dump_json()) for each in reports])


def test_lbctl_shows_metrics_by_pool(web: Lbctl, store: Store) -> None:
    refused = web("service", "metrics", "web")
    assert (refused.code != 0, "not observed" in refused.err) == (True, True)
    web.ok("service", "set", "web", "--observe")
    assert "nobody has reported" in web("service", "metrics", "web").err
    web.ok("backend", "add", "web", "c1", "10.0.1.9", "--pool", "canary")
    slow = FlowTotals(requests=100, first_byte={100: 90, 140: 10}, http={"2xx": 97, "5xx": 3})
    put(store, report("n1", b1=ONE, b2=ONE, c1=slow), report("n2", b1=ONE))

    shown = web.ok("service", "metrics", "web").out
    rows = [line.split() for line in shown.splitlines()]
    assert ["stable", "b1", "6"] in [row[:3] for row in rows]
    assert ["stable", "all", "9"] in [row[:3] for row in rows]
    assert "resets by the server: no" in shown  # mode dsr
    found = web.json("service", "metrics", "web")
    assert found["pools"]["canary"]["totals"]["http"] == {"2xx": 97, "5xx": 3}
    latency = found["pools"]["canary"]["backends"]["c1"]["latency"]
    assert latency["first_byte"]["p50"] < latency["first_byte"]["p95"]
    assert latency["handshake"] == {"p50": None, "p95": None, "p99": None}
    assert found["observers"].keys() == {"n1", "n2"}


def test_lbctl_shows_what_came_meanwhile(
    web: Lbctl, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, report("n1", b1=ONE), report("n2", b1=ONE))

    def later(seconds: float) -> None:
        assert seconds == 5
        put(store, report("n1", b1=MORE), report("n2", epoch="2", b1=MORE))

    monkeypatch.setattr(time, "sleep", later)
    done = web.ok("service", "metrics", "web", "--over", "5", "-o", "json")
    assert "n2 began anew" in done.err
    assert (done.json["pools"]["stable"]["totals"]["opened"], done.json["lost"]) == (2, ["n2"])
