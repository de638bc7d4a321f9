"""Promises of rollouts, whatever happens in whatever order, to runners that see old things.

A small world: a store with compare-and-set, two nodes that apply what is stored when they like, two
runners that may hold a view for a while before they commit, people who give commands and edit the split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core import canary
from lb.core import rollout as core
from lb.core.canary import View
from lb.core.rollout import decide
from lb.core.splits import same_split
from lb.model.analysis import Analysis
from lb.model.evidence import Outcome
from lb.model.objects import Backend, Service
from lb.model.reports import BackendHealth, NodeStatus
from lb.model.rollout import OVER, Ask, Command, Ending, Phase, Rollout, RolloutSpec

EVERY = 10.0
STEPS = (1.0, 10.0, 50.0)
BEFORE = {"stable": 60.0, "old": 40.0}
ANALYSIS = Analysis.model_validate({"metrics": [{"name": "resets"}]})
BACKENDS = tuple(
    Backend(service="web", name=name, address=IPv4Address("203.0.113.1"), pool=pool)
    for name, pool in (("b1", "stable"), ("o1", "old"), ("c1", "canary"))
)


@dataclass
class World:
    rollout: Rollout
    now: float = 0.0
    revision: int = 1
    document_version: int = 1
    service_version: int = 1
    split: dict[str, float] = field(default_factory=lambda: dict(BEFORE))
    removed: bool = False
    applied: dict[str, tuple[int, dict[str, float]]] = field(
        default_factory=lambda: {"n1": (1, dict(BEFORE)), "n2": (1, dict(BEFORE))}
    )
    alive: set[str] = field(default_factory=lambda: {"n1", "n2"})
    sick: bool = False
    outcome: Outcome | None = None  # of looks from now on
    held: dict[str, tuple[int, int, Rollout, View]] = field(default_factory=dict)  # by runner
    # What was seen.
    shares: list[tuple[str, float]] = field(default_factory=list)  # who wrote it, the canary's share
    steps_written: list[int] = field(default_factory=list)
    aborting_since: int | None = None

    def view(self) -> View:
        service = Service(name="web", vip=IPv4Address("198.51.100.1"), port=80, split=dict(self.split))
        nodes = {}
        for name in sorted(self.alive):
            revision, split = self.applied[name]
            state = "unhealthy" if self.sick else "healthy"
            nodes[name] = NodeStatus(
                node=name, version="1", pid=1, started=0.0, revision=revision, links=(), pin_dir="/",
                shares={"web": {pool: share for pool, share in split.items() if share}},
                health={"web/c1": BackendHealth(state=state, since=0.0, share=1.0)},
            )  # fmt: skip
        return View(
            None if self.removed else service,
            0 if self.removed else self.service_version,
            BACKENDS,
            nodes,
            sorted({"n1", "n2"} - self.alive),
        )

    # -- what may happen --

    def look(self, runner: str) -> None:
        self.held[runner] = self.document_version, self.service_version, self.rollout, self.view()

    def act(self, runner: str) -> None:
        """Decide on what was looked at, and commit if both documents are still those."""
        if runner not in self.held:
            return
        document, service, rollout, view = self.held.pop(runner)
        if (document, service) != (self.document_version, self.service_version):
            return
        on_time = core.on_time(rollout, self.now)
        if on_time != rollout:
            self.revision += 1
            self.document_version = self.revision
            self.rollout = on_time
        decision = decide(on_time, view, self.now, runner)
        if decision is None:
            return
        self.revision += 1
        self.document_version = self.revision
        before = self.rollout.status
        self.rollout = Rollout.model_validate_json(decision.rollout.model_dump_json())
        after = self.rollout.status
        assert before.phase not in OVER
        if decision.split is not None:
            assert not self.removed
            self.split, self.service_version = dict(decision.split), self.revision
            self.shares.append(("rollout", self.split.get("canary", 0.0)))
        if after.step != before.step:
            self.steps_written.append(after.step)
            if after.phase is not Phase.PROMOTING:
                assert after.step == before.step + 1
        if after.ending is not None and self.aborting_since is None:
            self.aborting_since = len(self.shares)
        # A step is over only when every live node had it, as far as the runner could see.
        if after.phase in (Phase.BAKING, Phase.PROMOTED):
            assert all(each.revision >= view.version for each in view.nodes.values())
            assert view.nodes

    def judge(self) -> None:
        """The analysis looks, and writes what it finds, as whoever runs it does."""
        phases = (Phase.BAKING, Phase.ANALYSING, Phase.GATE, Phase.PAUSED)
        if self.rollout.status.phase in phases and self.rollout.spec.analysis:
            self.revision += 1
            self.document_version = self.revision
            changes = {"judged": self.outcome, "looked": self.now}
            status = self.rollout.status.model_copy(update=changes)
            self.rollout = self.rollout.model_copy(update={"status": status})

    def apply(self, node: str) -> None:
        if node in self.alive and not self.removed:
            self.applied[node] = self.revision, dict(self.split)

    def ask(self, command: Command) -> None:
        if core.may(self.rollout, command):
            self.revision += 1
            self.document_version = self.revision
            asking = Ask(command=command, who="alice", when=self.now)
            self.rollout = core.asked(self.rollout, asking)

    def edit(self, canary: float) -> None:
        """Somebody who uses force."""
        if not self.removed:
            self.revision += 1
            self.service_version = self.revision
            self.split = {"stable": 100.0 - canary, "canary": canary}
            self.shares.append(("person", canary))

    def edit_weight(self) -> None:
        """Anything else in the service's document."""
        if not self.removed:
            self.revision += 1
            self.service_version = self.revision

    def settle(self) -> None:
        """Everything that is possible by itself, for a long time."""
        self.alive = {"n1", "n2"}
        for _ in range(30):
            for node in sorted(self.alive):
                self.apply(node)
            self.judge()
            self.look("n1")
            self.act("n1")
            self.now += EVERY


