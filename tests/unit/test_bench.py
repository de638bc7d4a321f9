"""The peers of `make bench` are what they claim to be, and its arithmetic is right."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import __main__ as run
from bench import (
    compare,
    control,
    document,
    fleet,
    frames,
    goals,
    growth,
    live,
    load,
    netns,
    packet,
    paper,
    plot,
    report,
    requests,
    rows,
    shares,
    slots,
    suites,
)
from bench.peers import maglev, native, rendezvous
from bench.rows import Options, Row
from bench.shares import Layout
from lb.core.conflicts import Standing, conflicts
from lb.core.plan import plan
from lb.core.reference.parse import Packet, parse
from lb.errors import LbError
from lb.node.planning import Bases
from tests.checks import bench as check

PRIME = 1009


def backends(count: int) -> list[str]:
    return [f"backend-{i}" for i in range(count)]


def layout(names: str, slot_owners: str) -> Layout:
    return Layout(tuple(names), np.array([names.index(owner) for owner in slot_owners], np.int32))


# -- Maglev ------------------------------------------------------------------------------------


def test_maglev_fills_the_table_of_the_paper() -> None:
    """NSDI'16, table 1: offsets and skips (3, 4), (0, 2), (3, 1), M = 7; then without B1."""
    assert maglev.fill([3, 0, 3], [4, 2, 1], 7) == [1, 0, 1, 0, 2, 2, 0]
    assert maglev.fill([3, 3], [4, 1], 7) == [0, 0, 0, 0, 1, 1, 1]


def test_maglev_preferences_are_permutations() -> None:
    for offset, skip in zip(*maglev.preferences(backends(20), PRIME), strict=True):
        assert sorted((offset + j * skip) % PRIME for j in range(PRIME)) == list(range(PRIME))


@pytest.mark.parametrize("count", [1, 2, 7, 100, PRIME])
def test_maglev_with_equal_weights_differs_by_one_slot_at_most(count: int) -> None:
    held = np.bincount(maglev.fill(*maglev.preferences(backends(count), PRIME), PRIME))
    assert len(held) == count
    assert held.sum() == PRIME
    assert held.max() - held.min() <= 1


def test_maglev_gives_turns_by_weight() -> None:
    weights = [10, 20, 70]
    held = np.bincount(maglev.fill(*maglev.preferences(backends(3), 65537), 65537, weights))
    assert held / 65537 == pytest.approx([0.1, 0.2, 0.7], abs=0.001)
    same = maglev.preferences(backends(5), PRIME)
    assert maglev.fill(*same, PRIME, [30] * 5) == maglev.fill(*same, PRIME)


@pytest.mark.skipif(not native.available(), reason="there is no C compiler")
@pytest.mark.parametrize("weights", [[1] * 30, list(range(1, 31))])
def test_the_peers_in_c_are_the_peers_in_python(weights: list[int]) -> None:
    names = backends(30)
    ring = maglev.fill(*maglev.preferences(names, PRIME), PRIME, weights)
    assert maglev.table(names, weights, PRIME).tolist() == ring
    ranked = rendezvous.fill(rendezvous.keys(names), weights, 20011)
    assert np.array_equal(rendezvous.table(names, weights, 20011), ranked)


# -- rendezvous --------------------------------------------------------------------------------


def test_rendezvous_moves_only_the_slots_of_who_goes() -> None:
    names, weights = backends(20), [10 * (1 + i % 5) for i in range(20)]
    before = Layout(tuple(names), rendezvous.table(names, weights, PRIME))
    rest = names[:7] + names[8:]
    after = Layout(tuple(rest), rendezvous.table(rest, weights[:7] + weights[8:], PRIME))
    gone = before.slots == 7
    assert shares.moved(before, after) == gone.sum() > 0
    named = np.array(names)[before.slots], np.array(rest)[after.slots]
    assert (named[0][~gone] == named[1][~gone]).all()


def test_rendezvous_moves_slots_only_to_who_gets_heavier() -> None:
    names, weights = backends(20), [10] * 20
    before = rendezvous.table(names, weights, PRIME)
    weights[3] = 30
    after = rendezvous.table(names, weights, PRIME)
    assert (before != after).any()
    assert (after[before != after] == 3).all()


