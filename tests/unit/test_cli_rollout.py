"""`lbctl rollout`, and the nodes' side of it, on a real store, with a clock of ours and no kernel."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rolling import STEPS, Runner, phase, rollout, settle, split

from lb.cli import change, rollout_wait
from lb.cli import rollout_asks as commands
from lb.cli.session import Session
from lb.core import rollout as core
from lb.errors import ConflictError, ExitCode
from lb.model import keys
from lb.model.objects import Service
from lb.model.rollout import KEPT, Phase
from lb.node import rollouts
from lb.node.rollouts import LEASE_SECONDS, Rollouts
from lb.store import rollouts as stored
from lb.store.base import Delete, Put, Store
from lb.store.opening import open_store


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ACTED_SECONDS", 0.0)


def test_step_by_step_to_promoted(canary: Any, store: Store, runner: Runner) -> None:
    begun = canary.json("rollout", "start", "web", *STEPS)
    assert begun["rollout"]["status"]["phase"] == "pending"
    settle(runner)
    assert phase(store) is Phase.BAKING
    assert split(store) == {"stable": 90, "canary": 10}
    assert runner.live[-1] == {"web"}
    assert canary.json("status")["rollouts"] == {"web": "step 1 of 2, baking"}
    assert "rollout   web to pool canary: step 1 of 2" in canary.ok("status").out
    assert 0 < runner.turn(50) < 10.1  # then the step's time is over
    runner.turn(10)
    assert split(store) == {"stable": 0, "canary": 100}
    settle(runner)
    runner.turn(60)
    settle(runner)
    assert phase(store) is Phase.PROMOTED
    assert split(store) == {"stable": 0, "canary": 100}
    assert runner.live[-1] == frozenset()
    shown = canary.ok("rollout", "status", "web").out
    assert "promoted" in shown
    assert canary.ok("rollout", "wait", "web").code == 0
    # It is on record who changed the split, and the way back is one change.
    records = canary.json("history")
    assert [each["who"] for each in records[:2]] == ["lbd@n1", "lbd@n1"]
    assert "rollout" in records[0]["what"]
    canary.ok("service", "set", "web", "--split", "stable=100,canary=0")
    # Nothing that belongs to a rollout is something that nodes have to apply.
    assert store.get(keys.ROLLOUT_LOCK) is None


def test_ctrl_c_says_that_it_goes_on(
    canary: Any, store: Store, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary.ok("rollout", "start", "web", *STEPS)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout_wait, "to_the_end", interrupted)
    result = canary("rollout", "wait", "web")
    assert result.code == 130
    assert "the rollout of 'web' goes on: " in result.err
    assert "to end it: lbctl rollout abort web" in result.err
    told = canary("rollout", "wait", "web", "-o", "json")
    assert told.json["error"]["exit_code"] == 130
    assert told.json["rollout"]["service"] == "web"
    settle(runner)
    assert phase(store) is Phase.BAKING


def test_abort_needs_no_node(canary: Any, store: Store, runner: Runner, nodes: Any) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    assert split(store)["canary"] == 10
    nodes.stop()  # nobody is left to run anything
    result = canary.json("rollout", "abort", "web")
    assert result["rollout"]["status"]["phase"] == "aborting"
    assert split(store) == {"stable": 100}
    assert canary.ok("rollout", "abort", "web").err == ""  # as often as you like
    nodes.lose("n1")
    again = canary.ok("rollout", "abort", "web")
    assert "node n1 is away: its kernel keeps the split that it holds" in again.err
    assert canary("rollout", "wait", "web", "--timeout", "0.1").code == ExitCode.ROLLOUT_GOES_ON
    nodes.put("n1", store.read(keys.ROOT).revision)
    runner.turn()
    assert phase(store) is Phase.ABORTED
    ended = canary("rollout", "wait", "web", "-o", "json")
    assert ended.code == ExitCode.ROLLOUT_ABORTED
    assert ended.json["error"]["kind"] == "RolloutAborted"
    assert ended.json["rollout"]["status"]["ending"] == "person"


def test_who_waits_for_what_will_not_come_is_told(
    canary: Any, runner: Runner, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOK_SECONDS", "NOBODY_SECONDS", "STUCK_SECONDS"):
        monkeypatch.setattr(rollout_wait, name, 0.05)
    canary.ok("rollout", "start", "web", *STEPS, "--deadline", "1h")
    settle(runner)
    nodes.stop()
    nodes.lose("n1")
    alone = canary("rollout", "wait", "web")
    assert alone.code == ExitCode.NOT_APPLIED
    assert "no node was there to run the rollout of 'web'" in alone.err
    # A node that is there, and can't apply the split of before.
    nodes.put("n1", 1, shares={"web": {"stable": 90.0, "canary": 10.0}})
    stuck = canary("rollout", "abort", "web", "--wait", "-o", "json")
    assert stuck.code == ExitCode.ROLLOUT_GOES_ON
    assert stuck.json["error"]["message"].endswith("it waits for node n1")
    assert stuck.json["rollout"]["status"]["phase"] == "aborting"


def test_who_waits_is_told_that_the_deadline_is_over(
    canary: Any, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOK_SECONDS", "STUCK_SECONDS"):
        monkeypatch.setattr(rollout_wait, name, 0.05)
    canary.ok("rollout", "start", "web", *STEPS, "--deadline", "2s")
    settle(runner)
    late = canary("rollout", "wait", "web")  # a node is there, but doesn't run it
    assert late.code == ExitCode.ROLLOUT_GOES_ON
    assert "does not come to its end: step 1 of 2" in late.err


@pytest.mark.usefixtures("quick")
def test_abort_while_the_service_cannot_be_read(canary: Any, store: Store, runner: Runner) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    item = store.get(keys.service("web"))
    assert item is not None
    store.commit([Put(item.key, "{}")])
    aborted = canary("rollout", "abort", "web")
    assert "is aborted as soon as it can be read" in aborted.err
    runner.turn()
    assert phase(store) is Phase.BAKING
    store.commit([Put(item.key, item.value)])
    settle(runner)
    assert (phase(store), split(store)) == (Phase.ABORTED, {"stable": 100})


def test_what_stands_still_is_said(
    canary: Any, store: Store, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOK_SECONDS", "STUCK_SECONDS"):
        monkeypatch.setattr(rollout_wait, name, 0.05)
    canary.ok("rollout", "start", "web", *STEPS, "--deadline", "1s")
    settle(runner)
    assert runner.rollouts.problems == ()
    item = store.get(keys.service("web"))
    assert item is not None
    store.commit([Put(item.key, item.value.replace('"port"', '"prt"'))])
    told = len(runner.live)
    runner.turn(later=100)
    runner.turn()
    assert phase(store) is Phase.BAKING
    [problem] = runner.rollouts.problems
    assert problem.where == keys.rollout("web")
    assert problem.message.startswith("it stands still: /lb/v1/services/web: port: ")
    assert problem.hint.startswith("write a valid document with `lbctl apply -f FILE --force`")
    assert runner.live[told:] == [frozenset({"web"})]  # once: lbd's loop is to report it
    shown = canary.ok("rollout", "status", "web").out
    assert "waits for a document of service 'web' that can be read: port: " in shown
    waited = canary("rollout", "wait", "web")
    assert waited.code == ExitCode.ROLLOUT_GOES_ON
    assert waited.out.count("it stands still until the document of service 'web' can be read") == 1
    assert "it waits for a document of service 'web' that can be read" in waited.err
    store.commit([Put(item.key, item.value)])
    settle(runner)
    assert (phase(store), runner.rollouts.problems) == (Phase.ABORTED, ())
    assert rollout(store).status.ending == "deadline"


def test_the_way_out_of_a_standstill(canary: Any, store: Store, runner: Runner, tmp_path: Path) -> None:
    """As the problem's hint says: another split ends it."""
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    item = store.get(keys.service("web"))
    assert item is not None
    manifest = tmp_path / "lb.yaml"
    manifest.write_text(
        canary.ok("export").out.replace("canary: 10", "canary: 0").replace(": 90", ": 100")
    )
    store.commit([Put(item.key, item.value.replace('"port"', '"prt"'))])
    canary.ok("apply", "-f", str(manifest), "--force")
    settle(runner)
    assert (phase(store), split(store)["canary"]) == (Phase.ABORTED, 0)
    assert rollout(store).status.ending == "edited"


