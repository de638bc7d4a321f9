"""When a rollout is looked at, and that what is found is in its document: with made-up reports."""

from __future__ import annotations

import json
import math
import threading
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from rolling import settle

from lb.cli import rollout_report
from lb.core import looks
from lb.core import rollout as rollout_core
from lb.errors import CapacityError, ExitCode
from lb.model import keys
from lb.model.analysis import Analysis
from lb.model.evidence import Measurement, Outcome
from lb.model.flows import FIGURES, FlowReport, FlowTotals, Vantage
from lb.model.objects import Backend, Mode, Service
from lb.model.rollout import (
    Ask,
    Command,
    Phase,
    Rollout,
    RolloutEvidence,
    RolloutSpec,
    RolloutStatus,
    StepVerdict,
)
from lb.node import analyst
from lb.store import rollouts as stored
from lb.store.base import Put, Store

ANALYSIS = Analysis.model_validate({"metrics": [{"name": "resets"}]})
BACKENDS = tuple(
    Backend(service="web", name=name, address=IPv4Address("203.0.113.1"), pool=pool)
    for name, pool in (("b1", "stable"), ("o1", "old"), ("c1", "canary"))
)


def rollout(phase: Phase, every: float = 60.0, **fields: Any) -> Rollout:
    spec = RolloutSpec(pool="canary", steps=(5, 50), every=every, when=0.0, analysis=ANALYSIS)
    status = RolloutStatus(phase=phase, since=1000.0, step=1, before={"stable": 100.0, "old": 0.0})
    return Rollout(service="web", id="r1", spec=spec, status=status.model_copy(update=fields))


def kept(**fields: Any) -> RolloutEvidence:
    return RolloutEvidence.model_validate({"id": "r1", "step": 1, "since": 1000.0, **fields})


def test_looks_are_spread_over_a_step_and_the_last_is_at_its_end() -> None:
    baking = rollout(Phase.BAKING)
    assert looks.next_look(baking, None) == 1000  # a reading to compare with
    moments = [looks.next_look(baking, kept(looks=number)) for number in range(7)]
    assert moments == [1010, 1020, 1030, 1040, 1050, math.inf, math.inf]
    assert looks.next_look(rollout(Phase.BAKING, every=1.0), kept()) == math.inf
    analysing = rollout(Phase.ANALYSING)
    assert looks.next_look(analysing, kept(looks=5)) == 1000
    again = rollout(Phase.ANALYSING, looked=1001.0)
    assert looks.next_look(again, kept(looks=6)) == 1011
    for phase in set(Phase) - looks.LOOKED_AT:
        assert looks.next_look(rollout(phase), kept()) == math.inf


def test_a_new_step_and_a_step_that_begins_anew_count_from_new_readings() -> None:
    baking = rollout(Phase.BAKING)
    for other in (None, kept(id="r0"), kept(step=0), kept(since=999.0)):
        assert looks.is_new(baking, other)
    assert not looks.is_new(baking, kept())
    # Of a step that goes on after a pause the looks are counted on: none is allowed twice.
    assert looks.begun(baking, kept(since=900.0, looks=4), {}, 1000.0).looks == 4
    assert looks.begun(baking, kept(step=0, looks=4), {}, 1000.0).looks == 0
    assert looks.begun(baking, kept(id="r0", looks=4), {}, 1000.0).looks == 0


def test_who_is_compared() -> None:
    assert looks.sides(rollout(Phase.BAKING), BACKENDS) == (["b1"], ["c1"])


# --- with a store ---------------------------------------------------------------------------------