def world(gate: bool, analysed: bool, deadline: float | None) -> World:
    spec = RolloutSpec(
        pool="canary", steps=STEPS, every=EVERY, gate=gate, deadline=deadline, when=0.0,
        analysis=ANALYSIS if analysed else None,
    )  # fmt: skip
    return World(Rollout(service="web", id="r", spec=spec))


runners = st.sampled_from(["n1", "n2", "lbctl"])
nodes = st.sampled_from(["n1", "n2"])
ordinary = st.one_of(
    st.tuples(st.just("look"), runners),
    st.tuples(st.just("act"), runners),
    st.tuples(st.just("run"), runners),
    st.tuples(st.just("run"), runners),
    st.tuples(st.just("apply"), nodes),
    st.tuples(st.just("apply"), nodes),
    st.tuples(st.just("wait"), st.sampled_from([0.1, EVERY, 3 * EVERY, -20 * EVERY])),
    st.tuples(st.just("ask"), st.sampled_from([*Command])),
    st.tuples(st.just("weight"), st.none()),
    st.tuples(st.just("die"), nodes),
    st.tuples(st.just("live"), nodes),
    st.tuples(st.just("sick"), st.booleans()),
    st.tuples(st.just("judge"), st.sampled_from([None, *Outcome])),
)
rude = st.one_of(
    st.tuples(st.just("edit"), st.sampled_from([0.0, 1.0, 30.0, 100.0])),
    st.tuples(st.just("remove"), st.none()),
)


def happen(found: World, what: str, value: object) -> None:
    if what == "run":
        found.look(str(value))
        found.act(str(value))
    elif what in ("look", "act", "apply"):
        getattr(found, what)(value)
    elif what == "wait":
        assert isinstance(value, float)
        found.now += value
    elif what == "ask":
        found.ask(Command(str(value)))
    elif what == "weight":
        found.edit_weight()
    elif what == "die":
        found.alive -= {str(value)}
    elif what == "live":
        found.alive |= {str(value)}
    elif what == "sick":
        found.sick = bool(value)
    elif what == "judge":
        found.outcome = None if value is None else Outcome(str(value))
        found.judge()
    elif what == "edit":
        assert isinstance(value, float)
        found.edit(value)
    else:
        found.removed = True
        found.service_version = 0