def test_a_rollout_of_a_newer_version_is_left_alone(store: Store, runner: Runner) -> None:
    """What this node doesn't know of it might be why it must not go on."""
    spec = {"pool": "canary", "steps": [10], "when": 1.0}
    text = json.dumps({"service": "web", "id": "r1", "spec": spec, "hue": "red"})
    store.commit([Put(keys.rollout("web"), text)])
    runner.turn()
    [problem] = runner.rollouts.problems
    assert problem.where == keys.rollout("web")
    assert problem.message.startswith("no node of this version runs it: ")
    assert "upgrade this node" in problem.hint
    item = store.get(keys.rollout("web"))
    assert item is not None
    assert item.value == text
    store.commit([Delete(keys.rollout("web"))])
    runner.turn()
    assert runner.rollouts.problems == ()


def test_abort_waits_for_kernels_that_hold_the_canary(
    canary: Any, store: Store, runner: Runner, nodes: Any
) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    nodes.stop()
    canary.ok("rollout", "abort", "web")
    revision = store.read(keys.ROOT).revision
    nodes.put("n1", revision, shares={"web": {"stable": 90.0, "canary": 10.0}})
    runner.turn()
    assert phase(store) is Phase.ABORTING
    shown = canary.json("rollout", "status", "web")["rollout"]
    assert shown["nodes"] == [{"node": "n1", "state": "applied", "share": 10.0}]
    assert shown["awaits"] == "node n1"
    nodes.put("n1", revision, shares={"web": {"stable": 100.0}})
    runner.turn()
    assert phase(store) is Phase.ABORTED