@dataclass
class Traffic:
    """What a node reports of `web`: so many connections more to each backend with each second."""

    store: Store
    bad: float = 0.0  # share of the canary's that are reset
    rate: int = 200
    epoch: str = "1"
    vantage: Vantage = Vantage.NODE
    totals: dict[str, FlowTotals] = field(default_factory=dict)

    def flow(self, now: float, seconds: float) -> None:
        for name in ("b1", "b2", "b3", "c1"):
            count = int(self.rate * seconds)
            before = self.totals.get(name, FlowTotals())
            resets = int(count * self.bad) if name == "c1" else 0
            self.totals[name] = FlowTotals(
                opened=before.opened + count,
                established=before.established + count,
                resets_by_server=before.resets_by_server + resets,
                handshake={10: before.opened + count},
            )
        report = FlowReport(service="web", node="n1", vantage=self.vantage, epoch=self.epoch, at=now,
                            backends=self.totals)  # fmt: skip
        self.store.commit([Put(keys.observed("web", "n1"), report.model_dump_json())])


@pytest.fixture
def traffic(store: Store) -> Traffic:
    return Traffic(store)


def analysis_file(folder: Path, text: str = "metrics: [{name: resets}]") -> str:
    (folder / "analysis.yaml").write_text(text)
    return str(folder / "analysis.yaml")


def go(runner: Any, traffic: Traffic, seconds: float) -> None:
    for _ in range(int(seconds)):
        runner.now += 1
        traffic.flow(runner.now, 1)
        runner.turn()


STEPS = ("--to", "canary", "--steps", "50,100", "--every", "20s")


def phase_of(canary: Any) -> tuple[str, str | None]:
    status = canary.json("rollout", "status", "web")["rollout"]["status"]
    return status["phase"], status["judged"]


def test_a_good_canary_is_promoted(canary: Any, runner: Any, traffic: Traffic, tmp_path: Path) -> None:
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path))
    go(runner, traffic, 120)
    assert phase_of(canary)[0] == "promoted"
    verdicts = canary.json("rollout", "status", "web")["rollout"]["status"]["verdicts"]
    assert [(each["step"], each["verdict"]["outcome"]) for each in verdicts] == [
        (1, "pass"),
        (2, "pass"),
    ]
    assert all(each["verdict"]["canary_samples"] > 1000 for each in verdicts)


def test_a_bad_one_is_aborted_before_its_step_is_over(
    canary: Any, runner: Any, traffic: Traffic, tmp_path: Path
) -> None:
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path))
    traffic.bad = 0.3
    go(runner, traffic, 25)
    assert phase_of(canary)[0] == "aborted"
    ended = canary("rollout", "wait", "web", "-o", "json")
    assert ended.code == ExitCode.ROLLOUT_WORSE
    assert "resets" in ended.json["error"]["message"]
    history = ended.json["rollout"]["status"]["history"]
    assert "analysing" not in {each["phase"] for each in history}


def test_without_traffic_it_is_inconclusive(
    canary: Any, runner: Any, traffic: Traffic, tmp_path: Path
) -> None:
    traffic.rate = 0
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path))
    go(runner, traffic, 80)
    assert phase_of(canary)[0] == "aborted"
    assert canary("rollout", "wait", "web").code == ExitCode.ROLLOUT_INCONCLUSIVE


def test_nobody_reports_anything(canary: Any, runner: Any, tmp_path: Path) -> None:
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path))
    deadline = time.monotonic() + 30
    while phase_of(canary)[0] != "aborted":  # the node applies what is written when it can
        runner.turn(5)
        assert time.monotonic() < deadline
    assert canary("rollout", "wait", "web").code == ExitCode.ROLLOUT_INCONCLUSIVE


def test_counters_that_began_anew_are_noticed(
    canary: Any, runner: Any, traffic: Traffic, tmp_path: Path
) -> None:
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path))
    go(runner, traffic, 9)
    traffic.epoch, traffic.totals = "2", {}
    go(runner, traffic, 3)
    status = canary.json("rollout", "status", "web")["rollout"]["status"]
    assert status["judged"] in (Outcome.NOT_ENOUGH_DATA, None)
    go(runner, traffic, 100)
    assert phase_of(canary)[0] == "promoted"


