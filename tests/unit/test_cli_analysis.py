"""lbctl analysis check."""

import io
import json

import pytest

from lb.errors import ExitCode

FILE = "metrics:\n- name: http_5xx\n- {name: first_byte_p95, observe: true}\n"


@pytest.fixture
def file(machine):
    path = machine / "analysis.yaml"
    path.write_text(FILE)
    return str(path)


def test_it_says_what_would_be_judged_and_what_would_be_found(lbctl, file):
    out = lbctl.ok("analysis", "check", file).out
    assert "http_5xx fails if the share of HTTP responses that are 5xx is higher" in out
    assert "first_byte_p95 tells, but does not abort," in out
    assert "at 2,000 connections a step" in out
    assert "aborted in at most 1 % of rollouts" in out
    data = lbctl.json("analysis", "check", file, "--steps", "10,100", "--connections", "50000")
    assert data["steps"] == [10.0, 100.0]
    assert data["metrics"][0]["power"][-1] > 0.99
    few = lbctl.json("analysis", "check", file, "--connections", "100")
    assert few["metrics"][0]["power"][0] == 0


@pytest.mark.usefixtures("machine")
def test_standard_input(lbctl, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("metrics: [{name: nope}]"))
    result = lbctl("analysis", "check", "-")
    assert result.code == ExitCode.USAGE
    assert "standard input:1:" in result.err


@pytest.mark.parametrize("steps", ["", "5,5", "50,10", "0,50", "50,101", "a", "nan"])
def test_steps_that_are_none(lbctl, file, steps):
    result = lbctl("analysis", "check", file, "--steps", steps)
    assert result.code == ExitCode.USAGE
    assert "--steps" in result.err


def test_a_file_that_is_not_there(lbctl, machine):
    assert lbctl("analysis", "check", str(machine / "gone")).code == ExitCode.NOT_FOUND


@pytest.mark.usefixtures("machine")
def test_its_schema_is_printed(lbctl):
    schema = json.loads(lbctl.ok("schema", "analysis").out)
    assert set(schema["properties"]) == {"metrics", "false_alarms"}


OUTSIDE = """\
- name: apdex
  prometheus: {url: "http://203.0.113.1:9090", query: "1"}
"""
KERNEL = "- name: errors\n"


@pytest.mark.parametrize(
    ("metrics", "promise", "said"),
    [
        (OUTSIDE, None, "An equal canary may be aborted: how often by a metric from outside"),
        (OUTSIDE + KERNEL, 0.01, "in at most 1 % of rollouts by the kernel's metrics; how often"),
        (KERNEL, 0.01, "An equal canary is aborted in at most 1 % of rollouts.\n"),
        (KERNEL + "  limit: 1%\n", 0.01, "An equal canary within the limits is aborted"),
        (OUTSIDE + "  observe: true\n" + KERNEL, 0.01, "is aborted in at most 1 % of rollouts.\n"),
        (KERNEL + "  observe: true\n", 0.01, "An equal canary is aborted in at most 0 % of rollouts.\n"),
    ],
)
def test_what_is_promised_holds_for_these_metrics(lbctl, tmp_path, metrics, promise, said):
    file = tmp_path / "a.yaml"
    file.write_text(f"metrics:\n{metrics}")
    assert said in lbctl.ok("analysis", "check", str(file)).out
    assert lbctl.json("analysis", "check", str(file))["false_alarms"] == promise
