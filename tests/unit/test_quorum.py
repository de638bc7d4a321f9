"""lb/core/quorum.py: what several nodes' findings come to."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core import quorum
from lb.core.health import Record, State
from lb.core.quorum import Vote

UP, DOWN, NEW = State.HEALTHY, State.UNHEALTHY, State.UNKNOWN
STATES = {"h": UP, "u": DOWN}


def record(state: State, since: float = 50.0, ramp_from: float | None = None) -> Record:
    return Record(address="203.0.113.1", added=0.0, since=since, state=state, ramp_from=ramp_from)


def ballots(**nodes: str) -> dict[str, dict[str, Vote]]:
    """a="hu-": node a finds b0 healthy and b1 unhealthy, and doesn't know of b2."""
    return {
        node: {f"web/b{n}": Vote(STATES[mark], 1.0) for n, mark in enumerate(marks) if mark != "-"}
        for node, marks in nodes.items()
    }


def outcome(path: str = "web/b0", own: State = UP, **nodes: str) -> State:
    found = ballots(**nodes)
    return quorum.agreed(record(own), quorum.electorate(found, quorum.suspects(found), path)).state


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ("h", UP),
        ("u", DOWN),
        ("hu", UP),
        ("uu", DOWN),
        ("huu", DOWN),
        ("hhu", UP),
        ("hhuu", UP),
        ("huuu", DOWN),
        ("uu-", DOWN),
        ("u--", DOWN),
    ],
)
def test_more_than_half_takes_a_backend_out(votes: str, expected: State) -> None:
    nodes = {f"n{number}": mark for number, mark in enumerate(votes)}
    for own in (UP, DOWN):  # whatever this node itself found: it has its vote like any other
        assert outcome(own=own, **nodes) is expected


def test_who_knows_nothing_of_a_backend_waits_for_its_own_check() -> None:
    assert outcome(own=NEW, a="-", b="h") is NEW
    assert outcome(own=NEW, a="-", b="u") is DOWN
    own = record(NEW)
    assert quorum.agreed(own, []) is own


def test_one_that_is_alone_with_most_is_suspected() -> None:
    assert quorum.suspects(ballots(a="uuuu", b="hhhh")) == {"a"}
    assert quorum.suspects(ballots(a="uuuh", b="hhhh", c="hhhh")) == {"a"}
    assert quorum.suspects(ballots(a="uuhh", b="hhhh")) == set()  # half is not most
    assert quorum.suspects(ballots(a="uuuu", b="huuu")) == set()  # the other one says so, too
    assert quorum.suspects(ballots(a="uuuu", b="----")) == set()  # nobody else looks
    assert quorum.suspects(ballots(a="uuuu")) == set()
    assert quorum.suspects(ballots(a="u", b="h")) == set()  # of one backend nobody can tell


def test_the_vote_of_a_suspect_does_not_count() -> None:
    # b3 is down for both, so it is down also when only b's vote counts.
    assert outcome("web/b3", own=UP, a="uuuu", b="hhhu") is DOWN
    # c alone is against b3, with a suspect beside it.
    assert quorum.suspects(ballots(a="uuuu", b="hhhh", c="hhhu")) == {"a"}
    assert outcome("web/b3", own=UP, a="uuuu", b="hhhh", c="hhhu") is UP
    # Where nobody else has a vote it is better than none.
    assert outcome("web/b4", own=UP, a="uuuuu", b="hhhh-") is DOWN


def test_slow_start_counts_from_when_the_fleet_let_it_in() -> None:
    """Two of three found it healthy, at 10 and 20: from 20 on there was no majority against it."""
    votes = [Vote(UP, 10.0), Vote(UP, 20.0), Vote(DOWN, 5.0)]
    assert quorum.agreed(record(UP, 10.0, ramp_from=10.0), votes).ramp_from == 10.0
    assert quorum.agreed(record(UP, 20.0, ramp_from=20.0), votes).ramp_from == 20.0
    assert quorum.agreed(record(DOWN, 5.0), votes).ramp_from == 20.0
    late = [Vote(UP, 10.0), Vote(UP, 20.0), Vote(UP, 90.0)]
    assert quorum.agreed(record(UP, 90.0, ramp_from=90.0), late).ramp_from == 20.0
    never = record(UP, 90.0)  # it took flows before there was a check
    assert quorum.agreed(never, late) is never


MARKS = st.sampled_from([UP, DOWN, None])
FLEETS = st.integers(1, 6).flatmap(
    lambda backends: st.lists(
        st.lists(MARKS, min_size=backends, max_size=backends), min_size=1, max_size=5
    )
)


def as_ballots(fleet: list[list[State | None]]) -> Mapping[str, Mapping[str, Vote]]:
    return {
        f"n{node}": {f"web/b{n}": Vote(mark, 1.0) for n, mark in enumerate(marks) if mark}
        for node, marks in enumerate(fleet)
    }


@given(FLEETS, st.randoms(use_true_random=False))
def test_every_node_comes_to_the_same_end(fleet: list[list[State | None]], dice: object) -> None:
    """Whatever it found itself (but nothing at all), and in whatever order it heard of the others."""
    found = as_ballots(fleet)
    names = list(found)
    dice.shuffle(names)  # type: ignore[attr-defined]
    for path in {path for votes in found.values() for path in votes}:
        ends = set()
        for order in (found, {name: found[name] for name in names}):
            for votes in found.values():
                if path in votes:
                    voters = quorum.electorate(order, quorum.suspects(order), path)
                    ends.add(quorum.agreed(record(votes[path].state), voters).state)
        assert len(ends) == 1


@given(FLEETS)
def test_what_all_agree_on_stands(fleet: list[list[State | None]]) -> None:
    found = as_ballots(fleet)
    suspected = quorum.suspects(found)
    for path in {path for votes in found.values() for path in votes}:
        states = {votes[path].state for votes in found.values() if path in votes}
        if len(states) == 1:
            voters = quorum.electorate(found, suspected, path)
            for own in (UP, DOWN):
                assert {quorum.agreed(record(own), voters).state} == states


@given(FLEETS, st.integers(0, 4), st.integers(0, 5))
def test_one_more_who_finds_it_healthy_never_takes_it_out(
    fleet: list[list[State | None]], node: int, backend: int
) -> None:
    """By the votes alone: who is suspected changes with them."""
    node, backend = node % len(fleet), backend % len(fleet[0])
    better = [list(marks) for marks in fleet]
    better[node][backend] = UP
    path = f"web/b{backend}"

    def state(marks: list[list[State | None]]) -> State:
        return quorum.agreed(record(UP), quorum.electorate(as_ballots(marks), frozenset(), path)).state

    assert not (state(fleet) is UP and state(better) is DOWN)


@given(FLEETS)
def test_nodes_that_agree_are_never_suspected(fleet: list[list[State | None]]) -> None:
    found = quorum.suspects(as_ballots(fleet))
    assert not {"n0", "n1"} & quorum.suspects(as_ballots([fleet[0], fleet[0], *fleet[1:]]))
    # Of a fleet in which all check the same, at most one can be alone with most.
    if all(mark for marks in fleet for mark in marks):
        assert len(found) <= 1


@given(st.sampled_from([UP, DOWN, NEW]), st.floats(0, 100))
def test_a_node_without_others_goes_by_what_it_found(state: State, since: float) -> None:
    own = record(state, since, ramp_from=since if state is UP else None)
    found = {"": {"web/b0": own_vote}} if (own_vote := quorum.vote(own)) else {"": {}}
    assert quorum.agreed(own, quorum.electorate(found, quorum.suspects(found), "web/b0")) is own