def test_a_takeover_goes_on_with_the_evidence(
    canary: Any, runner: Any, traffic: Traffic, store: Store, tmp_path: Path
) -> None:
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path))
    go(runner, traffic, 14)
    item = store.get(keys.evidence("web"))
    assert item is not None
    before = RolloutEvidence.model_validate_json(item.value)
    assert before.looks == 1
    runner.rollouts._lock.give_up()
    other = type(runner)(
        store,
        "n2",
    )
    other.now = runner.now
    go(other, traffic, 12)
    item = store.get(keys.evidence("web"))
    assert item is not None
    after = RolloutEvidence.model_validate_json(item.value)
    [window] = [each for each in after.evidence.steps if each.step == 0]
    # No second is missing: the first reading was the first node's.
    assert window.seconds >= 19
    assert window.canary["c1"].opened >= 19 * traffic.rate


def test_a_takeover_by_who_knows_other_figures_begins_anew(
    canary: Any, runner: Any, traffic: Traffic, store: Store, tmp_path: Path
) -> None:
    """What isn't in a reading would seem to have been 0 then."""
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path))
    go(runner, traffic, 14)
    item = store.get(keys.evidence("web"))
    assert item is not None
    older = json.loads(item.value)
    older["figures"].remove("unserved")
    store.commit([Put(item.key, json.dumps(older))])
    other = type(runner)(store, "n2")
    other.now = runner.now
    runner.rollouts._lock.give_up()
    other.turn()
    item = store.get(keys.evidence("web"))
    assert item is not None
    after = RolloutEvidence.model_validate_json(item.value)
    assert (after.looks, after.evidence.steps) == (0, ())
    assert after.figures == FIGURES


def test_by_default_it_is_judged_by_what_can_be_seen(canary: Any, runner: Any, traffic: Traffic) -> None:
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS)
    runner.turn()
    assert "a look at what can be seen" in canary.ok("rollout", "status", "web").out
    go(runner, traffic, 8)
    shown = canary.json("rollout", "status", "web")["rollout"]
    assert shown["status"]["step"] == 1
    assert shown["status"]["analysis"]["metrics"]
    go(runner, traffic, 120)
    assert phase_of(canary)[0] == "promoted"


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
@pytest.mark.parametrize("analysis", [False, True])
@pytest.mark.parametrize("after", [2, 15, 22])  # before the first step, in it, while it is judged
def test_looks_go_on_when_somebody_sets_the_clock(
    canary: Any, runner: Any, traffic: Traffic, tmp_path: Path, ahead: float, analysis: bool, after: int
) -> None:
    judged = ("--analysis", analysis_file(tmp_path)) if analysis else ()
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, *judged, "--deadline", "2m")
    go(runner, traffic, after)
    runner.set_clock(ahead)
    began = runner.now
    while phase_of(canary)[0] not in ("promoted", "aborted"):
        go(runner, traffic, 1)
        assert runner.now - began < 120
    assert phase_of(canary)[0] == "promoted"
    assert runner.now - began >= 40 - after


def test_nothing_is_seen_of_udp(lbctl: Any) -> None:
    lbctl.ok("service", "add", "dns", "--vip", "10.0.0.9:53", "--protocol", "udp")
    lbctl.ok("backend", "add", "dns", "b1", "203.0.113.1")
    lbctl.ok("backend", "add", "dns", "c1", "203.0.113.2", "--pool", "canary")
    refused = lbctl("rollout", "start", "dns", "--to", "canary")
    assert refused.code == ExitCode.ROLLOUT_REFUSED
    assert "--no-analysis" in refused.err
    lbctl.ok("rollout", "start", "dns", "--to", "canary", "--no-analysis")


