"""lbd's memory of health: what is asked, what results lead to, and what a restart keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lb.core.health import Result, State
from lb.core.quorum import Vote, reported
from lb.core.state import DesiredState
from lb.model import keys
from lb.model.flows import FlowTotals
from lb.model.health import Health, HttpCheck, NoCheck, Overrides, Passive
from lb.model.objects import (
    Admin,
    Backend,
    Service,
)
from lb.model.reports import NodeStatus, Problem
from lb.node.checks import Checks, Transition
from lb.node.ejections import Reading
from lb.probe.base import Target
from lb.probe.scheduler import Key, Probed
from lb.settings import Checks as Settings

PASS = Result(True, "connected", 0.003)
FAIL = Result(False, "connection refused", 0.001)


class FakeProber:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.targets: dict[Key, tuple[Target, float]] = {}
        self.updates = 0
        self.paces: list[tuple[str, float]] = []
        self.late = 0.0

    def update(self, targets: Mapping[Key, tuple[Target, float]]) -> None:
        self.targets = dict(targets)
        self.updates += 1

    def pace(self, key: Key, period: float) -> None:
        self.paces.append((key[1], period))

    def lateness(self, percent: float) -> float:
        assert percent == 99
        return self.late


class Node:
    """A node's checks with hands on the clock."""

    def __init__(self, folder: Path, now: float = 1_000_000.0) -> None:
        self.now = now
        self.told: list[Transition] = []
        self.prober = FakeProber()
        self.settings = Settings(memory=folder / "memory" / "health.json")
        self.checks = Checks(self.settings, self.prober, self.told.append, lambda: self.now)
        self.checks.load()

    def follow(self, *backends: Backend, health: Health | None = None, **more: Any) -> None:
        service = Service.model_validate(
            {"name": "web", "vip": "198.51.100.100", "port": 80, "health": health, **more}
        )
        state = DesiredState(
            services={"web": service}, backends={("web", each.name): each for each in backends}
        )
        self.checks.follow(state)

    def take(self, name: str, *results: Result) -> bool:
        changed = False
        for each in results:
            self.now += 1
            key = ("web", name)
            changed |= self.checks.take([Probed(key, self.prober.targets[key][0], each)])
        return changed

    @property
    def fitness(self) -> Mapping[str, float]:
        return self.checks.verdicts["web"].fitness

    def state(self, name: str) -> str:
        return self.checks.reports()[f"web/{name}"].state


def backend(name: str, **more: Any) -> Backend:
    number = int(name[1:])
    return Backend.model_validate(
        {"service": "web", "name": name, "address": f"203.0.113.{10 + number}", **more}
    )


B1, B2 = backend("b1"), backend("b2")
HEALTH = Health(interval=2, fast_interval=1, rise=2, fall=2)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_service_without_a_check_is_left_alone(node: Node) -> None:
    node.follow(B1, B2)
    assert (node.prober.updates, node.checks.verdicts, node.checks.is_busy) == (0, {}, False)
    assert node.checks.due == math.inf


def test_what_is_asked(node: Node) -> None:
    own = backend("b2", port=8080, health=Overrides(interval=9, fast_interval=9))
    off = backend("b3", health=Overrides(enabled=False))
    check = HttpCheck(path="/healthz")
    node.follow(B1, own, off, health=HEALTH.model_copy(update={"check": check}))
    asked = {key[1]: (each.host, each.port, pace) for key, (each, pace) in node.prober.targets.items()}
    assert asked == {"b1": ("203.0.113.11", 80, 1), "b2": ("203.0.113.12", 8080, 9)}
    assert node.fitness == {"b1": 0.0, "b2": 0.0}  # none of them was seen yet; b3 is not checked


def test_results_become_verdicts(node: Node) -> None:
    node.follow(B1, B2, health=HEALTH)
    assert node.take("b1", PASS)
    assert node.fitness == {"b2": 0.0}
    assert not node.take("b1", PASS, FAIL)
    assert node.take("b1", FAIL)
    assert node.fitness == {"b1": 0.0, "b2": 0.0}
    assert (node.checks.fallen(), node.checks.fallen()) == ({("web", "b1")}, set())
    assert [(each.after, each.words) for each in node.told] == [
        (State.HEALTHY, "connected"),
        (State.UNHEALTHY, "connection refused"),
    ]