@pytest.mark.usefixtures("quick")
def test_pause_resume_step_promote(canary: Any, store: Store, runner: Runner) -> None:
    canary.ok("rollout", "start", "web", *STEPS, "--deadline", "1h")
    assert canary("rollout", "pause", "web").code == ExitCode.ROLLOUT_REFUSED  # nothing to pause yet
    settle(runner)
    asked = canary("rollout", "pause", "web")
    assert asked.code == 0
    assert "no node has acted on it yet" in asked.err
    assert phase(store) is Phase.BAKING
    runner.turn()
    assert phase(store) is Phase.PAUSED
    runner.turn(600)
    assert phase(store) is Phase.PAUSED
    assert canary("rollout", "wait", "web").code == ExitCode.ROLLOUT_PAUSED
    canary.ok("rollout", "resume", "web")
    settle(runner)
    assert (phase(store), rollout(store).status.step) == (Phase.BAKING, 1)
    assert canary("rollout", "resume", "web").code == ExitCode.ROLLOUT_REFUSED
    canary.ok("rollout", "step", "web")
    settle(runner)
    assert (phase(store), split(store)["canary"]) == (Phase.BAKING, 100)
    canary.ok("rollout", "promote", "web")
    settle(runner)
    assert phase(store) is Phase.PROMOTED
    who = {each.by for each in rollout(store).status.history}
    assert len(who) == 2  # the node, and the person
    assert canary("rollout", "promote", "web").code == ExitCode.ROLLOUT_REFUSED
    over = canary("rollout", "abort", "web")
    assert over.code == ExitCode.ROLLOUT_REFUSED
    assert "lbctl service set web --split stable=100" in over.err


@pytest.mark.usefixtures("quick")
def test_a_gate_waits_for_a_person(canary: Any, store: Store, runner: Runner) -> None:
    canary.ok("rollout", "start", "web", *STEPS, "--manual-gate")
    settle(runner)
    runner.turn(60)
    assert phase(store) is Phase.GATE
    waited = canary("rollout", "wait", "web", "-o", "json")
    assert waited.code == ExitCode.ROLLOUT_PAUSED
    assert waited.json["rollout"]["status"]["phase"] == "gate"
    canary.ok("rollout", "resume", "web")
    settle(runner)
    assert rollout(store).status.step == 2


def test_the_deadline(canary: Any, store: Store, runner: Runner) -> None:
    canary.ok("rollout", "start", "web", *STEPS, "--manual-gate", "--deadline", "10m")
    settle(runner)
    runner.turn(60)
    assert phase(store) is Phase.GATE
    runner.turn(541)
    settle(runner)
    assert split(store) == {"stable": 100}
    assert canary("rollout", "wait", "web").code == ExitCode.ROLLOUT_EXPIRED


def test_a_canary_that_falls_ill_is_taken_back_at_once(
    canary: Any, store: Store, runner: Runner, nodes: Any
) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    nodes.stop()
    ill = {"web/c1": {"state": "unhealthy", "since": 0.0, "share": 0.0}}
    nodes.put("n1", 0, health=ill)
    runner.turn()
    assert (phase(store), split(store)) == (Phase.ABORTING, {"stable": 100})
    nodes.put("n1", store.read(keys.ROOT).revision, health=ill)
    runner.turn()
    assert canary("rollout", "wait", "web").code == ExitCode.ROLLOUT_UNHEALTHY
    refused = canary("rollout", "start", "web", *STEPS)
    assert refused.code == ExitCode.ROLLOUT_REFUSED
    assert "unhealthy" in refused.err


# --- others ---------------------------------------------------------------------------------------


def test_lbctl_leaves_a_split_to_its_rollout(
    canary: Any, store: Store, runner: Runner, tmp_path: Any
) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    (tmp_path / "web.yaml").write_text("services: [{name: web, vip: 10.0.0.1, port: 80, backends: [],"
                                       " split: {stable: 50, canary: 50}}]")  # fmt: skip
    for arguments in (
        ("service", "set", "web", "--split", "stable=50,canary=50"),
        ("apply", "-f", str(tmp_path / "web.yaml")),
        ("service", "rm", "web", "--cascade"),
    ):
        refused = canary(*arguments)
        assert refused.code == ExitCode.CONFLICT
        assert "lbctl rollout abort web" in refused.err
        assert "--force" in refused.err
    assert split(store)["canary"] == 10
    # What isn't about the split is nobody's business but theirs, and the rollout goes on.
    canary.ok("service", "set", "web", "--window", "60")
    canary.ok("backend", "weight", "web", "b1", "5")
    settle(runner)
    runner.turn(60)
    assert rollout(store).status.step == 2
    item = store.get(keys.service("web"))
    assert item is not None
    assert Service.model_validate_json(item.value).window == 60


