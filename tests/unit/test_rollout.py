"""The state machine of rollouts: every phase with every event, and what the table can't say."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from lb.core import canary, splits
from lb.core import rollout as core
from lb.core.canary import View
from lb.core.rollout import TABLE, Event, decide
from lb.model.analysis import Analysis
from lb.model.evidence import Outcome
from lb.model.objects import (
    Admin,
    Backend,
    Service,
)
from lb.model.reports import BackendHealth, NodeStatus
from lb.model.rollout import (
    OVER,
    Ask,
    Command,
    Ending,
    Phase,
    Rollout,
    RolloutSpec,
    RolloutStatus,
)

NOW = 1000.0
EVERY = 60.0
DEADLINE = 600.0
VERSION = 7
ANALYSIS = Analysis.model_validate({"metrics": [{"name": "resets"}]})
BEFORE = {"stable": 100.0}


def spec(**fields: Any) -> RolloutSpec:
    found = {"pool": "canary", "steps": (5, 50), "every": EVERY, "when": NOW, **fields}
    return RolloutSpec.model_validate(found)


def service(split: dict[str, float]) -> Service:
    return Service(name="web", vip=IPv4Address("198.51.100.1"), port=80, split=split)


def backend(name: str, pool: str = "stable", **fields: Any) -> Backend:
    return Backend(service="web", name=name, address=IPv4Address("203.0.113.1"), pool=pool, **fields)


def node(name: str, revision: int = VERSION, canary: float = 0.0, **health: str) -> NodeStatus:
    return NodeStatus(
        node=name,
        version="1",
        pid=1,
        started=0.0,
        revision=revision,
        links=(),
        pin_dir="/",
        shares={"web": {"stable": 100 - canary, "canary": canary}} if canary else {},
        health={
            f"web/{backend}": BackendHealth(state=state, since=0.0, share=1.0)
            for backend, state in health.items()
        },
    )


BACKENDS = (backend("b1"), backend("c1", "canary"))
LIVE = [phase for phase in Phase if phase not in OVER]


def at(phase: Phase, **fields: Any) -> tuple[Rollout, View]:
    """A rollout in this phase, and a view of it in which nothing happens."""
    step = {Phase.PENDING: 0, Phase.PROMOTING: 2, Phase.PROMOTED: 2}.get(phase, 1)
    wrote: dict[str, float] | None = {"stable": 95.0, "canary": 5.0}
    if phase is Phase.PENDING:
        wrote = None
    elif phase in (Phase.ABORTING, Phase.ABORTED):
        wrote = BEFORE
    elif phase in (Phase.PROMOTING, Phase.PROMOTED):
        wrote = {"stable": 0.0, "canary": 100.0}
    status = RolloutStatus(
        phase=phase,
        since=NOW,
        begun=NOW,
        step=step,
        before=None if phase is Phase.PENDING else BEFORE,
        wrote=wrote,
        ending=Ending.ANALYSIS if phase in (Phase.ABORTING, Phase.ABORTED) else None,
        words="before" if phase in (Phase.ABORTING, Phase.ABORTED) else "",
    )
    rollout = Rollout(service="web", id="r1", spec=spec(**fields), status=status)
    nodes = {} if phase is Phase.PENDING else {"n1": node("n1", VERSION - 1), "n2": node("n2")}
    return rollout, View(service(wrote or BEFORE), VERSION, BACKENDS, nodes)


def ask(rollout: Rollout, command: Command) -> Rollout:
    return core.asked(rollout, Ask(command=command, who="alice@ci", when=NOW))


def having(rollout: Rollout, **status: Any) -> Rollout:
    return rollout.model_copy(update={"status": rollout.status.model_copy(update=status)})


APPLIED = {"n1": node("n1"), "n2": node("n2")}


def happening(event: Event, phase: Phase) -> tuple[Rollout, View, float]:
    """That phase, and this event in what is seen of it."""
    analysed = {"analysis": ANALYSIS}
    rollout, view = at(phase, **analysed)
    now = NOW + 1
    over = NOW + EVERY
    if event is Event.BEGUN:
        return rollout, replace(view, nodes={"n1": node("n1", 0)}), now
    if event is Event.REFUSED:
        return rollout, replace(view, backends=BACKENDS[:1], nodes={}), now
    if event is Event.APPLIED:
        return rollout, replace(view, nodes=APPLIED), now
    if event is Event.CLEARED:
        return rollout, replace(view, nodes=APPLIED), now
    if event is Event.TIME_UP:
        return rollout, view, over
    if event in (Event.NEXT, Event.GATED, Event.LAST):
        # Without an analysis a step is good when its time is over.
        fields = analysed if phase is Phase.ANALYSING else {}
        rollout, view = at(phase, **fields, gate=event is Event.GATED)
        rollout = having(rollout, judged=Outcome.PASS if fields else None)
        return having(rollout, step=2) if event is Event.LAST else rollout, view, over
    if event is Event.FAILED:
        return having(rollout, judged=Outcome.FAIL, reason="5 % of 0.1 %"), view, now
    if event is Event.UNSURE:
        return having(rollout, judged=Outcome.NOT_ENOUGH_DATA), view, NOW + 3 * EVERY
    if event is Event.UNHEALTHY:
        sick = {name: node(name, VERSION - 1, c1="unhealthy") for name in ("n1", "n2")}
        return rollout, replace(view, nodes=sick), now
    if event is Event.LATE:
        rollout, view = at(phase, **analysed, deadline=DEADLINE)
        return rollout, view, NOW + DEADLINE
    if event is Event.OVERRIDDEN:
        return rollout, replace(view, service=service({"stable": 70.0, "canary": 30.0})), now
    if event is Event.REMOVED:
        return rollout, replace(view, service=None, version=0), now
    command = {e: c for c, e in core._ASKED.items()}[event]
    return ask(rollout, command), view, now


EVENT_ALSO = {
    # What an event is taken for where it isn't in the table as such.
    (Phase.GATE, Event.RESUME): Phase.STEPPING,
    # Of a split that is already applied, both words mean the same.
    (Phase.ABORTING, Event.APPLIED): Phase.ABORTED,
    (Phase.STEPPING, Event.CLEARED): Phase.BAKING,
    (Phase.PROMOTING, Event.CLEARED): Phase.PROMOTED,
    # A canary whose backends are gone can't be used, wherever it can't be refused any more.
    **{
        (phase, Event.REFUSED): Phase.ABORTING
        for phase in (Phase.STEPPING, Phase.BAKING, Phase.ANALYSING, Phase.GATE, Phase.PAUSED)
    },
    (Phase.PROMOTING, Event.REFUSED): Phase.ABORTING,
    # By then the step's time is over, too.
    (Phase.BAKING, Event.UNSURE): Phase.ANALYSING,
    # Before the first step nodes that are there begin it; and a split of others can be in the way.
    (Phase.PENDING, Event.APPLIED): Phase.STEPPING,
    (Phase.PENDING, Event.CLEARED): Phase.STEPPING,
    (Phase.PENDING, Event.OVERRIDDEN): Phase.ABORTED,
}


@pytest.mark.parametrize("phase", [*Phase])
@pytest.mark.parametrize("event", [*Event])
def test_every_phase_with_every_event(phase: Phase, event: Event) -> None:
    rollout, view, now = happening(event, phase)
    expected = TABLE.get((phase, event), EVENT_ALSO.get((phase, event)))
    decision = decide(rollout, view, now, "n1")
    if expected is None:
        if rollout.status.ask is None or phase in OVER:
            assert decision is None
        else:  # a command that makes no sense here is forgotten
            assert decision is not None
            assert decision.split is None
            assert decision.rollout == core.asked(rollout, None)
        return
    assert decision is not None
    assert decision.rollout.status.phase is expected
    assert decision.rollout.status.ask is None
    assert decision.rollout.status.history[-1].phase is expected
    assert decision.rollout.status.since == now


@pytest.mark.parametrize("phase", [*Phase])
def test_nothing_happens_where_nothing_did(phase: Phase) -> None:
    rollout, view = at(phase, analysis=ANALYSIS)
    assert decide(rollout, view, NOW + 1, "n1") is None


def test_nothing_leads_out_of_the_end() -> None:
    assert not any(before in OVER for before, _ in TABLE)
    assert {after for (before, _), after in TABLE.items() if before is Phase.ABORTING} == {Phase.ABORTED}
    # An abort, a deadline, a canary that can't be used: from every phase that has taken a step.
    for phase in set(LIVE) - {Phase.PENDING, Phase.ABORTING}:
        for event in (Event.ABORT, Event.LATE, Event.UNHEALTHY):
            assert TABLE[phase, event] is Phase.ABORTING
        for event in (Event.OVERRIDDEN, Event.REMOVED):
            assert TABLE[phase, event] is Phase.ABORTED


def test_every_phase_can_be_reached() -> None:
    assert set(TABLE.values()) == set(Phase) - {Phase.PENDING}
    assert {event for _, event in TABLE} == set(Event)


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "share", "after"),
    [
        ({"stable": 100}, 5, {"stable": 95, "canary": 5}),
        ({"stable": 100}, 100, {"stable": 0, "canary": 100}),
        ({"a": 60, "b": 40}, 10, {"a": 54, "b": 36, "canary": 10}),
        ({"a": 60, "b": 40, "canary": 0}, 50, {"a": 30, "b": 20, "canary": 50}),
        ({"a": 33.3, "b": 33.3, "c": 33.4}, 1 / 3, None),
    ],
)
def test_the_others_keep_their_proportions(
    before: dict[str, float], share: float, after: dict[str, float] | None
) -> None:
    found = splits.split_at(before, "canary", share)
    assert service(found).split == found  # it sums to 100
    assert found["canary"] == share
    if after is not None:
        assert found == pytest.approx(after)


def test_a_step_writes_its_split_once() -> None:
    rollout, view = at(Phase.PENDING)
    begun = decide(rollout, replace(view, nodes=APPLIED), NOW, "n1")
    assert begun is not None
    assert begun.split == {"stable": 95, "canary": 5}
    status = begun.rollout.status
    assert (status.step, status.before, status.wrote) == (1, BEFORE, begun.split)
    assert status.history[-1].replaced == VERSION
    view = replace(view, service=service(dict(begun.split)), nodes=APPLIED)
    baking = decide(begun.rollout, view, NOW + 1, "n1")
    assert baking is not None
    assert (baking.rollout.status.phase, baking.split) == (Phase.BAKING, None)
    paused = decide(ask(baking.rollout, Command.PAUSE), view, NOW + 2, "n1")
    assert paused is not None
    again = decide(ask(paused.rollout, Command.RESUME), view, NOW + 3, "n1")
    assert again is not None
    assert (again.rollout.status.phase, again.rollout.status.step, again.split) == (
        Phase.STEPPING, 1, None,
    )  # fmt: skip
    assert again.rollout.status.history[-1].by == "alice@ci"


def test_an_abort_goes_back_to_the_split_of_before_and_says_who() -> None:
    rollout, view = at(Phase.BAKING)
    aborted = decide(ask(rollout, Command.ABORT), view, NOW + 1, "n1")
    assert aborted is not None
    assert aborted.split == BEFORE
    assert aborted.rollout.status.ending is Ending.PERSON
    assert aborted.rollout.status.by == "alice@ci"
    # Kernels that hold slots for the canary, or have not applied it, are waited for.
    view = replace(view, service=service(BEFORE), version=9)
    for nodes in (
        {},
        {"n1": node("n1", 8)},
        {"n1": node("n1", 9), "n2": node("n2", 9, canary=5.0)},
    ):
        assert decide(aborted.rollout, replace(view, nodes=nodes), NOW + 2, "n1") is None
    cleared = replace(view, nodes={"n1": node("n1", 9), "n2": node("n2", 10)})
    over = decide(aborted.rollout, cleared, NOW + 2, "n1")
    assert over is not None
    assert over.rollout.status.phase is Phase.ABORTED
    assert over.rollout.status.ending is Ending.PERSON


def test_a_lost_node_is_waited_for_a_moment_and_named() -> None:
    rollout, view = at(Phase.STEPPING)
    view = replace(view, nodes=APPLIED, lost=("n3",))
    assert decide(rollout, view, NOW + 1, "n1") is None
    assert canary.awaits(rollout, view) == "node n3"
    assert core.due(rollout, NOW + 1) == NOW + canary.PATIENCE
    baking = decide(rollout, view, NOW + canary.PATIENCE, "n1")
    assert baking is not None
    assert "n3" in baking.rollout.status.history[-1].words


def test_the_steps_time_begins_when_all_have_applied_it() -> None:
    rollout, view = at(Phase.BAKING)
    assert core.due(rollout, NOW + 10) == NOW + EVERY
    assert decide(rollout, view, NOW + EVERY - 0.1, "n1") is None
    after = decide(rollout, view, NOW + EVERY, "n1")
    assert after is not None
    assert after.rollout.status.step == 2
    assert after.split == {"stable": 50, "canary": 50}


def test_after_the_last_step_the_canary_has_everything() -> None:
    rollout, view = at(Phase.BAKING)
    last = having(rollout, step=2)
    promoting = decide(last, view, NOW + EVERY, "n1")
    assert promoting is not None
    assert promoting.split == {"stable": 0, "canary": 100}
    assert promoting.rollout.status.phase is Phase.PROMOTING


@pytest.mark.parametrize("command", [Command.STEP, Command.RESUME])
def test_going_on_at_the_last_gate_promotes(command: Command) -> None:
    rollout, view = at(Phase.GATE)
    decision = decide(ask(having(rollout, step=2), command), view, NOW + 1, "n1")
    assert decision is not None
    assert decision.rollout.status.phase is Phase.PROMOTING


def test_edits_of_others_that_leave_the_split_are_no_reason_to_stop() -> None:
    rollout, view = at(Phase.BAKING)
    edited = service({"stable": 95.0, "canary": 5.0, "other": 0.0}).model_copy(update={"window": 60})
    assert decide(rollout, replace(view, service=edited, version=99), NOW + 1, "n1") is None


def test_a_person_wins_over_an_abort_that_is_under_way() -> None:
    rollout, view = at(Phase.ABORTING)
    theirs = replace(view, service=service({"canary": 100.0}))
    decision = decide(rollout, theirs, NOW + 1, "n1")
    assert decision is not None
    assert decision.split is None
    assert decision.rollout.status.phase is Phase.ABORTED
    assert decision.rollout.status.ending is Ending.ANALYSIS  # that is why it was aborted


# --- clocks ---------------------------------------------------------------------------------------


def test_times_of_another_clock_become_ours() -> None:
    def times(found: Rollout) -> tuple[float, float, float]:
        return found.status.begun, found.status.since, found.status.looked

    rollout, _ = at(Phase.BAKING)
    rollout = having(rollout, begun=100.0, since=200.0, looked=250.0)
    assert core.on_time(rollout, 300.0) == rollout
    assert times(core.on_time(rollout, 3900.0, 3600.0)) == (3700.0, 3800.0, 3850.0)
    assert times(core.on_time(rollout, 280.0, -20.0)) == (80.0, 180.0, 230.0)
    assert times(core.on_time(rollout, 150.0)) == (100.0, 150.0, 150.0)
    # What has no time yet gets none; a node that takes it up says when.
    pending, _ = at(Phase.PENDING)
    pending = having(pending, begun=0.0, since=0.0)
    for jump in (-3600.0, 0.0, 3600.0):
        assert times(core.on_time(pending, 300.0, jump)) == (300.0, 0.0, 0.0)


@pytest.mark.parametrize("phase", LIVE)
def test_nothing_is_decided_while_the_service_can_not_be_read(phase: Phase) -> None:
    """It is not gone. What was asked is kept for then."""
    rollout, view = at(phase, deadline=1.0)
    broken = replace(view, service=None, unreadable="port: is missing")
    for each in (rollout, ask(rollout, Command.ABORT), having(rollout, judged=Outcome.FAIL)):
        assert core.decide(each, broken, NOW + 1000, "n1") is None
    awaited = "a document of service 'web' that can be read: port: is missing"
    assert canary.awaits(rollout, broken) == awaited


def test_nobodys_deadline_counts_before_a_node_takes_it_up() -> None:
    pending, view = at(Phase.PENDING, deadline=DEADLINE)
    pending = having(pending, begun=0.0, since=0.0)
    assert core.deadline(pending) == float("inf")
    assert decide(pending, view, NOW + 10 * DEADLINE, "n1") is None
    assert core.deadline(core.on_time(pending, NOW + 7)) == NOW + 7 + DEADLINE


# --- the canary's backends ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backends", "why"),
    [
        ((backend("b1"),), "no backends"),
        ((backend("b1"), backend("c1", "canary", weight=0)), "takes new flows"),
        ((backend("c1", "canary", admin=Admin.DRAIN),), "takes new flows"),
    ],
)
def test_what_can_not_begin(backends: tuple[Backend, ...], why: str) -> None:
    assert why in canary.refusal(spec(), service(BEFORE), backends)
    rollout, view = at(Phase.PENDING)
    decision = decide(rollout, replace(view, backends=backends, nodes=APPLIED), NOW, "n1")
    assert decision is not None
    assert decision.split is None
    assert decision.rollout.status.ending is Ending.REFUSED


def test_a_pool_with_a_share_or_the_backup_can_not_begin() -> None:
    assert "5 %" in canary.refusal(spec(), service({"stable": 95.0, "canary": 5.0}), BACKENDS)
    backup = service(BEFORE).model_copy(update={"backup": "canary"})
    assert "backup" in canary.refusal(spec(), backup, BACKENDS)
    assert canary.refusal(spec(), service({"stable": 100.0, "canary": 0.0}), BACKENDS) == ""


def test_most_nodes_have_to_find_it_unhealthy() -> None:
    rollout, view = at(Phase.BAKING)
    three = (backend("b1"), backend("c1", "canary"), backend("c2", "canary"))

    def usable(**nodes: NodeStatus) -> list[str]:
        return canary.usable_backends(rollout, replace(view, backends=three, nodes=nodes))

    good = {"b1": "healthy", "c1": "healthy", "c2": "healthy"}
    bad = {**good, "c1": "unhealthy"}
    assert usable(a=node("a", **good), b=node("b", **bad), c=node("c", **bad)) == ["c2"]
    assert usable(a=node("a", **good), b=node("b", **good), c=node("c", **bad)) == ["c1", "c2"]
    assert usable(a=node("a", **bad)) == ["c2"]
    # A node that alone finds everything bad is likelier to be broken itself.
    worst = dict.fromkeys(good, "unhealthy")
    assert usable(a=node("a", **good), b=node("b", **good), c=node("c", **worst)) == ["c1", "c2"]


def test_it_begins_when_a_check_has_passed() -> None:
    rollout, view = at(Phase.PENDING)
    assert decide(rollout, replace(view, nodes={"n1": node("n1", c1="unknown")}), NOW, "n1") is None
    unknown = replace(view, nodes={"n1": node("n1", c1="unknown")})
    assert "can be used" in canary.awaits(rollout, unknown)
    healthy = replace(view, nodes={"n1": node("n1", c1="healthy")})
    assert decide(rollout, healthy, NOW, "n1") is not None


# --- commands and documents -----------------------------------------------------------------------


def test_which_commands_make_sense() -> None:
    def sensible(phase: Phase) -> set[Command]:
        rollout, _ = at(phase)
        return {each for each in Command if core.may(rollout, each)}

    everything = set(Command)
    assert sensible(Phase.BAKING) == everything - {Command.RESUME}
    assert sensible(Phase.PAUSED) == everything - {Command.PAUSE}
    assert sensible(Phase.GATE) == everything
    assert sensible(Phase.PENDING) == {Command.ABORT}
    assert sensible(Phase.PROMOTING) == {Command.ABORT}
    for phase in (Phase.ABORTING, Phase.ABORTED, Phase.PROMOTED):
        assert sensible(phase) == set()


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": ()},
        {"steps": (5, 5)},
        {"steps": (5, 1)},
        {"steps": (0, 5)},
        {"steps": (50, 101)},
        {"steps": tuple(range(1, 60))},
        {"every": 0},
        {"every": float("nan")},
        {"deadline": -1},
        {"pool": "No Name"},
        {"notify": "file:///etc/passwd"},
        {"when": None},
    ],
)
def test_specs_that_make_no_sense(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        spec(**fields)