def test_the_pace_follows(node: Node) -> None:
    node.follow(B1, health=HEALTH)
    node.take("b1", PASS, PASS, FAIL, FAIL, FAIL, PASS, PASS)
    assert node.prober.paces == [("b1", 2), ("b1", 1), ("b1", 2), ("b1", 1), ("b1", 2)]


def test_nothing_new_asks_nothing_anew(node: Node) -> None:
    node.follow(B1, B2, health=HEALTH)
    node.follow(B1, B2, health=HEALTH)
    assert node.prober.updates == 2  # another Service object might say something else
    first = dict(node.prober.targets)
    node.follow(B1.model_copy(update={"weight": 5}), B2, health=HEALTH)
    assert all(node.prober.targets[key][0] is each for key, (each, _) in first.items())


def test_settings_change_on_a_live_service(node: Node) -> None:
    """What was known stays; answers to the old question are no answers."""
    node.follow(B1, B2, health=HEALTH)
    node.take("b1", PASS)
    old = node.prober.targets["web", "b1"][0]
    node.follow(B1, B2, health=HEALTH.model_copy(update={"check": HttpCheck(path="/x")}))
    assert node.fitness == {"b2": 0.0}
    assert not node.checks.take([Probed(("web", "b1"), old, FAIL)] * 5)
    assert node.state("b1") == "healthy"


@pytest.mark.parametrize("moved", [{"address": "203.0.113.99"}, {"port": 8080}])
def test_another_address_or_port_is_another_server(node: Node, moved: dict[str, Any]) -> None:
    node.follow(B1, health=HEALTH)
    node.take("b1", PASS)
    node.follow(backend("b1", **moved), health=HEALTH)
    assert node.state("b1") == "unknown"
    assert node.fitness == {"b1": 0.0}


def test_who_was_removed_meanwhile_is_another_server_when_it_comes_back(
    node: Node, tmp_path: Path
) -> None:
    node.follow(B1, B2, health=HEALTH)
    node.take("b1", PASS)
    node.take("b2", PASS)
    node.checks.save()
    again = Node(tmp_path, node.now)
    again.follow(B2, health=HEALTH)
    again.follow(B1, B2, health=HEALTH)
    assert (again.state("b1"), again.state("b2")) == ("unknown", "healthy")
    again.checks.save()
    assert Node(tmp_path, node.now).checks._remembered.keys() == {"web/b1", "web/b2"}


def test_what_cannot_be_read_is_not_forgotten(node: Node, tmp_path: Path) -> None:
    node.follow(B1, health=HEALTH)
    node.take("b1", PASS)
    node.checks.save()
    again = Node(tmp_path, node.now)
    key = keys.backend("web", "b1")
    bad = Problem(where=key, message="not valid")
    again.checks.follow(DesiredState(versions={key: 2}, problems=(bad,)))
    again.follow(B1, health=HEALTH)
    assert again.state("b1") == "healthy"


def test_a_record_of_before_ports_were_noted_counts(node: Node, tmp_path: Path) -> None:
    node.follow(B1, health=HEALTH)
    node.take("b1", PASS)
    node.checks.save()
    known = json.loads(node.settings.memory.read_text())
    del known["web/b1"]["port"]
    node.settings.memory.write_text(json.dumps(known))
    again = Node(tmp_path, node.now)
    again.follow(B1, health=HEALTH)
    assert again.state("b1") == "healthy"
    again.follow(backend("b1", port=8080), health=HEALTH)
    assert again.state("b1") == "unknown"


def test_a_check_added_to_a_live_service_takes_nobody_out_before_it_failed(node: Node) -> None:
    node.follow(B1, B2)
    b3 = backend("b3")
    node.follow(B1, B2, b3, health=HEALTH)
    assert node.fitness == {"b3": 0.0}
    node.take("b1", FAIL, FAIL)
    assert node.fitness == {"b1": 0.0, "b3": 0.0}


def test_checks_taken_away(node: Node) -> None:
    node.follow(B1, B2, health=HEALTH)
    node.take("b1", FAIL, FAIL)
    assert node.checks.reports().keys() == {"web/b1", "web/b2"}
    node.follow(B1, B2)
    assert (node.prober.targets, node.checks.verdicts) == ({}, {})
    assert node.checks.reports() == {}


def test_what_a_person_wants_is_told_apart(node: Node) -> None:
    drained = backend("b1", admin=Admin.DRAIN)
    node.follow(drained, B2, health=HEALTH)
    node.take("b1", FAIL, FAIL, PASS, PASS)
    assert node.state("b1") == "healthy"
    assert {each.admin for each in node.told} == {Admin.DRAIN}