def at_100(canary: Any, store: Store, runner: Runner) -> None:
    """A rollout at its last step, where the old pool has no share."""
    canary.ok("rollout", "start", "web", "--to", "canary", "--steps", "100", "--every", "1h",
              "--no-analysis")  # fmt: skip
    settle(runner)
    assert split(store) == {"stable": 0, "canary": 100}


def backup(store: Store) -> str | None:
    item = store.get(keys.service("web"))
    assert item is not None
    return Service.model_validate_json(item.value).backup


@pytest.mark.usefixtures("quick")
def test_lbctl_leaves_the_way_back_to_a_rollout(
    canary: Any, store: Store, runner: Runner, tmp_path: Any
) -> None:
    at_100(canary, store, runner)
    (tmp_path / "web.yaml").write_text("services: [{name: web, vip: 10.0.0.1, port: 80, backends: [],"
                                       " split: {canary: 100}, backup: stable}]")  # fmt: skip
    for arguments in (
        ("service", "set", "web", "--backup-pool", "stable"),
        ("apply", "-f", str(tmp_path / "web.yaml")),
    ):
        refused = canary(*arguments)
        assert refused.code == ExitCode.CONFLICT
        assert "gets 100 % of the new flows again if the rollout" in refused.err
        assert "lbctl rollout wait web" in refused.err
    assert backup(store) is None
    canary.ok("service", "set", "web", "--backup-pool", "spare")  # no part of the way back
    canary.ok("rollout", "promote", "web")
    settle(runner)
    canary.ok("service", "set", "web", "--backup-pool", "stable")


def test_an_abort_goes_before_a_backup(canary: Any, store: Store, runner: Runner) -> None:
    at_100(canary, store, runner)
    canary.ok("service", "set", "web", "--backup-pool", "stable", "--force")
    canary.ok("rollout", "abort", "web")
    assert (split(store), backup(store)) == ({"stable": 100}, None)
    assert "stable has a share again, so it is no longer the backup" in rollout(store).status.words
    assert "it is no longer the backup" in canary.json("history")[0]["what"]
    settle(runner)
    assert phase(store) is Phase.ABORTED


