"""What a node says of itself, and what becomes of it while the store doesn't answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from doubles import Small, node_status

from lb.core import quorum
from lb.core.health import State
from lb.core.quorum import Vote
from lb.errors import CapacityError, StoreUnavailable
from lb.lab.shell import wait_until
from lb.model import keys
from lb.model.flows import FlowReport, FlowTotals, Vantage
from lb.model.health import Ballot
from lb.model.reports import BackendHealth, HealthChange, NodeStatus, Problem
from lb.node import reporter
from lb.node.follower import Follower
from lb.node.happenings import HealthHeard, StoreChanged
from lb.node.reporter import Background, Reporter
from lb.store.base import Delete, Put, Store

KEY = keys.node("n1")


class Gate:
    """The store, whose commits wait, or fail."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.open = threading.Event()
        self.error: Exception | None = None
        self.commits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def commit(self, *arguments: Any) -> int:
        assert self.open.wait(10)
        self.commits += 1
        if self.error is not None:
            raise self.error
        return self.store.commit(*arguments)


def reported(store: Store) -> NodeStatus | None:
    found = store.get(KEY)
    return NodeStatus.model_validate_json(found.value) if found else None


def until(condition: Callable[[], bool]) -> None:
    wait_until("the report", condition)


def test_a_store_that_does_not_answer_holds_up_nobody(store: Store) -> None:
    gate = Gate(store)
    background = Background(Reporter(gate))  # type: ignore[arg-type]
    begin = time.monotonic()
    for revision in range(100):
        background.report(node_status("n1", revision))
    assert time.monotonic() - begin < 5  # the gate is shut
    assert background.last == node_status("n1", 99)
    gate.open.set()
    until(lambda: reported(store) == node_status("n1", 99))
    assert gate.commits <= 2  # what piled up is one report
    background.leave()
    assert (reported(store), store.get(keys.member("n1"))) == (None, None)


def test_a_status_is_renewed_without_being_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(reporter, "LEASE_SECONDS", 2.0)
    background = Background(Reporter(store))
    background.report(node_status("n1", 1))
    until(lambda: reported(store) is not None)
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        assert reported(store) is not None
        time.sleep(0.05)
    found = store.get(KEY)
    assert found is not None
    store.commit([Put(KEY, "overwritten")])
    background.compare(None)
    until(lambda: store.get(KEY).value == found.value)  # type: ignore[union-attr]
    background.leave()