def test_what_is_asked_outside_holds_nothing_up(
    canary: Any, runner: Any, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    asked: list[analyst.Context] = []

    def slow(_: Any, context: analyst.Context) -> Measurement:
        asked.append(context)
        answer.wait(20)
        return Measurement(canary=1.0, stable=1.0)

    monkeypatch.setattr(analyst, "measure", slow)
    file = analysis_file(tmp_path, "metrics: [{name: cpu, command: {argv: [/bin/cpu]}}]")
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", file)
    go(runner, traffic, 30)
    assert phase_of(canary) == ("analysing", None)
    answer.set()
    assert asked[0].canary_backends == ("c1",)
    assert (asked[0].stable, asked[0].canary, asked[0].share) == ("stable", "canary", 50)
    for _ in range(200):
        go(runner, traffic, 1)
        if phase_of(canary)[0] == "promoted":
            break
    assert phase_of(canary)[0] == "promoted"


def test_a_metric_without_a_say_that_never_answers_holds_nothing_up(
    canary: Any, runner: Any, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = threading.Event()
    asked: list[str] = []

    def measure(metric: Any, _: analyst.Context) -> Measurement:
        asked.append(metric.name)
        if metric.name == "trial":
            end.wait(60)
        return Measurement(canary=1.0, stable=1.0)

    monkeypatch.setattr(analyst, "measure", measure)
    trial = "{name: trial, observe: true, command: {argv: [/bin/trial]}}"
    cpu = "{name: cpu, command: {argv: [/bin/cpu]}}"
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis",
              analysis_file(tmp_path, f"metrics: [{cpu}, {trial}]"))  # fmt: skip
    try:
        for _ in range(300):
            go(runner, traffic, 1)
            if phase_of(canary)[0] in ("promoted", "aborted"):
                break
        assert phase_of(canary)[0] == "promoted"
        told = canary.json("rollout", "report", "web")["rollout"]["status"]["verdicts"]
        assert any("no answer yet" in each["verdict"]["words"] for each in told)
        assert asked.count("trial") == 1  # as long as it owes an answer
        assert asked.count("cpu") > 1
    finally:
        end.set()


@pytest.mark.parametrize("broken", [CapacityError("too large"), ValueError("a bug")])
@pytest.mark.parametrize("ending", ["deadline", "person"])
def test_a_look_that_fails_keeps_nobody_from_aborting(
    canary: Any, runner: Any, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, broken: Exception, ending: str,
) -> None:  # fmt: skip
    def fail(*_: Any) -> Any:
        raise broken

    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path),
              "--deadline", "120s")  # fmt: skip
    settle(runner)
    monkeypatch.setattr(looks, "looked", fail)
    go(runner, traffic, 21)
    assert phase_of(canary) == ("analysing", None)
    assert "web: the analysis" in caplog.text
    if ending == "person":
        found = stored.find(traffic.store, "web")
        assert found is not None
        asking = rollout_core.asked(found.rollout, Ask(command=Command.ABORT, who="me", when=0.0))
        traffic.store.commit([Put(keys.rollout("web"), asking.model_dump_json())])
    else:
        runner.turn(120)
    settle(runner)  # nodes have to apply the split of before
    status = canary.json("rollout", "status", "web")["rollout"]["status"]
    assert (status["phase"], status["ending"]) == ("aborted", ending)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metrics: [{name: nope}]", "analysis.yaml:1"),
        ("metrics: []", "metrics"),
        ("", "empty"),
    ],
)
def test_analysis_files_that_make_no_sense(
    canary: Any, store: Store, tmp_path: Path, text: str, words: str
) -> None:
    result = canary("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path, text))
    assert result.code == ExitCode.USAGE
    assert words in result.err
    assert store.get(keys.rollout("web")) is None
    missing = canary("rollout", "start", "web", *STEPS, "--analysis", str(tmp_path / "no.yaml"))
    assert missing.code == ExitCode.NOT_FOUND


def test_a_mode_that_sees_less_is_judged_by_less() -> None:
    service = Service(name="web", vip=IPv4Address("198.51.100.1"), port=80, split={"stable": 100.0})
    few = looks.chosen(rollout(Phase.PENDING), service, kept(), {}, BACKENDS).status.analysis
    nat = service.model_copy(update={"mode": Mode.NAT})
    many = looks.chosen(rollout(Phase.PENDING), nat, kept(), {}, BACKENDS).status.analysis
    assert few is not None
    assert many is not None
    assert len(few.metrics) < len(many.metrics) + 2


# --- reports --------------------------------------------------------------------------------------


@pytest.fixture
def aborted(canary: Any, runner: Any, traffic: Traffic, tmp_path: Path) -> Any:
    """A rollout that was aborted by an analysis, with one metric that only observes."""
    text = "metrics: [{name: resets}, {name: failed_handshakes, observe: true}]"
    traffic.flow(runner.now, 1)
    canary.ok("rollout", "start", "web", *STEPS, "--analysis", analysis_file(tmp_path, text))
    traffic.bad = 0.3
    go(runner, traffic, 25)
    for _ in range(60):  # a node whose lease ends because the machine is busy is waited for
        if phase_of(canary)[0] == "aborted":
            break
        go(runner, traffic, 1)
    return canary


def test_a_report_in_markdown(aborted: Any) -> None:
    text = aborted.ok("rollout", "report", "web").out
    assert text.startswith("## ❌ web to pool canary: aborted: analysis")
    [row] = [line for line in text.splitlines() if line.startswith("| 1 | resets |")]
    assert "30" in row.split("|")[4]
    assert "observed only" in text
    assert "stable 50 %, canary 50 %" in text


def test_a_report_for_test_tabs(aborted: Any) -> None:
    whole = ET.fromstring(aborted.ok("rollout", "report", "web", "-o", "junit").out)
    [suite] = whole
    cases = {case.get("name"): case for case in suite}
    assert suite.get("tests") == str(len(cases)) == "3"
    assert suite.get("failures") == "2"
    assert cases["promoted"].find("failure") is not None
    failure = cases["step 1 (50 %): resets"].find("failure")
    assert failure is not None
    assert "resets" in str(failure.get("message"))
    assert cases["step 1 (50 %): failed_handshakes"].find("skipped") is not None


def test_a_report_as_one_page_and_for_programs(aborted: Any) -> None:
    page = aborted.ok("rollout", "report", "web", "-o", "html").out
    assert "<script" not in page
    assert "http" not in page.replace("http_", "")
    assert page.count("<table>") == 2
    document = aborted.ok("rollout", "report", "web", "-o", "json").json
    verdict = document["rollout"]["status"]["verdicts"][0]["verdict"]
    for name in ("metric", "canary", "stable", "canary_samples", "stable_samples", "words"):
        assert verdict[name] not in (None, "")
    id = document["rollout"]["id"]
    assert aborted.ok("rollout", "report", "web", "--id", id, "-o", "json").json == document
    nope = aborted("rollout", "report", "web", "--id", "nope")
    assert nope.code == ExitCode.NOT_FOUND
    assert "no rollout 'nope'" in nope.err
    assert aborted("rollout", "report", "web", "-o", "yaml").code == ExitCode.USAGE


def test_what_others_say_is_no_markup() -> None:
    evil = "<script>|`x`\x00"
    verdict = {"metric": "m", "outcome": "could not measure", "words": evil}
    said = rollout(Phase.ABORTED, words=evil).model_copy()
    told = StepVerdict.model_validate({"step": 1, "at": 0.0, "verdict": verdict})
    said = said.model_copy(update={"status": said.status.model_copy(update={"verdicts": (told,)})})
    for form in rollout_report.ReportFormat:
        text = rollout_report.report(said, form)
        if form is not rollout_report.ReportFormat.JSON:
            assert "<script>" not in text
    ET.fromstring(rollout_report.report(said, rollout_report.ReportFormat.JUNIT))