def test_a_nodes_abort_goes_before_a_backup_that_another_program_wrote(
    canary: Any, store: Store, runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    at_100(canary, store, runner)
    item = store.get(keys.service("web"))
    assert item is not None
    store.commit([Put(item.key, json.dumps({**json.loads(item.value), "backup": "stable"}))])
    canary.ok("backend", "down", "web", "c1")
    with caplog.at_level("INFO", "lbd"):
        settle(runner)
    assert (split(store), backup(store)) == ({"stable": 100}, None)
    assert rollout(store).status.ending == "unhealthy"
    assert "it is no longer the backup" in caplog.text
    assert "internal error" not in caplog.text


def test_a_split_that_no_service_can_have_is_said(
    canary: Any, store: Store, runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    """The split of before, as somebody wrote it into the rollout."""
    at_100(canary, store, runner)
    document = json.loads(rollout(store).model_dump_json())
    document["status"]["before"] = {"stable": 90}
    store.commit([Put(keys.rollout("web"), json.dumps(document))])
    refused = canary("rollout", "abort", "web")
    assert refused.code == ExitCode.USAGE
    assert "can't write the split stable 90 %: split sums to 90 %, not to 100 %" in refused.err
    canary.ok("backend", "down", "web", "c1")
    runner.turn()
    assert "can't write the split stable 90 %" in caplog.text
    assert "internal error" not in caplog.text
    canary.ok("service", "set", "web", "--split", "stable=100", "--force")  # as the hint says
    settle(runner)
    assert phase(store) is Phase.ABORTED


def test_whoever_forces_a_split_has_the_last_word(canary: Any, store: Store, runner: Runner) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    canary.ok("service", "set", "web", "--split", "stable=50,canary=50", "--force")
    settle(runner)
    assert split(store) == {"stable": 50, "canary": 50}
    assert canary("rollout", "wait", "web").code == ExitCode.ROLLOUT_OVERRIDDEN
    assert "stable 50 %, canary 50 %" in canary.ok("rollout", "status", "web").out


@pytest.mark.parametrize("wait", [(), ("--wait",)])
def test_an_abort_that_is_too_late_to_take_the_share_away_says_so(
    canary: Any, store: Store, runner: Runner, wait: tuple[str, ...]
) -> None:
    """No node has seen yet that somebody else changed the split: who aborts would think that it is 0."""
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    canary.ok("service", "set", "web", "--split", "stable=50,canary=50", "--force")
    late = canary("rollout", "abort", "web", *wait)
    assert late.code == ExitCode.ROLLOUT_OVERRIDDEN
    assert "somebody else changed the split to stable 50 %, canary 50 %" in late.err
    assert split(store) == {"stable": 50, "canary": 50}


def test_a_service_that_goes(canary: Any, store: Store, runner: Runner) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    canary.ok("service", "rm", "web", "--cascade", "--force")
    runner.turn()
    assert phase(store) is Phase.ABORTED
    assert store.get(keys.service("web")) is None
    assert canary("rollout", "wait", "web").code == ExitCode.ROLLOUT_OVERRIDDEN


def kept_of_rollouts(store: Store) -> set[str]:
    items = store.read(keys.EVERYTHING).items
    return {each.key for each in stored.leftovers(items, {"web"})}


def one_that_is_over(canary: Any, store: Store, runner: Runner) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    store.commit([Put(keys.evidence("web"), "{}"), Put(keys.evidence("web2"), "{}")])
    canary.ok("rollout", "abort", "web")
    settle(runner)
    assert phase(store) is Phase.ABORTED
    assert len(kept_of_rollouts(store)) == 3


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("way", ["rm", "prune", "rollback"])
def test_rollouts_that_are_over_go_with_the_service(
    canary: Any,
    store: Store,
    runner: Runner,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    many: bool,
) -> None:
    if many:
        monkeypatch.setattr(change, "MANY_COMPARES", 1)
    (tmp_path / "none.yaml").write_text("services: []")
    canary.ok("service", "rm", "web", "--cascade")
    without = store.read(keys.ROOT).revision
    canary.ok("service", "add", "web", "--vip", "10.0.0.1:80")
    canary.ok("backend", "add", "web", "b1", "10.0.1.1")
    canary.ok("backend", "add", "web", "c1", "203.0.113.9", "--pool", "canary")
    one_that_is_over(canary, store, runner)
    canary.ok(*{
        "rm": ("service", "rm", "web", "--cascade"),
        "prune": ("apply", "-f", str(tmp_path / "none.yaml"), "--prune"),
        "rollback": ("rollback", str(without)),
    }[way])  # fmt: skip
    assert store.get(keys.service("web")) is None
    assert kept_of_rollouts(store) == set()
    assert store.get(keys.evidence("web2")) is not None
    canary.ok("service", "add", "web", "--vip", "10.0.0.1:80")
    none = canary("rollout", "status", "web")
    assert none.code == ExitCode.NOT_FOUND
    assert "has had no rollout" in none.err


def test_a_new_service_has_nothing_of_one_that_was_removed_by_force(
    canary: Any, store: Store, runner: Runner
) -> None:
    one_that_is_over(canary, store, runner)
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    canary.ok("service", "rm", "web", "--cascade", "--force")
    again = ("service", "add", "web", "--vip", "10.0.0.1:80")
    assert canary(*again).code == ExitCode.CONFLICT  # until it has ended
    settle(runner)
    assert canary("rollout", "wait", "web").code == ExitCode.ROLLOUT_OVERRIDDEN
    assert kept_of_rollouts(store) == {keys.rollout("web")}
    canary.ok(*again)
    assert kept_of_rollouts(store) == set()


def test_a_rollout_that_begins_while_its_service_is_removed(
    canary: Any, store: Store, runner: Runner
) -> None:
    one_that_is_over(canary, store, runner)
    session = Session()
    proposal = change.propose(session, lambda draft: draft.remove_service("web"))
    canary.ok("rollout", "start", "web", *STEPS)
    with pytest.raises(ConflictError):
        session.store.commit(proposal.operations, proposal.compares)
    session.close()


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nope", *STEPS), 3, "no service 'nope'"),
        (("web", "--to", "canari"), 3, "did you mean 'canary'"),
        (("web", "--to", "stable"), 20, "has 100 % of the new flows already"),
        (("web", "--to", "canary", "--steps", "5,1"), 2, "5"),
        (("web", "--to", "canary", "--steps", "50,101"), 2, "100"),
        (("web", "--to", "canary", "--steps", "0,5"), 2, "0"),
        (("web", "--to", "canary", "--steps", "0.001,5"), 2, "0.001 % is less than one slot"),
        (("web", "--to", "canary", "--steps", "a"), 2, "--steps"),
        (("web", "--to", "canary", "--steps", ""), 2, "--steps"),
        (("web", "--to", "canary", "--every", "soon"), 2, "--every: 'soon' is not a duration"),
        (("web", "--to", "canary", "--every", "0"), 2, "every"),
        (("web", "--to", "canary", "--deadline", "-5"), 2, "--deadline"),
        (("web", "--to", "canary", "--notify", "ftp://x"), 2, "notify"),
        (("web", "--to", "canary", "--wait", "--timeout", "x"), 2, "--timeout"),
        (("web", "--to", "canary", "--timeout", "5m"), 2, "--timeout is how long --wait waits"),
        (("web",), 2, "--to"),
    ],
)
def test_what_is_refused(
    canary: Any, store: Store, arguments: tuple[str, ...], code: int, words: str
) -> None:
    before = store.read(keys.ROOT)
    result = canary("rollout", "start", *arguments, "-o", "json")
    assert result.code == code, result
    assert words in result.err
    assert result.json["error"]["exit_code"] == code
    assert store.read(keys.ROOT) == before