@pytest.mark.parametrize("error", [StoreUnavailable("away"), CapacityError("too large")])
def test_a_failure_is_survived(store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(reporter, "RENEW_SECONDS", 0.05)
    gate = Gate(store)
    gate.open.set()
    gate.error = error
    background = Background(Reporter(gate))  # type: ignore[arg-type]
    background.report(node_status("n1", 1))
    until(lambda: gate.commits >= 1)
    gate.error = None
    background.report(node_status("n1", 2))
    until(lambda: reported(store) == node_status("n1", 2))
    background.leave()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_thread_ends_lbd(store: Store) -> None:
    gate = Gate(store)
    gate.open.set()
    gate.error = ZeroDivisionError()
    background = Background(Reporter(gate))  # type: ignore[arg-type]
    background.report(node_status("n1", 1))
    background._thread.join(10)
    with pytest.raises(RuntimeError):
        background.report(node_status("n1", 2))


def test_votes_are_written_when_they_change_and_under_the_same_lease(store: Store) -> None:
    mine = Reporter(store)

    def report(revision: int, state: str) -> tuple[int, int]:
        """Revisions of the status and of the votes."""
        health = {"web/b1": BackendHealth(state=state, since=1.0, share=1.0, latency=revision / 1000)}
        mine.report(node_status("n1", revision).model_copy(update={"health": health}))
        found = [store.get(key) for key in (KEY, keys.votes("n1"))]
        return tuple(each.mod_revision if each else 0 for each in found)  # type: ignore[return-value]

    assert report(1, "unknown")[1] == 0  # no vote, no document
    first = report(2, "healthy")
    assert first[0] == first[1]
    second = report(3, "healthy")
    assert second == (first[0] + 1, first[1])
    assert report(4, "unhealthy")[1] == second[0] + 1
    store.revoke(mine._lease)
    assert store.get(keys.votes("n1")) is None
    mine.renew()
    assert store.get(keys.votes("n1")) is not None
    mine.leave()
    assert store.get(keys.votes("n1")) is None


# What is too large


def eventful_status(revision: int, backends: int, **fields: Any) -> NodeStatus:
    """The first of the backends is unhealthy."""
    history = tuple(HealthChange(at=1.0 + n, state="healthy", words="connected") for n in range(5))
    well = BackendHealth(state="healthy", since=1.0, share=1.0, latency=0.001, history=history)
    health = {f"web/b{n}": well for n in range(backends)}
    health["web/b0"] = well.model_copy(update={"state": "unhealthy", "error": "connection refused"})
    return node_status("n1", revision, health=health, **fields)


def left_out(status: NodeStatus | None) -> str:
    assert status is not None
    found = [each for each in status.problems if "too large for the store" in each.message]
    assert all(each.warning and "--max-request-bytes" in each.hint for each in found)
    return "; ".join(each.message.partition(" without ")[2] for each in found)


@pytest.mark.parametrize("apart", [2000, 10])
@pytest.mark.parametrize(
    ("limit", "without", "histories"),
    [
        (50_000, "", 50),
        (10_000, "the history of healthy backends", 1),
        (4_000, "the history of backends", 0),
        (3_500, "the history of backends, and what checks say", 0),
    ],
)
def test_a_status_that_is_too_large_is_told_with_less(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    without: str,
    histories: int,
    apart: int,
) -> None:
    monkeypatch.setattr(reporter, "APART", apart)
    beside = len(quorum.ballot(eventful_status(7, 50)).model_dump_json()) if apart > 50 else 0
    small = Small(store, limit + beside)
    one = Reporter(small)  # type: ignore[arg-type]
    one.report(eventful_status(7, 50))
    found = reported(store)
    assert found is not None
    assert (found.revision, left_out(found)) == (7, without)
    assert sum(bool(each.history) for each in found.health.values()) == histories
    assert quorum.reported(found) == quorum.reported(eventful_status(7, 50))
    votes = store.get(keys.votes("n1"))
    assert votes is not None
    assert Ballot.model_validate_json(votes.value) == quorum.ballot(found)
    assert store.get(keys.member("n1")) is not None

    written = store.read(keys.REPORTS).revision
    one.renew()
    one.compare(found)
    one.report(eventful_status(7, 50))
    assert store.read(keys.REPORTS).revision == written  # nothing was written anew
    refused = small.refused
    one.report(eventful_status(8, 50))  # not tried in full again
    assert small.refused == refused
    assert reported(store) == found.model_copy(update={"revision": 8})
    one.report(eventful_status(9, 2))  # it fits now
    assert reported(store) == eventful_status(9, 2)


def test_the_revision_is_told_whatever_else_there_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "APART", 10)
    problems = [Problem(where=f"/lb/v1/services/s{n}", message="x" * 1000) for n in range(3000)]
    stopped = Problem(where="n1", message="the maps are full", kind="CapacityError")
    large = eventful_status(
        7,
        5000,
        unresolved=tuple(f"web/b{n}" for n in range(5000)),
        digests={f"s{n}": "0123456789abcdef" for n in range(5000)},
        shares={f"s{n}": {"stable": 100.0} for n in range(5000)},
        problems=(*problems, stopped),
    )
    one = Reporter(Small(store, 60_000))  # type: ignore[arg-type]
    one.report(eventful_status(6, 20))
    assert store.get(keys.votes("n1")) is not None
    one.report(large)
    found = reported(store)
    assert found is not None
    assert (found.revision, found.health) == (7, {})
    assert stopped in found.problems[:2]  # `--wait` goes by it
    assert "2,902 more problems are not told" in {each.message for each in found.problems}
    assert left_out(found).startswith("the health of backends")
    # Votes that are too many don't leave those from before behind, and are missed.
    assert store.get(keys.votes("n1")) is None
    [unheard] = [each for each in found.problems if "votes on the health" in each.message]
    assert unheard.warning  # it keeps no change from being applied
    one.report(eventful_status(8, 20))
    assert reported(store) == eventful_status(8, 20)
    assert store.get(keys.votes("n1")) is not None


def test_a_store_that_takes_nothing_is_tried_again(store: Store) -> None:
    small = Small(store, 10)
    one = Reporter(small)  # type: ignore[arg-type]
    one.report(eventful_status(7, 5))
    assert reported(store) is None
    small.limit = 1 << 20
    one.renew()
    assert reported(store) == eventful_status(7, 5)


# The follower


def test_a_follower_tells_of_changes_and_not_of_reports(store: Store) -> None:
    told: list[StoreChanged] = []
    Follower(store, told.append, "node1").start(store.commit([Put(keys.CONFIG, "{}")]))
    store.commit([Put(KEY, "{}"), Put(keys.member("n1"), "{}"), Put(keys.record("r"), "{}")])
    store.commit([Put(keys.service("web"), "{}"), Put(keys.record("s"), "{}")])
    until(lambda: bool(told))
    (only,) = told
    assert only.batch is not None
    assert keys.service("web") in {event.key for event in only.batch.events}


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("a bug")])
def test_a_follower_of_a_store_that_is_away_says_when_it_is_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("lb.node.follower.RETRY_SECONDS", 0.01)
    away = threading.Event()
    away.set()

    class Away:
        def __getattr__(self, name: str) -> Any:
            if away.is_set():
                raise error
            return getattr(store, name)

    told: list[StoreChanged] = []
    follower = Follower(Away(), told.append, "node1")  # type: ignore[arg-type]
    follower.start(0)
    until(lambda: not follower.in_touch)
    assert told == []
    store.commit([Put(keys.service("web"), "{}")])
    assert follower.away(math.inf) == math.inf
    away.clear()
    until(lambda: bool(told))
    assert told[0].batch is None  # read everything
    assert follower.in_touch
    store.commit([Put(keys.service("web"), "{}")])
    until(lambda: len(told) == 2)
    assert told[1].batch is not None


