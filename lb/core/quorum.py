"""The health of backends as a fleet sees it: what nodes found, put together. Pure.

Theory of operation. Each node checks by itself, and reports what it found (never what was agreed, so
that no opinion feeds itself). Each counts the votes on its own, of the nodes that are alive:

- A *vote* is healthy or unhealthy. Who has not found out has none. Who ejected a backend by what its
  data path saw says unhealthy (lb/core/passive.py).
- A backend is out where more than half of its votes say unhealthy. One node decides alone; of two both
  have to agree, as with any even split: a server that somebody can reach is likelier to work than not,
  and to take it out for all would turn the fault of one node's network into everybody's.
- A node that is the *only* one to find a backend unhealthy, for two or more, and for more than half of
  those that others have votes on, is *suspected*: it is likelier that its own network is broken. Its
  votes don't count while there are others, its own count included. "Only one" makes sure that nodes
  which agree are never suspected: one backend has one lonely accuser at most.
- Nobody takes flows on a node whose own checks know nothing of it yet, whatever others say; but those
  that others found unhealthy are so there, too.
- Slow start is told from when the fleet let a backend in, so that nodes take its steps together.

Nodes that hold the same reports come to the same end. One that is cut off has its own vote alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from lb.core.health import Record, State
from lb.model.health import Ballot, BallotVote
from lb.model.reports import NodeStatus


class Vote(NamedTuple):
    """What a node found of a backend, and since when."""

    state: State  # never UNKNOWN
    since: float


Votes = Mapping[str, Vote]  # of one node, by service/backend

FEW = 2  # a single backend can't tell a broken server from a broken node


def reported(status: NodeStatus) -> Votes:
    """The votes in a node's report."""
    found = {
        path: Vote(State(each.state), each.since)
        for path, each in status.health.items()
        if each.state in (State.HEALTHY, State.UNHEALTHY)
    }
    ejected = {
        path: Vote(State.UNHEALTHY, each.ejection.since)
        for path, each in status.health.items()
        if each.ejection and each.state != State.UNHEALTHY
    }
    return found | ejected


def ballot(status: NodeStatus) -> Ballot:
    """The votes in a node's report, as a document for the other nodes."""
    votes = {
        path: BallotVote.model_validate({"state": each.state.value, "since": each.since})
        for path, each in reported(status).items()
    }
    return Ballot(node=status.node, votes=votes)


def cast(found: Ballot) -> Votes:
    """The votes in that document. Raises ValueError."""
    return {path: Vote(State(each.state), each.since) for path, each in found.votes.items()}


def vote(record: Record) -> Vote | None:
    """What a record is worth as a vote."""
    return None if record.state is State.UNKNOWN else Vote(record.state, record.since)


def suspects(ballots: Mapping[str, Votes]) -> frozenset[str]:
    """The nodes that are likelier to be broken than what they check. `ballots`: by node."""
    voters = Counter(path for votes in ballots.values() for path in votes)
    against = Counter(
        path
        for votes in ballots.values()
        for path, each in votes.items()
        if each.state is State.UNHEALTHY
    )
    found = set()
    for node, votes in ballots.items():
        shared = [path for path in votes if voters[path] > 1]
        lonely = [p for p in shared if votes[p].state is State.UNHEALTHY and against[p] == 1]
        if len(lonely) >= FEW and 2 * len(lonely) > len(shared):
            found.add(node)
    return frozenset(found)


def electorate(ballots: Mapping[str, Votes], suspected: frozenset[str], path: str) -> list[Vote]:
    """The votes that count for a backend."""
    all_of_them = {node: votes[path] for node, votes in ballots.items() if path in votes}
    trusted = [each for node, each in all_of_them.items() if node not in suspected]
    return trusted or list(all_of_them.values())


def agreed(own: Record, votes: Iterable[Vote]) -> Record:
    """This node's record as the votes have it (its own among them): what judge() takes."""
    votes = list(votes)
    healthy = sorted(each.since for each in votes if each.state is State.HEALTHY)
    if not votes:
        return own
    if 2 * len(healthy) < len(votes):
        return own if own.state is State.UNHEALTHY else replace(own, state=State.UNHEALTHY)
    if own.state is State.UNKNOWN:
        return own
    # It was let in when so many found it healthy that no majority was left against it.
    came = healthy[(len(votes) + 1) // 2 - 1]
    if own.state is State.HEALTHY and (own.ramp_from is None or own.ramp_from <= came):
        return own
    return replace(own, state=State.HEALTHY, ramp_from=came)