def test_a_deadline_before_the_last_steps_end_is_noted(canary: Any) -> None:
    times = ("--to", "canary", "--steps", "50,100", "--every", "60s", "--deadline")
    noted = canary("rollout", "start", "web", *times, "2m")
    assert noted.code == 0
    assert "its steps take 120 s at least: the deadline of 120 s comes before" in noted.err
    canary.ok("rollout", "abort", "web")
    assert "deadline" not in canary("rollout", "start", "web", *times, "121s").err


def test_a_pool_that_takes_nothing(canary: Any) -> None:
    canary.ok("backend", "drain", "web", "c1")
    result = canary("rollout", "start", "web", *STEPS)
    assert result.code == ExitCode.ROLLOUT_REFUSED
    assert "takes new flows" in result.err


def test_one_rollout_at_a_time(canary: Any, store: Store, runner: Runner) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    for _ in range(2):  # begun or not
        second = canary("rollout", "start", "web", *STEPS, "-o", "json")
        assert second.code == ExitCode.ROLLOUT_REFUSED
        assert "has a rollout already" in second.err
        assert second.json["rollout"]["id"] == rollout(store).id
        settle(runner)
    canary.ok("rollout", "abort", "web")
    assert canary("rollout", "start", "web", *STEPS).code == ExitCode.ROLLOUT_REFUSED
    settle(runner)
    canary.ok("rollout", "start", "web", *STEPS)


def test_without_a_rollout(canary: Any) -> None:
    for name in ("status", "watch", "wait", "pause", "resume", "step", "promote", "abort"):
        result = canary("rollout", name, "web")
        assert result.code == ExitCode.NOT_FOUND
        assert "lbctl rollout start web" in result.err
    assert canary.json("rollout", "history", "web") == []
    assert canary("rollout", "history", "nope").code == ExitCode.NOT_FOUND


# --- runners --------------------------------------------------------------------------------------


def test_each_node_knows_all_rollouts_whoever_runs_them(
    canary: Any, store: Store, runner: Runner
) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    store.commit([Put(keys.rollout("bad"), "{}")])
    other = Runner(store, "n2")
    for each in (runner, other):
        each.turn()
        assert {name: known.status.phase for name, known in each.rollouts.known.items()} == {
            "web": Phase.BAKING
        }
    canary.ok("rollout", "abort", "web")
    settle(runner)
    other.turn()
    assert other.rollouts.known["web"].status.phase is Phase.ABORTED


def test_two_runners_do_each_step_once(canary: Any, store: Store, runner: Runner) -> None:
    other = Runner(store, "n2")
    canary.ok("rollout", "start", "web", *STEPS)
    for _ in range(3):
        runner.turn()
        other.turn()
    assert rollout(store).status.step == 1
    assert {each.by for each in rollout(store).status.history} == {"n1"}
    # n1 is gone: its lock goes with its lease, and n2 goes on where it was.
    settle(runner)
    runner.rollouts._lock.give_up()
    other.now = runner.now
    other.turn(60)
    settle(other)
    history = rollout(store).status.history
    assert [each.step for each in history if each.split] == [1, 2]
    assert history[-1].by == "n2"
    # n1 was only slow. What it still believes to be its lock is no longer; nothing is done twice.
    runner.turn(60)
    assert [each.step for each in rollout(store).status.history if each.split] == [1, 2]


def test_a_lock_that_was_lost_stops_its_holder_in_the_middle(
    canary: Any, store: Store, runner: Runner
) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    before = rollout(store)
    store.commit([Delete(keys.ROLLOUT_LOCK)])
    store.commit([Put(keys.ROLLOUT_LOCK, "somebody else's")])
    assert runner.turn(60) < LEASE_SECONDS
    assert rollout(store) == before


def test_documents_that_make_no_sense(canary: Any, store: Store, runner: Runner) -> None:
    store.commit([Put(keys.rollout("other"), "{}"), Put(keys.rollout("x"), "no json")])
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    assert phase(store) is Phase.BAKING
    result = canary("rollout", "status", "other")
    assert result.code == ExitCode.USAGE
    assert "rollouts/other" in result.err


