"""What anybody may have written into the store: no number ends lbd, and what a newer node says more is
no reason to take it for lost (lb/model/document.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from lb.analysis.context import NotMeasured, number
from lb.core import quorum
from lb.core.state import DesiredState, parse
from lb.model import analysis, evidence, flows, health, history, keys, objects, reports, rollout
from lb.model.document import LATEST, Document
from lb.model.evidence import Verdict
from lb.model.flows import FlowReport
from lb.model.health import Ballot
from lb.model.objects import TableDocument
from lb.model.reports import NodeStatus
from lb.node.planning import Bases

HUGE = 10**30


def documents() -> list[type[Document]]:
    found = {
        each.__name__: each
        for module in (analysis, evidence, flows, health, history, objects, reports, rollout)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Document)
    }
    return [each for name, each in sorted(found.items()) if name not in ("Document", "Report")]


DOCUMENTS = documents()
EACH = pytest.mark.parametrize("kind", DOCUMENTS, ids=lambda kind: kind.__name__)

# What nodes write, and others only read.
TOLD = {
    *("Ballot", "BallotVote", "NodeStatus", "LinkStatus", "BackendHealth", "HealthChange", "FullReport"),
    *("EjectionReport", "Problem", "Member", "FlowReport", "FlowTotals"),
}
TIMES = {"since", "at", "until", "started", "when", "begun", "looked", "drain_until"}


def numbers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Of a JSON Schema."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield path, schema
        for key, value in schema.items():
            yield from numbers(value, path if key in ("anyOf", "items") else f"{path}.{key}")
    elif isinstance(schema, list):
        for value in schema:
            yield from numbers(value, path)


@EACH
def test_whole_numbers_and_times_have_bounds(kind: type[Document]) -> None:
    for path, schema in numbers(kind.model_json_schema()):
        if schema["type"] == "integer" or path.rpartition(".")[2] in TIMES:
            assert {"minimum", "exclusiveMinimum"} & schema.keys(), path
            assert {"maximum", "exclusiveMaximum"} & schema.keys(), path


@EACH
def test_nothing_is_infinite(kind: type[Document]) -> None:
    """But a verdict's figures, which are for people alone."""
    assert bool(kind.model_config.get("allow_inf_nan")) is (kind is Verdict)


@EACH
def test_what_only_nodes_write_may_say_more_than_is_known(kind: type[Document]) -> None:
    ignored = kind.__name__ in TOLD or kind is TableDocument
    assert kind.model_config["extra"] == ("ignore" if ignored else "forbid")


# -- slot tables -------------------------------------------------------------------------------

TABLE = {"service": "web", "backends": ["a"], "parts": {"stable": 100_000_000}, "runs": [[0, 65536]]}


def state_with(table: dict[str, Any], previous: DesiredState | None = None) -> DesiredState:
    documents = {
        keys.service("web"): {"name": "web", "vip": "203.0.113.1", "port": 80},
        keys.backend("web", "a"): {"service": "web", "name": "a", "address": "198.51.100.1"},
        keys.backend("web", "b"): {"service": "web", "name": "b", "address": "198.51.100.2"},
        keys.CONFIG: {"seed": "0" * 32},
    }
    items = [(key, json.dumps(each), 1) for key, each in documents.items()]
    revision = previous.revision + 1 if previous else 1
    return parse(revision, [*items, (keys.table("web"), json.dumps(table), revision)], previous)


@pytest.mark.parametrize(
    "fields",
    [
        {"runs": [[HUGE, 65536]]},
        {"runs": [[0, 1 << 62]] * 4 + [[0, 65536]]},  # 65536 modulo 2^64
        {"runs": [[0, 0], [0, 65536]]},
        {"runs": [[-2, 65536]]},
        {"moves": [[0, 10, 0, HUGE]]},
        {"moves": [[0, 10, 0, LATEST + 1]]},  # nanoseconds of that don't fit into 64 bits
        {"moves": [[-1, 10, 0, 1]]},
        {"steers": [["198.51.100.0/24", "stable", None, HUGE]]},
        {"parts": {"stable": HUGE}},
        {"parts": {"stable": -1}},
    ],
)
def test_a_table_that_can_not_be_is_quarantined(fields: dict[str, Any]) -> None:
    state = state_with({**TABLE, **fields})
    assert [each.where for each in state.problems] == [keys.table("web")]
    table = Bases().update(state)["web"]  # begun anew
    assert table.counts() == {"a": 32768, "b": 32768}
    assert not table.past().stirred.any()
    # Where a good one was known, that one is gone on from.
    assert state_with({**TABLE, **fields}, state_with(TABLE)).tables["web"].runs == ((0, 65536),)