def test_a_follower_tells_of_other_nodes_health_and_of_nothing_else_in_their_reports(
    store: Store,
) -> None:
    told: list[object] = []
    reporters: dict[str, Reporter] = {}
    Follower(store, told.append, "n1").start(store.commit([Put(keys.CONFIG, "{}")]))

    def report(node: str, revision: int, **states: str) -> None:
        health = {
            f"web/{name}": BackendHealth(state=state, since=1.0, share=1.0, latency=revision / 1000)
            for name, state in states.items()
        }
        status = node_status(node, revision).model_copy(update={"health": health})
        reporters.setdefault(node, Reporter(store)).report(status)

    report("n1", 1, b1="unhealthy")  # its own
    report("n2", 1, b1="healthy", b2="unknown")
    report("n2", 2, b1="healthy", b2="unknown")
    until(lambda: len(told) == 1)
    store.commit([Put(keys.votes("n2"), "{}")])
    report("n2", 3, b1="unhealthy")
    reporters["n2"].leave()
    until(lambda: len(told) == 3)
    up, down = (Vote(state, 1.0) for state in (State.HEALTHY, State.UNHEALTHY))
    assert told == [
        HealthHeard("n2", {"web/b1": up}),
        HealthHeard("n2", {"web/b1": down}),
        HealthHeard("n2", None),
    ]


def flow_report(service: str, opened: int, at: float = 1.0) -> FlowReport:
    return FlowReport(
        service=service,
        node="n1",
        vantage=Vantage.NODE,
        epoch="1",
        at=at,
        backends={"b1": FlowTotals(opened=opened)},
    )


def observed(store: Store, service: str) -> FlowReport | None:
    found = store.get(keys.observed(service, "n1"))
    return FlowReport.model_validate_json(found.value) if found else None


def test_what_was_seen_of_flows_is_written_when_it_is_news(store: Store) -> None:
    gate = Gate(store)
    gate.open.set()
    reporter = Reporter(gate)  # type: ignore[arg-type]
    reporter.report_flows({"web": flow_report("web", 1), "dns": flow_report("dns", 1)})
    assert gate.commits == 1
    reporter.report_flows({"web": flow_report("web", 1, at=2.0), "dns": flow_report("dns", 1, at=2.0)})
    assert gate.commits == 1
    newer = {"web": flow_report("web", 2, at=2.5), "dns": flow_report("dns", 1, at=2.5)}
    reporter.report_flows(newer)
    assert (observed(store, "web"), observed(store, "dns")) == (newer["web"], flow_report("dns", 1))
    later = flow_report("dns", 1, at=3.5)  # an idle observer is there, too
    reporter.report_flows({**newer, "dns": later})
    assert (observed(store, "web"), observed(store, "dns")) == (newer["web"], later)
    reporter.report_flows({"web": newer["web"]})  # dns is no longer observed
    assert (observed(store, "web"), observed(store, "dns")) == (newer["web"], None)
    reporter.leave()
    assert observed(store, "web") is None


def healthy_status(revision: int, *names: str, **fields: Any) -> NodeStatus:
    health = {f"web/{name}": BackendHealth(state="healthy", since=1.0, share=1.0) for name in names}
    return node_status("n1", revision, health=health, **fields)


def test_what_ends_with_a_lease_is_written_anew(store: Store) -> None:
    reports = {"web": flow_report("web", 1), "dns": flow_report("dns", 1)}
    status = healthy_status(1, "b1")
    for write_first in (False, True):
        one = Reporter(store)
        one.report(status)
        one.report_flows(reports)
        store.revoke(one._lease)
        assert (reported(store), observed(store, "web"), observed(store, "dns")) == (None, None, None)
        if write_first:  # news of one of them comes before the end of the lease is noticed
            reports = reports | {"web": flow_report("web", 2)}
            one.report_flows(reports)
            assert observed(store, "web") == reports["web"]
            one.report_flows(reports)
        one.renew()
        assert (observed(store, "web"), observed(store, "dns")) == (reports["web"], reports["dns"])
        assert reported(store) == status
        assert store.get(keys.votes("n1")) is not None
        one.leave()
        for service in reports:
            store.commit([Delete(keys.observed(service, "n1"))])


def test_flows_that_could_not_be_written_are_tried_again(store: Store) -> None:
    gate = Gate(store)
    gate.open.set()
    gate.error = StoreUnavailable("away")
    reporter = Reporter(gate)  # type: ignore[arg-type]
    reporter.report_flows({"web": flow_report("web", 1)})
    gate.error = None
    reporter.renew()
    assert observed(store, "web") == flow_report("web", 1)