def test_a_rollout_that_cannot_be_read_can_be_ended(canary: Any, store: Store, runner: Runner) -> None:
    store.commit([Put(keys.rollout("web"), '{"service": "web"}')])
    for command in (("start", "web", *STEPS), ("status", "web"), ("abort", "web", "--id", "x")):
        refused = canary("rollout", *command)
        assert refused.code == ExitCode.USAGE
        assert "lbctl rollout abort web deletes it" in refused.err
    ended = canary.ok("rollout", "abort", "web")
    assert "the split is left as it is" in ended.err
    assert store.get(keys.rollout("web")) is None
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    assert phase(store) is Phase.BAKING


def test_an_abort_may_be_of_one_rollout_alone(
    canary: Any, store: Store, runner: Runner, tmp_path: Path
) -> None:
    file = tmp_path / "id"
    canary.ok("rollout", "start", "web", *STEPS, "--id-file", str(file))
    settle(runner)
    assert file.read_text() == f"{rollout(store).id}\n"
    other = canary("rollout", "abort", "web", "--id", "20200101-000000-abcd")
    assert other.code == ExitCode.ROLLOUT_REFUSED
    assert f"is another one: {rollout(store).id}" in other.err
    assert phase(store) is Phase.BAKING
    canary.ok("rollout", "abort", "web", "--id", rollout(store).id)
    assert phase(store) is Phase.ABORTING
    nowhere = canary("rollout", "start", "web", *STEPS, "--id-file", str(tmp_path / "no" / "id"))
    assert (nowhere.code, "--id-file" in nowhere.err) == (ExitCode.USAGE, True)


def test_a_plain_document_is_enough(store: Store, runner: Runner) -> None:
    """What docs/reference/etcd.md tells other programs to write."""
    spec = {"pool": "canary", "steps": [20], "every": "1s"}
    document = {"service": "web", "id": "deploy-42", "spec": spec}
    store.commit([Put(keys.rollout("web"), json.dumps(document))])
    settle(runner)
    assert split(store) == {"stable": 80, "canary": 20}


def test_history_is_kept_and_bounded(canary: Any, store: Store, runner: Runner) -> None:
    for number in range(KEPT + 3):
        document = {
            "service": "web",
            "id": f"r-{number:03}",
            "spec": {"pool": "canary", "steps": [20], "every": 1, "when": time.time()},
        }
        store.commit([Put(keys.rollout("web"), json.dumps(document))])
        runner.turn()
        canary.ok("rollout", "abort", "web")
        settle(runner)
    listed = canary.json("rollout", "history", "web")
    assert [each["id"] for each in listed] == [f"r-{n:03}" for n in range(KEPT + 2, 2, -1)]
    assert "r-022" in canary.ok("rollout", "history", "web").out


# --- waiting --------------------------------------------------------------------------------------


@pytest.fixture
def running(machine: Any, nodes: Any, canary: Any) -> Iterator[Rollouts]:
    """A node whose rollouts run by themselves."""
    assert canary.json("backend", "list", "web")
    nodes.follow("n1")
    with open_store(str(machine / "store.db")) as own:
        found = Rollouts(own, "n1")
        found.start()
        yield found
        found.stop()


@pytest.mark.usefixtures("running")
def test_start_and_wait(canary: Any) -> None:
    result = canary.ok("rollout", "start", "web", "--to", "canary", "--steps", "1,100", "--every",
                       "200ms", "--no-analysis", "--wait", "--timeout", "30")  # fmt: skip
    lines = result.out.splitlines()
    assert "has begun" in lines[0]
    phases = [line.split()[1] for line in lines[1:-1]]
    assert phases == ["stepping", "baking", "stepping", "baking", "promoting", "promoted"]
    assert "step 1/2  stable 99 %, canary 1 %" in lines[1]
    assert lines[-1] == "web: promoted"
    assert canary.ok("rollout", "watch", "web").out.count("\n") == 6


@pytest.mark.usefixtures("running")
def test_wait_says_json_and_nothing_else_on_stdout(canary: Any) -> None:
    result = canary("rollout", "start", "web", "--to", "canary", "--steps", "1", "--every", "100ms",
                    "--no-analysis", "--wait", "-o", "json")  # fmt: skip
    assert result.code == 0
    assert result.json["rollout"]["status"]["phase"] == "promoted"
    assert "promoting" in result.err


@pytest.mark.usefixtures("running")
def test_wait_ends_in_time_and_may_be_called_again(canary: Any) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    result = canary("rollout", "wait", "web", "--timeout", "300ms", "-o", "json")
    assert result.code == ExitCode.ROLLOUT_GOES_ON
    assert result.json["error"]["kind"] == "RolloutGoesOn"
    ended = canary("rollout", "abort", "web", "--wait", "--timeout", "30")
    assert ended.code == 0
    assert "aborted" in ended.out
    assert canary("rollout", "wait", "web").code == ExitCode.ROLLOUT_ABORTED