def test_a_table_that_says_more_is_gone_on_from_and_left_alone() -> None:
    """To begin anew would move flows, and to write it would take away what the newer node said."""
    runs = [[1, 32768], [0, 32768]]  # as no node would begin
    state = state_with({**TABLE, "backends": ["a", "b"], "runs": runs, "hue": "red"})
    assert state.problems == ()
    bases = Bases()
    assert bases.update(state)["web"].slots[:32768].tolist() == [1] * 32768
    assert bases.unstored(state) == {}


# -- reports -----------------------------------------------------------------------------------

STATUS = {
    "node": "n2",
    "version": "9",
    "pid": 1,
    "started": 0,
    "revision": 7,
    "links": [],
    "pin_dir": "/",
}
HEALTH = {"state": "unhealthy", "since": 1.0, "share": 1.0}


def test_a_newer_nodes_status_is_read() -> None:
    more = {"hue": "red"}
    status = {
        **STATUS,
        **more,
        "links": [{"interface": "eth0", "hook": "xdp", "why": "", **more}],
        "health": {
            "web/a": {**HEALTH, **more, "history": [{"at": 1, "state": "x", "words": "", **more}]}
        },
        "problems": [{"where": "n2", "message": "", **more}],
        "full": {"web/a": {"connections": 1, "limit": 1, **more}},
    }
    member = {"node": "n2", "since": 0, **more}
    state = parse(
        8, [(keys.node("n2"), json.dumps(status), 8), (keys.member("n2"), json.dumps(member), 3)]
    )
    assert (state.problems, state.lost) == ((), ())
    assert quorum.reported(state.nodes["n2"])["web/a"].state == "unhealthy"
    votes = {"web/a": {"state": "unhealthy", "since": 1, **more}}
    assert quorum.cast(Ballot.model_validate({"node": "n2", "votes": votes, **more}))


def test_a_newer_nodes_counts_are_read() -> None:
    totals = {"opened": 3, "hue": 1}
    told = {"service": "web", "node": "n2", "vantage": "node", "epoch": "1", "at": 1, "backends": {}}
    report = FlowReport.model_validate({**told, "backends": {"a": totals}, "hue": 1})
    assert report.backends["a"].opened == 3


@pytest.mark.parametrize("since", ["NaN", "Infinity", "-Infinity", "1e308", str(LATEST + 1)])
def test_a_vote_without_a_time_that_can_be_is_none(since: str) -> None:
    vote = {"state": "healthy", "since": 1.0}
    text = json.dumps({"node": "n2", "votes": {"web/a": vote}}).replace("1.0", since)
    with pytest.raises(ValidationError):
        Ballot.model_validate_json(text)
    status = {**STATUS, "health": {"web/a": {**HEALTH, "share": 1}}}
    text = json.dumps(status).replace("1.0", since)
    with pytest.raises(ValidationError):
        NodeStatus.model_validate_json(text)


def test_times_of_a_clock_that_was_set_back_can_be_told() -> None:
    """They move with the clock, and so may be before 1970."""
    health = {"web/a": {**HEALTH, "since": -1e9}}
    NodeStatus.model_validate({**STATUS, "started": -1e9, "health": health})


@pytest.mark.parametrize("figures", [{"opened": HUGE}, {"opened": -1}, {"handshake": {str(10**9): 1}}])
def test_counts_that_can_not_be(figures: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        flows.FlowTotals.model_validate_json(json.dumps(figures))


def test_a_figure_from_outside_that_nothing_can_be_made_of() -> None:
    assert number(-1e18) == -1e18
    for each in (1e19, 1e400, HUGE, float("nan")):
        with pytest.raises(NotMeasured):
            number(each)
