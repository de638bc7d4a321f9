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
from tests.kernels import debian, plan, table
from tests.kernels.plan import Line, Result

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
    named = [test for part in (*plan.MATRIX, *plan.OTHERS) for test in part.tests]
    for test in named:
        file, _, function = test.partition("[")[0].partition("::")
        assert f"def {function}" in (top / file).read_text(), test


def result(*lines: Line, **fields: object) -> Result:
    return replace(Result("6.1", "6.1.0-56-amd64", 0, 300.0, lines), **fields)  # type: ignore[arg-type]


def test_a_kernel_is_as_it_should_be_only_if_everything_ran() -> None:
    good = Line("a.py::b[c]", "passed", 1.0)
    assert result(good).whole
    assert not result().whole
    assert not result(good, status=None).whole
    assert not result(good, Line("a.py::d", "failed", 1.0)).whole
    assert result(good, Line("a.py::d", "skipped", 1.0)).outcome("a.py") == "skipped"
    assert result(good).outcome("other.py") == "failed"
    assert Result.load(result(good).dump()) == result(good)


def test_what_was_not_run_is_not_called_good() -> None:
    page = table.page([result(Line(f"{plan.MODEL}::t", "passed", 1.0, {"packets": 2015}))])
    assert "| 6.1.0-56-amd64 | tc | not run | not run |" in page
    assert "2,015 | yes | not run" in page
    modes = dict.fromkeys(table.MODES, "works") | {"gue": "no answer"}
    failed = Line(f"{plan.MODES}::test_all_modes_at_once[tc]", "failed", 1.0, {"modes": modes})
    page = table.page([result(Line(f"{plan.MODEL}::t", "failed", 1.0), failed)])
    assert "| 6.1.0-56-amd64 | tc | yes | yes | yes | **no** | yes |" in page


def test_the_script_ends_with_what_came_of_its_parts(tmp_path: Path) -> None:
    text = plan.script(tmp_path, plan.MATRIX)
    assert text.count("|| status=1") == len(plan.MATRIX)
    assert text.endswith("exit $status\n")