def test_rendezvous_is_even_on_average() -> None:
    size, weights = 200_003, [10, 20, 30, 40]
    held = np.bincount(rendezvous.table(backends(4), weights, size)) / size
    # Four standard deviations of a binomial with 200,003 draws: below 0.5 %.
    assert held == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.005)


# -- what an even table is ---------------------------------------------------------------------


def test_moved_goes_by_name() -> None:
    before = layout("abc", "aabbcc")
    assert shares.moved(before, layout("cba", "aabbcc")) == 0
    assert shares.moved(before, layout("ac", "aaaccc")) == 2
    assert shares.moved(layout("ab", "ab"), layout("cd", "cd")) == 2


def test_the_least_movement_of_known_cases() -> None:
    # 100 slots, two with 50: a third of the same weight needs 33 1/3, of which 33 will do.
    assert shares.least({"a": 50, "b": 50}, {"a": 1, "b": 1, "c": 1}, 100) == 33
    assert shares.least({"a": 34, "b": 33, "c": 33}, {"a": 1, "b": 1}, 100) == 33
    assert shares.least({"a": 51, "b": 49}, {"a": 1, "b": 1}, 100) == 0
    assert shares.least({"a": 60, "b": 40}, {"a": 1, "b": 1}, 100) == 9
    assert shares.least({"a": 1, "b": 99}, {"a": 0, "b": 1}, 100) == 1
    assert shares.must_change({"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}) == Fraction(1, 3)
    assert shares.must_change({"a": 1, "b": 3}, {"a": 3, "b": 1}) == Fraction(1, 2)


def test_the_least_movement_is_that_of_the_best_table_there_is() -> None:
    """By trying all ways to divide 7 slots among three."""
    dice = random.Random(1)
    for _ in range(50):
        held = np.bincount([dice.randrange(3) for _ in range(7)], minlength=3)
        weights = {name: dice.randint(0, 4) for name in "abc"}
        if not any(weights.values()):
            continue
        share = shares.exact(weights, 7)
        ways = [(a, b, 7 - a - b) for a in range(8) for b in range(8 - a)]
        even = [
            way
            for way in ways
            if all(
                abs(n - share[name]) <= 1 and (n == 0 or weights[name])
                for n, name in zip(way, "abc", strict=True)
            )
        ]
        best = min(sum(max(0, int(h) - n) for h, n in zip(held, way, strict=True)) for way in even)
        counts = {name: int(n) for name, n in zip("abc", held, strict=True)}
        assert shares.least(counts, weights, 7) == best


def test_evenness_of_a_known_table() -> None:
    even = shares.evenness(layout("ab", "aaab"), {"a": 1, "b": 1})
    assert even.max_over_share == 1.5
    assert even.deviation == 50
    assert even.worst_slots == 1
    assert shares.runs(layout("ab", "aabba").slots) == 3


def test_every_change_is_one_that_our_tables_follow() -> None:
    """The overlay and the plan, as the suite drives them: nothing is left on who is down."""
    dice = random.Random(2)
    weights = slots.population(20, False, dice)
    for change in slots.changes(weights, dice):
        before, after = slots.our_tables(change)
        held = after.counts()
        assert {name for name, n in held.items() if n} == change.serving().keys()
        assert sum(held.values()) == len(after.slots)
        assert shares.moved(before, after) > 0


# -- rows, comparison, report ------------------------------------------------------------------


def made(median: float, spread: float = 0.0, ratio: float | None = None, case: str = "x: y") -> Row:
    return Row("slots", case, "lb", "ms", median, median - spread, median + spread, 3, ratio)


def test_a_row_sums_up() -> None:
    row = rows.row("s", "section: label", "p", "ms", [3.0, 1.0, 2.0], floor=0.5)
    assert (row.median, row.min, row.max, row.n, row.ratio_to_floor) == (2, 1, 3, 3, 4)
    assert (row.section, row.label) == ("section", "label")
    assert rows.row("s", "c", "p", "ms", [1.0]).ratio_to_floor is None
    with pytest.raises(ValueError, match="nothing was measured"):
        rows.row("s", "c", "p", "ms", [])


def test_cases_are_interleaved_and_take_turns_at_being_first() -> None:
    seen: list[str] = []
    cases = {name: (lambda name=name: float(len(seen.append(name) or seen))) for name in "abc"}
    times = rows.interleaved(cases, 3)
    assert "".join(seen) == "abcbcacab"
    assert times == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    wanted = [made(1.5, 0.5, 3.0), made(2.0)]
    rows.write(tmp_path / "a/latest.json", wanted)
    assert rows.read(tmp_path / "a/latest.json") == wanted
    assert list(json.loads((tmp_path / "a/latest.json").read_text())[0]) == [
        "suite", "case", "peer", "unit", "median", "min", "max", "n", "ratio_to_floor",
    ]  # fmt: skip
    for text in ('[{"suite": "s"}]', "{", "3"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="not a result of bench"):
            rows.read(tmp_path / "bad.json")


def test_comparison_of_known_values() -> None:
    old = [
        made(10, 1, 2.0, "a: a"),
        made(10, 1, None, "b: b"),
        made(0, case="c: c"),
        made(1, case="d: d"),
    ]
    new = [
        made(20, 1, 3.0, "a: a"),
        made(11, 1, 4.0, "b: b"),
        made(3, case="c: c"),
        made(1, case="e: e"),
    ]
    a, b, c = compare.compare(old, new)
    assert (a.ratio, a.ratio_over_floor, a.clear) == (2, 1.5, True)
    assert (b.ratio, b.ratio_over_floor, b.clear) == (1.1, None, False)
    assert (c.ratio, c.clear) == (None, True)
    assert [[each.case for each in part] for part in compare.missing(old, new)] == [["d: d"], ["e: e"]]


def test_compare_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, median in (("old", 10.0), ("new", 5.0)):
        rows.write(tmp_path / f"{name}.json", [made(median)])
    assert compare.main([str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    assert "0.500" in (said := capsys.readouterr().out)
    assert "1 rows compared, 1 clearly changed; 0 gone, 0 new" in said
    assert compare.main([str(tmp_path / "none.json"), str(tmp_path / "new.json")]) == 2


def test_the_report_shows_every_row() -> None:
    found = [
        Row("slots", "moved, one added: N = 100, random weights", peer, "% of slots", n, n, n, 1, n)
        for peer, n in (("lb 65,536", 1.25), ("Maglev 65,537", 2.5))
    ]
    drawn = report.plots(found)
    text = report.markdown(found, list(drawn))
    assert "### moved, one added (% of slots)" in text
    assert "| N = 100, random weights | 1.25 = 1.25x | 2.5 = 2.5x |" in text
    assert "![slots-moved-100.svg](slots-moved-100.svg)" in text
    assert paper.compared(found) == []


def test_the_paper_is_quoted_next_to_what_was_measured() -> None:
    claim = paper.CLAIMS[1]
    found = [
        Row("slots", *place, "x", n, n, n, 1) for place, n in ((claim.theirs, 1.49), (claim.ours, 1.01))
    ]
    lines = paper.compared(found)
    assert len(lines) == 3
    assert "49.5 %" in lines[2]
    assert "HRW 65,537: 1.49 x | 1.01 x" in lines[2]


def test_bars_are_svg() -> None:
    root = ElementTree.fromstring(
        plot.bars("a < b", "ms", {"one": {"p": 1.0, "q": 2.0}, "two": {"p": 0.0}})
    )
    widths = [float(r.get("width", "")) for r in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[-3:] == [210, 420, 0]


def test_options_pick() -> None:
    assert (Options().pick(5, 1), Options(quick=True).pick(5, 1)) == (5, 1)


# -- packet ------------------------------------------------------------------------------------


def test_percentiles_are_of_the_nearest_rank() -> None:
    spread, p99 = fleet.percentiles("x", [float(value) for value in range(1, 201)])
    assert (spread.n, spread.median, spread.max) == (200, 100.5, 200)
    assert (p99.case, p99.n, p99.median) == ("x, p99", 1, 198)
    assert fleet.percentiles("x", [3.0, 1.0])[1].median == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="maps need root")
def test_simulated_nodes_all_apply_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "NODES", 4)
    monkeypatch.setattr(fleet, "PROCESSES", 2)
    (last, _) = fleet.simulated(Options(quick=True))
    assert last.n == 5
    assert last.case.startswith("4 simulated nodes")
    assert 0 < last.min < 10_000


def test_the_frames_are_what_they_are_called() -> None:
    """Read by the reference model's parser, which a test of its own holds against scapy."""
    for version in (4, 6):
        vip = frames.elsewhere(version)
        for frame, protocol, syn in (
            (frames.tcp(vip), 6, False),
            (frames.tcp(vip, syn=True), 6, True),
            (frames.udp(vip), 17, False),
            (frames.echo(vip), {4: 1, 6: 58}[version], False),
        ):
            seen = parse(frame, netns.INGRESS)
            assert isinstance(seen, Packet)
            assert len(frame) == frames.LENGTH
            assert (seen.destination, seen.proto, seen.begins) == (vip, protocol, syn)
            assert protocol not in (6, 17) or seen.dport == frames.PORT


def test_the_world_is_one_that_lb_accepts() -> None:
    """No service contradicts another, and all backends can be reached."""
    for state, observed in (frames.world(), frames.grown(3, 300), control.fleet(3)):
        by_path = {f"{b.service}/{b.name}": b for b in state.backends.values()}
        assert not conflicts(state.services, by_path, Standing())
        wanted = plan(state, observed, Bases().update(state))
        assert not wanted.problems
        assert all(backend.next_hop for backend in wanted.backends.values())
    changed = control.reweighted(state, 1)
    assert sum(changed.backends[key] != each for key, each in state.backends.items()) == 1


def test_flows_differ_and_stay_the_same_when_shuffled() -> None:
    flows = load.uniform_flows()
    walked = load.shuffled(flows, (1, 100))
    assert len(np.unique(flows.view(np.uint64))) == load.FLOWS
    assert walked.dtype == flows.dtype == load.FLOW  # byte order included: the kernel reads it raw
    assert walked[0] == flows[0]
    assert set(walked[:100].tolist()) == set(flows[:100].tolist())
    assert walked[:100].tolist() != flows[:100].tolist()
    assert len(np.unique(walked.view(np.uint64))) == load.FLOWS


def test_structs_are_as_large_as_in_c() -> None:
    assert ctypes.sizeof(load.BenchRun) == 24 + 8 * load.VERDICTS + frames.LENGTH
    assert load.FLOW.itemsize == 8


def test_cases_have_names_of_their_own() -> None:
    cases = [
        *(case for flows in (1, 10_000, load.FLOWS) for case in packet.flow_cases(flows)),
        *packet.syn_cases(),
        *packet.other_cases(),
    ]
    assert len({case.label for case in cases}) == len(cases)


# -- live, requests, the check -----------------------------------------------------------------


def test_live_cases_have_a_floor_of_as_many_flows() -> None:
    cases = live.cases()
    assert len({case.key for case in cases}) == len(cases)
    assert {case.flows for case in cases} == {c.flows for c in cases if c.peer == live.FLOOR}
    found = {case.key: [2.0e6, 1.0e6, 3.0e6] for case in cases}
    slow = next(case for case in cases if case.peer == live.NFTABLES)
    found[slow.key] = [1.0e6, 0.1e6, 1.5e6]
    made = {(row.case, row.peer): row for row in live.rows_of(cases, found)}
    assert made[slow.label, slow.peer].ratio_to_floor == 0.5  # of 0.5, 0.1, 0.5: round by round
    assert made[slow.label, slow.peer].median == 1.0


def test_cpu_over_direct_is_of_the_least_of_each() -> None:
    def runs(*cpu: float) -> list[requests.Run]:
        return [requests.Run(100, 1, 2, each) for each in cpu]

    found = {
        (requests.DIRECT, requests.KEEP): runs(1.0, 2.0, 3.0),
        (requests.DSR, requests.KEEP): runs(1.5, 2.5, 9.0),
    }
    assert requests.over_direct(found, requests.DSR, requests.KEEP) == 0.5
    made = {(row.section, row.peer): row for row in requests.rows_of(found)}
    assert made["CPU over direct for 10,000 requests", requests.DSR].median == 0.5
    assert made["answers", requests.DSR].ratio_to_floor == 1


def measured() -> list[Row]:
    """Rows that meet every goal exactly, where each figure is made of one row alone."""
    of = goals.Figures([])
    found: dict[tuple[str, str, str], Row] = {}

    class Asked(goals.Figures):
        def row(self, suite: str, case: str, peer: str = "lb") -> Row:
            return found.setdefault(
                (suite, case, peer), Row(suite, case, peer, "x", 1.0, 1.0, 1.0, 1, 1.0)
            )

        def all(self, suite: str) -> list[Row]:
            return [self.row(suite, "memory: after start")]

    assert of.rows == ()
    for goal in goals.GOALS:
        goal.value(Asked([]))
    return list(found.values())


def test_every_goal_reads_rows_that_there_are() -> None:
    """By the names that the suites give them."""
    names = {
        *((packet.SUITE, case.label) for case in packet.flow_cases(1)),
        *((packet.SUITE, case.label) for case in packet.flow_cases(load.FLOWS)),
        *((packet.SUITE, case.label) for case in (*packet.syn_cases(), *packet.other_cases())),
        *((growth.SUITE, c.label) for size in growth.SIZES for c in growth.cases(*size)),
        *((live.SUITE, case.label) for case in live.cases()),
    }
    read = {(row.suite, row.case) for row in measured()}
    assert {each for each in read if each[0] in ("packet", "growth", "live")} <= names
    assert len(goals.values(measured())) == len(goals.GOALS)
    assert goals.values([]) == {}


def test_the_check_fails_unless_every_goal_is_met_and_measured() -> None:
    met = {goal.name: goal.limit for goal in goals.GOALS}
    assert goals.missed(met) == []
    line = check.line(met)
    assert line.startswith("check-bench: PASS hit_vs_floor=2.44 newflow_vs_hit=1.51 ")
    assert line.endswith("live_vs_redirect=0.75 live_vs_nft=4.00 cpu_over_direct_vs_haproxy=0.20")
    for goal in goals.GOALS:
        worse = goal.limit * (0.99 if goal.at_least else 1.01)
        assert goals.missed({**met, goal.name: worse}) == [goal.name]
        assert goals.missed({**met, goal.name: float("nan")}) == [goal.name]
        assert goals.missed({name: met[name] for name in met if name != goal.name}) == [goal.name]
    assert "FAIL hit_vs_floor=none" in check.line({})


def test_only_a_whole_run_is_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SUITES", dict.fromkeys(("slots", "paper")))
    monkeypatch.setattr(run, "measured", lambda *_: [made(1)])
    for arguments, folder in (
        ([], tmp_path),
        (["slots", "paper"], tmp_path),
        (["slots"], tmp_path / "partial"),
        (["--quick"], tmp_path / "partial"),
    ):
        monkeypatch.setattr("sys.argv", ["bench", "--results", str(tmp_path), *arguments])
        assert run.main() == 0
        (folder / "latest.json").unlink()
        assert not list(tmp_path.rglob("*.json"))


def test_a_suite_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its errors come back."""
    monkeypatch.setattr(slots, "run", None)  # here, not there
    assert {row.suite for row in suites.measured("slots", Options(quick=True))} == {"slots"}
    monkeypatch.setattr(suites, "_outcome", failing)
    with pytest.raises(LbError, match="no such thing as slots"):
        suites.measured("slots", Options())


def failing(suite: str, _: Options) -> suites.Failure:
    return suites.Failure(f"no such thing as {suite}", "")


def test_performance_quotes_the_results_that_are_committed() -> None:
    """If not: python -m bench.document."""
    page = document.PAGE.read_text()
    assert page == document.filled(page, rows.read(rows.RESULTS / "latest.json"))
    assert set(re.findall(r"<!-- figures: (\w+) -->", page)) == document.PARTS.keys()
