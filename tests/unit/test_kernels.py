"""What decides which kernels are booted, and what is made of what they say; the machines themselves are
`make test-kernels`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lb.datapath import release
from lb.datapath.replay import Replay
from lb.errors import DatapathError, UserError
from lb.node import doctor
from lb.node.doctor import Check
from lb.settings import Hook, Settings
from tests.kernels import __main__ as main
from tests.kernels import debian, plan, results, table
from tests.kernels.results import Line, Ran, Result

RELEASES = [
    "6.1.0-9-amd64",
    "6.1.0-56-amd64",
    "6.12.9+deb12-amd64",
    "6.12.117+deb12-amd64",
    "5.10.0-46-amd64",
    "7.3.4+deb13-amd64",
    "6.19.14+deb13-amd64",
]


@pytest.mark.parametrize(
    ("series", "first"),
    [
        ("6.1", "6.1.0-56-amd64"),
        ("6.12", "6.12.117+deb12-amd64"),
        ("5.10", "5.10.0-46-amd64"),
        (debian.NEWEST, "7.3.4+deb13-amd64"),
    ],
)
def test_the_newest_of_a_series_is_the_highest_number(series: str, first: str) -> None:
    assert debian.in_order(series, RELEASES)[0] == first


def test_there_is_nothing_of_another_series() -> None:
    assert debian.in_order("6.13", RELEASES) == []
    with pytest.raises(UserError, match="no series"):
        debian.fetch("bookworm", Path("/nonexistent"))


def test_headers_have_two_halves() -> None:
    assert debian.common("6.1.0-56-amd64") == "linux-headers-6.1.0-56-common"
    assert debian.common("7.3.4+deb13-amd64") == "linux-headers-7.3.4+deb13-common"


@pytest.mark.parametrize(
    ("text", "numbers"), [("6.1.0-56-amd64", (6, 1)), ("5.9.1", (5, 9)), ("weird", (0, 0))]
)
def test_versions_are_numbers(text: str, numbers: tuple[int, int]) -> None:
    assert release.version(text) == numbers
    assert (release.version(text) >= release.LEAST) == (numbers >= (5, 10))


def test_what_an_old_kernel_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel_checks() -> list[Check]:
        return [check for check in doctor._machine(Settings()) if check.name == "kernel"]

    monkeypatch.setattr("platform.release", lambda: "5.10.0-46-amd64")
    assert [check.ok for check in kernel_checks()] == [True, None, None]
    assert [check.detail.partition(": ")[2] for check in kernel_checks()[1:]] == [
        feature.what for feature in release.FEATURES
    ]
    beside = object.__new__(Replay)
    beside.hook = Hook.XDP
    with pytest.raises(DatapathError, match=r"needs Linux 5\.15"):
        beside.send(bytes(64), 1)
    monkeypatch.setattr("platform.release", lambda: "5.9.16")
    assert kernel_checks()[0].ok is False
    monkeypatch.setattr("platform.release", lambda: "6.18.1")
    assert [check.ok for check in kernel_checks()] == [True]


def test_the_tests_that_are_named_exist() -> None:
    top = Path(__file__).parents[2]
    named = [test for part in plan.PARTS.values() for test in part.tests]
    for test in named:
        file, _, function = test.partition("[")[0].partition("::")
        assert f"def {function}" in (top / file).read_text(), test


def ran(part: str, *lines: Line, status: int | None = 0) -> Ran:
    return Ran(part, "2026-11-26", status, 300.0, lines)


def result(*parts: Ran, series: str = "6.1", release: str = "6.1.0-56-amd64") -> Result:
    return Result(series, release, parts)


GOOD = Line("a.py::b[c]", "passed", 1.0)
BAD = Line("a.py::d", "failed", 1.0, why="much\nE   this")


def test_a_kernel_is_as_it_should_be_only_if_everything_ran() -> None:
    assert result(ran("x", GOOD)).whole(["x"])
    assert not result(ran("x", GOOD)).whole(["x", "y"])
    assert not result(ran("x")).whole(["x"])
    assert not result(ran("x", GOOD, status=None)).whole(["x"])
    assert not result(ran("x", GOOD, BAD)).whole(["x"])
    assert result(ran("x", GOOD, Line("a.py::d", "skipped", 1.0))).outcome("a.py") == "skipped"
    assert result(ran("x", GOOD), ran("y", BAD)).outcome("a.py") == "failed"
    assert result(ran("x", GOOD)).outcome("other.py") == ""


def test_a_guest_that_was_ended_has_said_what_it_said() -> None:
    said = [
        '{"begun": "x", "status": 0, "seconds": 0}',
        '{"test": "a.py::b[c]", "outcome": "passed", "seconds": 1.0, "properties": {}, "why": ""}',
        '{"ended": "x", "status": 0, "seconds": 300}',
        '{"begun": "y", "status": 0, "seconds": 0}',
        "[  300.1] something of the kernel's",
    ]
    assert plan.heard(said, "2026-11-26") == (ran("x", GOOD), Ran("y", "2026-11-26"))


def test_a_new_run_replaces_its_part_and_a_new_package_everything(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    old = result(ran("x", GOOD), series="5.10", release="5.10.0-46-amd64")
    results.keep([result(ran("x", GOOD), ran("y", BAD)), old], file)
    assert list(results.load(file)) == ["5.10", "6.1"]
    shown = replace(BAD, why="E   this")
    assert results.load(file)["6.1"] == result(ran("x", GOOD), ran("y", shown))
    mended = replace(BAD, outcome="passed", why="")
    results.keep([result(ran("y", mended), ran("z", status=None)), replace(old, parts=())], file)
    assert results.load(file) == {"5.10": old, "6.1": result(ran("x", GOOD), ran("y", mended))}
    newer = result(ran("y", GOOD), release="6.1.0-57-amd64")
    results.keep([newer], file)
    cut_short = result(Ran("y", "2026-11-27", None, 0.0, (GOOD,)), release="6.1.0-57-amd64")
    results.keep([cut_short], file)
    assert results.load(file) == {"5.10": old, "6.1": newer}


def test_what_a_test_said_last_holds_whichever_part_it_was_in() -> None:
    mended = replace(BAD, outcome="passed", why="")
    merged = result(ran("x", GOOD, BAD)).with_newer(result(ran("y", mended)))
    assert merged == result(ran("x", GOOD), ran("y", mended))


def test_what_was_not_run_is_not_called_good() -> None:
    packets = Line(f"{plan.MODEL}::t", "passed", 1.0, {"packets": 2015})
    page = table.page({"6.1": result(ran("programs", packets))})
    assert "| 6.1.0-56-amd64 | tc | not run | not run |" in page
    assert "not run | yes (2,015 packets) | not run" in page
    modes = dict.fromkeys(table.MODES, "works") | {"gue": "no answer"}
    failed = Line(f"{plan.MODES}::test_all_modes_at_once[tc]", "failed", 1.0, {"modes": modes})
    page = table.page({"6.1": result(ran("modes", failed))})
    assert "| 6.1.0-56-amd64 | tc | yes | yes | yes | **no** | yes |" in page


def test_a_program_that_is_refused_has_no_figure() -> None:
    walked = {"verified": 1_000_001}
    lines = [Line(test, "failed", 1.0, walked) for test in plan.PROGRAMS.values()]
    old = [Line(test, "passed", 1.0, {"verified": 0}) for test in plan.PROGRAMS.values()]
    page = table.page({"6.1": result(ran("programs", *lines)), "5.10": result(ran("programs", *old))})
    count = len(plan.PROGRAMS)
    assert "| 6.1.0-56-amd64 |" + " **no** |" * count in page
    assert "| 6.1.0-56-amd64 |" + " yes |" * count in page


def test_the_page_is_made_of_what_was_measured() -> None:
    """Nobody writes a result by hand."""
    assert table.PAGE.read_text() == table.page(results.load())


def test_what_matters_most_is_run_first_and_other_ends_once() -> None:
    machines = [(series, part.name) for series, part in main.jobs(debian.SERIES, ())]
    assert machines[:5] == [*((series, "programs") for series in debian.SERIES), ("5.10", "beside")]
    assert [series for series, part in machines if part == "tunnels"] == ["6.1"]
    assert {part for series, part in machines if series == "5.10"} == set(plan.MATRIX)
    assert [(series, part.name) for series, part in main.jobs(["6.12"], ["ipvs"])] == [("6.12", "ipvs")]
    with pytest.raises(UserError, match="no part 'all'"):
        main.jobs(["6.12"], ["all"])
