"""--wait (lb/cli/wait.py)."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lb.cli import wait
from lb.cli.wait import Waited, until_applied
from lb.errors import CapacityError, DatapathError, NotAppliedError
from lb.model import keys
from lb.model.reports import NodeStatus
from lb.store.base import Put

WAIT = ("--wait", "--timeout", "30")
PROBLEM = {"where": "web/b1", "message": "no way to it", "hint": "add a route"}


def test_returns_when_all_nodes_have_applied_it(web, nodes, store):
    nodes.follow("n1")
    nodes.follow("n2")
    result = web.ok("backend", "weight", "web", "b1", "1", *WAIT)
    assert "applied by n1, n2" in result.out
    data = web.json("backend", "weight", "web", "b1", "2", *WAIT)
    assert data["applied_by"] == ["n1", "n2"]
    assert data["revision"] < store.read(keys.ROOT).revision


def test_without_a_node(web, store):
    began = time.monotonic()
    result = web("backend", "weight", "web", "b1", "1", *WAIT)
    assert result.code == 7
    assert "no node is there" in result.err
    assert "start lbd" in result.err
    assert time.monotonic() - began < 10  # it doesn't wait for what isn't there
    assert '"weight":1' in store.get(keys.backend("web", "b1")).value  # stored all the same


def test_a_wait_that_fails_tells_what_was_stored(web, nodes, store):
    nodes.follow("n1")
    nodes.put("n2", 2)
    change = ("backend", "weight", "web", "b1")
    result = web(*change, "1", "--wait", "--timeout", "0.2", "-o", "json")
    assert result.code == 7
    told = result.json
    assert told["revision"] == store.get(keys.backend("web", "b1")).mod_revision
    assert told["changed"] is True
    assert told["changes"][0]["settings"] == {"weight": {"before": 50, "after": 1}}
    assert (told["applied_by"], told["late"], told["lost"]) == (["n1"], {"n2": 2}, [])
    assert told["error"]["kind"] == "NotAppliedError"
    people = web(*change, "2", "--wait", "--timeout", "0.2")
    assert people.code == 7
    assert people.out.splitlines()[0] == "~ backend web/b1: weight 1 -> 2"
    assert people.out.splitlines()[1].startswith("stored at revision ")


def test_a_problem_or_nobody_there_tells_what_was_stored(web, nodes, store):
    change = ("backend", "weight", "web", "b1")
    told = web(*change, "1", *WAIT, "-o", "json").json
    assert told["revision"] == store.get(keys.backend("web", "b1")).mod_revision
    assert (told["applied_by"], told["late"]) == ([], {})
    nodes.follow("n1", problems=(PROBLEM,))
    told = web(*change, "2", *WAIT, "-o", "json").json
    assert told["error"]["kind"] == "DatapathError"
    assert told["revision"] == store.get(keys.backend("web", "b1")).mod_revision
    assert told["applied_by"] == ["n1"]


def test_names_the_nodes_that_are_late(web, nodes):
    nodes.put("n1", 10**6)
    nodes.put("n2", 2, problems=({"where": "eth0", "message": "link is down"},))
    nodes.put("n3", 1)
    result = web("backend", "weight", "web", "b1", "1", "--wait", "--timeout", "0.2", "-o", "json")
    assert result.code == 7
    error = result.json["error"]
    assert "n2 (at revision 2), n3 (at revision 1)" in error["message"]
    assert "n1" not in error["message"]
    assert "link is down" in error["hint"]


def test_waits_for_ever_if_asked(web, nodes):
    nodes.follow("n1")
    assert (
        "applied by n1"
        in web.ok("backend", "weight", "web", "b1", "1", "--wait", "--timeout", "inf").out
    )


def test_no_wait_does_not(web, nodes):
    nodes.put("n1", 0)
    web.ok("backend", "weight", "web", "b1", "1")
    web.ok("backend", "weight", "web", "b1", "2", "--no-wait")
    web.ok("backend", "weight", "web", "b1", "3", "--wait", "--dry-run")


def test_unchanged_waits_for_what_is_there(web, nodes):
    nodes.put("n1", 1)
    behind = web("backend", "weight", "web", "b1", "50", "--wait", "--timeout", "0.1")
    assert behind.code == 7
    nodes.put("n1", 4)  # the revision of the last change; the node's own reports come after it
    result = web.ok("backend", "weight", "web", "b1", "50", *WAIT)
    assert "unchanged" in result.out
    assert "applied by n1" in result.out


@pytest.mark.parametrize("where", ["web/b1", "/lb/v1/backends/web/b1", "web", "/lb/v1/services/web"])
def test_a_nodes_problem_with_the_changed_object(web, nodes, where):
    nodes.follow("n1", problems=({**PROBLEM, "where": where},))
    result = web("backend", "weight", "web", "b1", "1", *WAIT)
    assert result.code == 6
    assert "node n1 could not apply it" in result.err
    assert "no way to it" in result.err
    assert "hint: add a route" in result.err


def test_a_full_map_has_its_own_code(web, nodes):
    full = {
        "where": "web/b1",
        "message": "backends map is full (8)",
        "hint": "raise limits.backends",
        "kind": "CapacityError",
    }
    nodes.follow("n1", problems=(full,))
    assert web("backend", "weight", "web", "b1", "1", *WAIT).code == 8


def test_what_is_left_out_without_a_word_of_its_own_is_not_applied(web, nodes):
    nodes.follow("n1", left_out=("web/b1", "api"))
    result = web("backend", "weight", "web", "b1", "1", *WAIT)
    assert result.code == 8
    assert "stored, but node n1 has no room for web/b1" in result.err
    web.ok("backend", "weight", "web", "b2", "1", *WAIT)


def test_problems_of_others_do_not_matter(web, nodes):
    nodes.follow("n1", problems=({**PROBLEM, "where": "web/b2"},))
    web.ok("backend", "weight", "web", "b1", "1", *WAIT)


@pytest.mark.parametrize("where", [keys.service("web"), "n1"])
def test_a_warning_is_no_failure(web, nodes, where):
    nodes.follow("n1", problems=({**PROBLEM, "where": where, "warning": True},))
    web.ok("backend", "weight", "web", "b1", "1", *WAIT)


def test_what_stops_a_node_as_a_whole(nodes, store):
    """It stays at its old revision, and its problem is under its own name."""
    old = {"where": "n1", "message": "pinned map is not as lb.toml says", "hint": ""}
    new = {
        "where": "n1",
        "message": "vips map is full (8 entries)",
        "hint": "raise limits.vips",
        "kind": "CapacityError",
    }
    nodes.put("n1", 1, problems=(old,))
    before = {"n1": reported(store, "n1")}
    nodes.put("n1", 1, problems=(old, new))
    with pytest.raises(CapacityError, match="vips map is full"):
        until_applied(store, 99, 30, set(), before)
    with pytest.raises(NotAppliedError, match="n1"):  # known before: no news of this change
        until_applied(store, 99, 0, set(), {"n1": reported(store, "n1")})


def reported(store, name):
    return NodeStatus.model_validate_json(store.get(keys.node(name)).value)


def test_a_node_that_leaves_is_not_waited_for(nodes, store):
    lease = store.grant(1000)
    nodes.put("n2", 0)
    status = store.get(keys.node("n2")).value.replace('"n2"', '"n1"')
    store.commit([Put(keys.node("n1"), status, lease=lease)])
    nodes.put("n2", 50)

    class Leaving:
        """The store, whose node n1 leaves when the watch has begun."""

        def read(self, prefix):
            return store.read(prefix)

        def watch(self, prefix, *, after):
            watch = store.watch(prefix, after=after)
            store.revoke(lease)
            return watch

    assert until_applied(Leaving(), 50, 30, set(), {}) == Waited(["n2"], [])


def test_a_lost_node_is_named_and_does_not_block(web, nodes, monkeypatch):
    nodes.lose("n2")
    nodes.follow("n1")
    monkeypatch.setattr(wait, "LOST_SECONDS", 0.2)
    began = time.monotonic()
    result = web.ok("backend", "weight", "web", "b1", "1", *WAIT)
    assert 0.2 <= time.monotonic() - began < 20
    assert "applied by n1" in result.out
    assert "not by n2: lost" in result.out
    assert web.json("backend", "weight", "web", "b1", "2", *WAIT)["lost"] == ["n2"]


def test_a_lost_node_that_comes_back_is_waited_for(web, nodes):
    """As all do at once when the store was away for longer than a lease."""
    nodes.follow("n1")
    nodes.lose("n2")
    returns = threading.Timer(0.3, nodes.follow, ("n2",))
    returns.start()
    late = threading.Timer(0.6, lambda: nodes.put("n2", 10**6))
    late.start()
    result = web.ok("backend", "weight", "web", "b1", "1", *WAIT)
    assert "applied by n1, n2" in result.out
    returns.join()
    late.join()


def test_when_all_nodes_are_lost(web, nodes):
    nodes.lose("n1")
    result = web("backend", "weight", "web", "b1", "1", "--wait", "--timeout", "0.2")
    assert result.code == 7
    assert "n1 (lost)" in result.err


def test_an_unreadable_report_is_no_progress(nodes, store):
    nodes.put("n1", 1)

    class Broken:
        def read(self, prefix):
            return store.read(prefix)

        def watch(self, prefix, *, after):
            store.commit([Put(keys.node("n1"), '{"revision": 999}')])
            return store.watch(prefix, after=after)

    with pytest.raises(NotAppliedError, match="n1 \\(at revision 1\\)"):
        until_applied(Broken(), 50, 0.1, set(), {})


def test_problem_kinds(store, nodes):
    nodes.put("n1", 5, problems=(PROBLEM,))
    with pytest.raises(DatapathError):
        until_applied(store, 5, 0, {keys.backend("web", "b1")}, {})


@pytest.mark.usefixtures("web")
def test_ctrl_c_is_quiet(nodes, store):
    nodes.put("n1", 0)
    revision = store.read(keys.ROOT).revision
    with store.watch(keys.ROOT, after=revision) as watch:
        # Who runs the tests in the background has it ignored, and that is inherited.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "lb.cli.main"]
        command += ["backend", "weight", "web", "b1", "1"]
        process = subprocess.Popen(
            [*command, "--wait", "--timeout", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ),
        )
        assert watch.next(30) is not None  # it has stored the change, and waits now
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == b""