@pytest.mark.usefixtures("running")
def test_commands_are_acted_on_before_they_return(canary: Any) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    deadline = time.monotonic() + 10
    while canary("rollout", "pause", "web").code:  # not begun yet
        assert time.monotonic() < deadline
    assert "paused" in canary.ok("rollout", "status", "web").out
    assert "step" in canary.ok("rollout", "resume", "web").out


def test_waiting_for_a_rollout_after_which_another_began(
    canary: Any, store: Store, runner: Runner
) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    settle(runner)
    first = rollout(store).id
    canary.ok("rollout", "abort", "web")
    settle(runner)
    canary.ok("rollout", "start", "web", *STEPS)
    assert rollout_wait.read(store, "web", first).status.phase is Phase.ABORTED


def test_the_thread_ends_and_leaves_the_lock(canary: Any, store: Store, running: Rollouts) -> None:
    canary.ok("rollout", "start", "web", *STEPS)
    deadline = time.monotonic() + 10
    while store.get(keys.ROLLOUT_LOCK) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.stop()
    assert store.get(keys.ROLLOUT_LOCK) is None
    assert not [each for each in threading.enumerate() if each.name == "rollouts"]


# --- notifications --------------------------------------------------------------------------------


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is posted; how that is done, and tried again, is tests/unit/test_hook.py's affair."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        rollouts, "post", lambda url, text: found.append({"url": url, **json.loads(text)})
    )
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_transition_is_posted(
    canary: Any, store: Store, runner: Runner, posts: list[dict[str, Any]]
) -> None:
    canary.ok("rollout", "start", "web", *STEPS, "--notify", "http://hooks.test/x")
    settle(runner)
    canary.ok("rollout", "abort", "web")  # by this process, and told by the node
    settle(runner)
    wait_for(lambda: len(posts) == 4)
    assert [each["number"] for each in posts] == [0, 1, 2, 3]
    assert [each["phase"] for each in posts] == ["stepping", "baking", "aborting", "aborted"]
    assert posts[0]["split"] == {"stable": 90, "canary": 10}
    assert posts[2]["ending"] == "person"
    assert {each["url"] for each in posts} == {"http://hooks.test/x"}
    for _ in range(3):
        runner.turn(5)
    assert len(posts) == 4
    assert phase(store) is Phase.ABORTED


def test_after_a_takeover_the_last_transition_is_posted_again(
    canary: Any, store: Store, runner: Runner, posts: list[dict[str, Any]]
) -> None:
    other = Runner(store, "n2")
    canary.ok("rollout", "start", "web", *STEPS, "--notify", "http://hooks.test/x")
    settle(runner)
    other.turn()
    wait_for(lambda: len(posts) == 2)
    runner.rollouts._lock.give_up()
    other.now = runner.now
    other.turn(60)
    settle(other)
    wait_for(lambda: len(posts) == 5)
    assert [(each["number"], each["node"]) for each in posts] == [
        (0, "n1"), (1, "n1"), (1, "n2"), (2, "n2"), (3, "n2"),
    ]  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_what_comes_after_the_history_is_full_is_posted_and_said(
    canary: Any,
    store: Store,
    runner: Runner,
    posts: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core, "HISTORY", 3)
    canary.ok("rollout", "start", "web", *STEPS, "--notify", "http://hooks.test/x")
    settle(runner)
    begun, lines = rollout(store), []
    for command in ("pause", "resume", "pause", "resume"):
        canary.ok("rollout", command, "web")
        settle(runner)
        for _ in rollout_wait.told(store, begun, 0.0, lines.append):
            begun = rollout(store)
    wait_for(lambda: len(posts) == 8)
    assert [each["number"] for each in posts] == list(range(8))
    said = [line.split()[1] for line in lines]
    assert said == [each["phase"] for each in posts[2:]] == ["paused", "stepping", "baking"] * 2
    status = rollout(store).status
    assert [number for number, _ in status.since_number(0)] == [5, 6, 7]
    assert (status.dropped, status.made) == (5, 8)


def test_a_url_that_no_rollout_needs_any_more_costs_no_thread(
    store: Store, runner: Runner, posts: list[dict[str, Any]]
) -> None:
    others = set(threading.enumerate())

    def told_and_ended(sent: int) -> bool:
        runner.turn()
        new = [each.name for each in threading.enumerate() if each not in others]
        return len(posts) == sent and "rollout webhook" not in new

    for number in range(3):
        spec = {"pool": "none", "steps": [20], "when": time.time(), "notify": f"http://ci.test/{number}"}
        document = {"service": "web", "id": f"r-{number}", "spec": spec}
        store.commit([Put(keys.rollout("web"), json.dumps(document))])
        runner.turn()
        assert phase(store) is Phase.ABORTED
        wait_for(partial(told_and_ended, number + 1))
    assert [each["url"] for each in posts] == [f"http://ci.test/{number}" for number in range(3)]