worlds = st.builds(world, st.booleans(), st.booleans(), st.sampled_from([None, 25.0, 500.0]))


def check(found: World) -> None:
    # No step twice, and none left out but by promotion.
    assert found.steps_written == sorted(set(found.steps_written))
    history = found.rollout.status.history
    written = [(each.step, each.phase) for each in history if each.split is not None]
    assert len(written) == len(set(written))
    # While nobody has ended it, the canary's share only grows by it.
    cut = len(found.shares) if found.aborting_since is None else found.aborting_since
    by_rollout = [share for who, share in found.shares[:cut] if who == "rollout"]
    growing = by_rollout[:-1] if found.aborting_since is not None else by_rollout
    assert growing == sorted(growing)


@settings(max_examples=400, deadline=None)
@given(worlds, st.lists(ordinary, max_size=60))
def test_after_an_abort_the_share_only_falls_and_stays_0(
    found: World, events: list[tuple[str, object]]
) -> None:
    for what, value in events:
        was = found.rollout.status
        share = found.split.get("canary", 0.0)
        happen(found, what, value)
        if was.ending is not None:
            assert found.split.get("canary", 0.0) <= share
        elif found.rollout.status.ending is not None:
            assert found.split.get("canary", 0.0) == 0
            assert same_split(found.split, BEFORE)
    check(found)
    found.settle()
    check(found)
    status = found.rollout.status
    if status.ending is not None:
        assert status.phase is Phase.ABORTED
        assert same_split(found.split, BEFORE)
        assert not canary.holding(found.rollout, found.view().nodes)
    if status.phase is Phase.PROMOTED:
        assert same_split(found.split, {"canary": 100.0})


@settings(max_examples=400, deadline=None)
@given(worlds, st.lists(st.one_of(ordinary, ordinary, rude), max_size=60))
def test_who_edits_the_split_has_the_last_word(found: World, events: list[tuple[str, object]]) -> None:
    for what, value in events:
        happen(found, what, value)
    found.settle()
    status = found.rollout.status
    written = list(found.shares)
    if found.removed:
        assert status.phase in OVER
    elif written and written[-1][0] == "person" and status.phase in OVER:
        theirs = written[-1][1]
        assert found.split == {"stable": 100.0 - theirs, "canary": theirs}
    edited = [index for index, (who, _) in enumerate(written) if who == "person"]
    if edited and status.wrote is not None:
        # A rollout that began before writes nothing over an edit that was another split than its own.
        for index in edited:
            after = [share for who, share in written[index + 1 :] if who == "rollout"]
            mine = [share for who, share in written[:index] if who == "rollout"]
            if mine and after:
                assert written[index][1] in (mine[-1], 0.0, 1.0)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("analysed", [False, True])
def test_left_alone_it_is_promoted(gate: bool, analysed: bool) -> None:
    found = world(gate, analysed, None)
    found.outcome = Outcome.PASS
    for _ in range(len(STEPS) + 1):
        found.settle()
        found.ask(Command.RESUME)
    found.settle()
    assert found.rollout.status.phase is Phase.PROMOTED
    assert found.steps_written == [1, 2, 3]
    assert [share for _, share in found.shares] == [*STEPS, 100.0]


@pytest.mark.parametrize("outcome", [None, *(each for each in Outcome if each is not Outcome.PASS)])
def test_without_a_good_verdict_it_is_never_promoted(outcome: Outcome | None) -> None:
    found = world(False, True, None)
    found.outcome = outcome
    found.settle()
    status = found.rollout.status
    assert found.steps_written == [1]
    assert status.phase is Phase.ABORTED
    assert status.ending is (Ending.ANALYSIS if outcome is Outcome.FAIL else Ending.INCONCLUSIVE)