def test_a_restart_keeps_what_was_known(node: Node, tmp_path: Path) -> None:
    node.follow(B1, B2, health=HEALTH)
    node.take("b1", PASS)
    node.take("b2", FAIL, FAIL)
    since = node.checks.reports()["web/b1"].since
    assert node.checks.due <= node.now + 1
    node.now += 2
    node.checks.tick()
    assert node.checks.due == math.inf  # written, and nothing else to do

    again = Node(tmp_path, node.now)
    again.checks.follow(DesiredState())  # an empty store: its documents come later
    again.checks.save()
    again = Node(tmp_path, node.now)
    again.follow(B1, B2, health=HEALTH)
    assert again.fitness == {"b2": 0.0}
    assert again.checks.reports()["web/b1"].since == since
    assert again.told == []
    assert again.take("b2", PASS, PASS)


def test_memory_that_is_of_no_use(node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node.follow(B1, health=HEALTH)
    node.take("b1", PASS)
    node.checks.save()
    whole = node.settings.memory.read_text()
    for text in (whole[: len(whole) // 2], "[]", json.dumps({"web/b1": {}}), "\0"):
        node.settings.memory.write_text(text)
        caplog.clear()
        again = Node(tmp_path, node.now)
        again.follow(B1, health=HEALTH)
        assert again.state("b1") == "unknown"
        assert "is not what lbd wrote" in caplog.text
    # Of another address.
    node.checks.save()
    again = Node(tmp_path, node.now)
    again.follow(backend("b1", address="203.0.113.99"), health=HEALTH)
    assert again.state("b1") == "unknown"


def test_memory_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "memory").write_text("a file where a folder should be")
    node = Node(tmp_path)
    node.follow(B1, health=HEALTH)
    node.checks.save()
    assert "can't be written" in caplog.text


def test_slow_start_goes_on_by_itself(node: Node) -> None:
    ramping = HEALTH.model_copy(update={"slow_start": 10.0})
    node.follow(B1, B2, health=ramping)
    node.take("b1", PASS)
    node.now += 60
    node.checks.tick()
    node.take("b2", PASS)
    shares = [node.fitness["b2"]]
    while node.checks.due < math.inf:
        node.now = max(node.checks.due, node.now)
        if node.checks.tick():
            shares.append(node.fitness.get("b2", 1.0))
            assert node.checks.reports()["web/b2"].share == shares[-1]
    assert shares == [pytest.approx((n + 1) / 10) for n in range(10)]


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_clock_that_is_set_neither_ends_nor_prolongs_anything(node: Node, hours: int) -> None:
    node.follow(B1, B2, health=PASSIVE, mode="nat")
    see(node, b1=0)
    see(node, b1=9)
    shown = node.checks.reports()["web/b1"]
    assert shown.ejection
    node.now += 3600 * hours
    assert not node.checks.clock_was_set(3600 * hours)
    moved = node.checks.reports()["web/b1"]
    assert moved.ejection
    assert moved.ejection.until == shown.ejection.until + 3600 * hours
    assert moved.since == shown.since + 3600 * hours
    assert node.checks.due <= node.now + 30
    node.now += 29
    assert not node.checks.tick()
    node.now += 1
    assert node.checks.tick()
    assert node.fitness == {}


def test_panic_is_said_loudly(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    node.follow(B1, B2, health=HEALTH.model_copy(update={"panic": 60.0}))
    node.take("b1", PASS)
    assert node.checks.problems("node1") == []
    node.take("b2", FAIL, FAIL)
    [problem] = node.checks.problems("node1")
    assert "less than 60 % of pool 'stable' is healthy" in problem.message
    assert node.fitness == {}
    assert "pool=stable panic" in caplog.text
    node.take("b2", PASS, PASS)
    assert node.checks.problems("node1") == []
    assert "panic is over" in caplog.text


def test_reports_are_news_only_if_something_is_new(node: Node) -> None:
    node.follow(B1, health=HEALTH)
    node.take("b1", PASS)
    first = node.checks.reports(details=True)
    assert first["web/b1"].latency == 0.003
    node.take("b1", Result(True, "connected", 0.0045))
    assert node.checks.reports(details=True) is first
    node.take("b1", Result(True, "connected", 0.5))
    assert node.checks.reports(details=True)["web/b1"].latency == 0.5
    node.take("b1", FAIL)  # still healthy
    told = node.checks.reports(details=True)["web/b1"]
    assert (told.state, told.error) == ("healthy", "connection refused")
    node.take("b1", PASS)
    assert node.checks.reports(details=True)["web/b1"].error == ""
    assert [each.state for each in told.history] == ["healthy"]


def test_late_checks_are_a_problem(node: Node) -> None:
    assert node.checks.lateness("node1") == []
    node.prober.late = 0.3
    [problem] = node.checks.lateness("node1")
    assert "1 in 100 by 0.3 s" in problem.message


# --- with other nodes -----------------------------------------------------------------------------


def heard(**states: State) -> dict[str, Vote]:
    return {f"web/{name}": Vote(state, 1.0) for name, state in states.items()}


UP, DOWN = State.HEALTHY, State.UNHEALTHY


def test_two_nodes_have_to_agree(node: Node) -> None:
    node.follow(B1, B2, health=HEALTH)
    node.take("b1", PASS)
    node.take("b2", PASS)
    assert not node.checks.hear_some({"other": heard(b1=UP, b2=UP)})
    assert not node.take("b1", FAIL, FAIL)  # in: the other one reaches it
    assert (node.fitness, node.checks.fallen()) == ({}, set())
    assert node.state("b1") == "unhealthy"  # what it tells the others is what it found itself
    assert node.checks.hear_some({"other": heard(b1=DOWN, b2=UP)})
    assert (node.fitness, node.checks.fallen()) == ({"b1": 0.0}, {("web", "b1")})
    assert not node.checks.hear_some({"other": heard(b1=DOWN, b2=UP)})
    assert not node.checks.hear_some({"other": None})  # it is alone now, and of the same opinion
    assert node.fitness == {"b1": 0.0}


def test_a_majority_of_others_takes_a_backend_out_here_and_lets_it_in(node: Node) -> None:
    node.follow(B1, B2, health=HEALTH)
    node.take("b1", PASS)
    node.take("b2", PASS)
    assert not node.checks.hear_some({"n2": heard(b1=DOWN)})
    assert node.checks.hear_some({"n3": heard(b1=DOWN)})
    assert node.fitness == {"b1": 0.0}
    assert node.checks.hear_some({"n3": heard(b1=UP)})
    assert node.fitness == {}
    # Nobody is heard of any more: its own view counts.
    node.checks.hear({"n2": heard(b1=DOWN), "n3": heard(b1=DOWN)})
    assert node.checks.hear({})
    assert node.fitness == {}


def test_a_node_that_alone_sees_all_as_unhealthy_says_so_and_goes_by_the_others(node: Node) -> None:
    b3 = backend("b3")
    node.follow(B1, B2, b3, health=HEALTH)
    for name in ("b1", "b2", "b3"):
        node.take(name, PASS)
    node.checks.hear_some({"other": heard(b1=UP, b2=UP, b3=DOWN)})
    node.take("b1", FAIL, FAIL)
    assert node.checks.problems("node1") == []
    assert node.take("b2", FAIL, FAIL)
    [problem] = node.checks.problems("node1")
    assert (problem.where, problem.warning) == ("node1", True)
    assert "only this node's checks" in problem.message
    assert node.fitness == {"b3": 0.0}  # by the other one's word alone
    assert node.take("b2", PASS, PASS)
    assert node.checks.problems("node1") == []
    assert node.fitness == {}


# -- passive detection ---------------------------------------------------------------------------

PASSIVE = Health(check=NoCheck(), passive=Passive(failures=3, base=30))
BOTH = Health(interval=2, rise=2, fall=2, passive=Passive(failures=3, base=30))


def see(node: Node, **refused: int) -> bool:
    """A second later the kernel's totals are these."""
    node.now += 1
    totals = {name: FlowTotals(opened=n, refused=n) for name, n in refused.items()}
    return node.checks.see(Reading("web", "epoch", totals))


def test_what_the_data_path_sees_ejects_without_any_check(node: Node) -> None:
    node.follow(B1, B2, health=PASSIVE, mode="nat")
    assert node.prober.targets == {}
    assert node.fitness == {}
    assert not see(node, b1=7, b2=0)  # where counting begins
    assert not see(node, b1=9, b2=0)
    assert see(node, b1=10, b2=0)
    assert node.fitness == {"b1": 0.0}
    assert node.checks.fallen() == {("web", "b1")}
    shown = node.checks.reports()["web/b1"]
    assert shown.ejection
    assert shown.ejection.until == node.now + 30
    assert shown.ejection.words == "3 connections or requests in a row failed"
    assert (node.told[-1].after, node.told[-1].words) == ("ejected", shown.ejection.words)
    assert node.checks.due <= node.now + 30
    # Late failures of what was under way count for nothing.
    assert not see(node, b1=30, b2=0)
    node.now = shown.ejection.until - 1
    assert not node.checks.tick()
    node.now += 1
    assert node.checks.tick()
    assert node.fitness == {}
    assert node.checks.reports()["web/b1"].ejection is None
    assert (node.told[-1].before, node.told[-1].after) == ("ejected", "unknown")
    # And twice as long when it goes on so.
    assert see(node, b1=33, b2=0)
    assert node.checks.reports()["web/b1"].ejection.until == node.now + 60  # type: ignore[union-attr]


def test_who_is_spared_is_told(node: Node) -> None:
    node.follow(B1, B2, health=PASSIVE, mode="nat")
    see(node, b1=0, b2=0)
    see(node, b1=9, b2=5)
    assert node.fitness == {"b1": 0.0}
    [problem] = node.checks.problems("n1")
    assert problem.warning
    assert "(5 connections or requests in a row failed), but it stays in use" in problem.message
    node.follow(B1, B2, health=HEALTH, mode="nat")  # nobody is judged by flows any more
    assert node.checks.problems("n1") == []


def test_an_ejection_survives_a_restart_and_not_the_end_of_what_asked_for_it(
    node: Node, tmp_path: Path
) -> None:
    node.follow(B1, B2, health=PASSIVE, mode="nat")
    see(node, b1=0)
    see(node, b1=9)
    node.checks.save()
    again = Node(tmp_path, node.now + 5)
    again.follow(B1, B2, health=PASSIVE, mode="nat")
    assert again.fitness == {"b1": 0.0}
    again.now = node.now + 30
    assert again.checks.tick()
    assert again.fitness == {}
    node.follow(B1, B2, health=Health(), mode="nat")
    assert node.checks.reports()["web/b1"].ejection is None


def test_checks_and_what_the_data_path_sees_are_two_things(node: Node) -> None:
    node.follow(B1, B2, health=BOTH, mode="nat")
    node.take("b1", PASS)
    node.take("b2", PASS)
    see(node, b1=0)
    assert see(node, b1=9)
    shown = node.checks.reports()["web/b1"]
    assert (shown.state, shown.ejection is None) == ("healthy", False)
    assert node.fitness == {"b1": 0.0}
    # A check that passes doesn't end an ejection, and one that fails outlasts it.
    assert not node.take("b1", PASS, PASS)
    assert node.fitness == {"b1": 0.0}
    node.take("b1", FAIL, FAIL)
    node.now += 60
    node.checks.tick()
    assert node.fitness == {"b1": 0.0}
    assert node.checks.reports()["web/b1"].ejection is None
    assert node.take("b1", PASS, PASS)
    assert node.fitness == {}


def test_an_ejection_is_a_vote(node: Node) -> None:
    """As with checks: of two nodes that have an opinion both have to agree."""
    node.follow(B1, B2, health=PASSIVE, mode="nat")
    node.checks.hear({"n2": {"web/b1": Vote(State.HEALTHY, 1.0)}})
    see(node, b1=0)
    see(node, b1=9)
    assert node.fitness == {}
    assert node.checks.reports()["web/b1"].ejection
    assert node.checks.hear({"n2": {"web/b1": Vote(State.UNHEALTHY, 1.0)}})
    assert node.fitness == {"b1": 0.0}
    status = NodeStatus(
        node="n1",
        version="1",
        pid=1,
        started=0,
        revision=1,
        links=(),
        pin_dir="",
        health=dict(node.checks.reports()),
    )
    assert reported(status)["web/b1"].state is State.UNHEALTHY
    # Nothing good and nothing bad seen is no opinion.
    assert "web/b2" not in reported(status)
    node.now += 1
    node.checks.see(Reading("web", "epoch", {"b2": FlowTotals(established=1)}))
    node.now += 1
    node.checks.see(Reading("web", "epoch", {"b2": FlowTotals(established=2)}))
    assert node.state("b2") == "healthy"
