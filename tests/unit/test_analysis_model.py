"""The analysis file: what is good in it, and how it is said what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lb.errors import UserError
from lb.model.analysis import KernelMetric, load

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "configs" / "analysis").glob("*.yaml"))


def test_there_are_examples_of_every_source() -> None:
    metrics = [each for file in EXAMPLES for each in load(file.read_text(), file.name).metrics]
    for source in ("kernel", "prometheus", "command", "webhook"):
        assert any(getattr(each, source) is not None for each in metrics), source


def test_a_name_alone_is_the_kernels_metric() -> None:
    (metric,) = load("metrics: [{name: first_byte_p95, limit: 250ms}]", "f").metrics
    assert metric.kernel is KernelMetric.FIRST_BYTE_P95
    assert metric.limit == 0.25
    assert not metric.compares
    (metric,) = load("metrics: [{name: slow, kernel: first_byte_p95, margin: 20%}]", "f").metrics
    assert (metric.kernel, metric.margin) == (KernelMetric.FIRST_BYTE_P95, 0.2)
    assert metric.compares


def test_the_allowance_can_be_set() -> None:
    assert load("metrics: [{name: errors}]", "f").false_alarms == 0.01
    assert load("false_alarms: 5%\nmetrics: [{name: errors}]", "f").false_alarms == 0.05


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: the file is empty"),
        ("metrics: {", ": not YAML: "),
        ("[]", "f:1:1: an analysis is a mapping"),
        ("metric: []", "f:1:1: unknown key 'metric'; did you mean 'metrics'?"),
        ("metrics: []", "f:1:1: metrics: must be 1 to 32, not 0"),
        ("metrics: 3", "f:1:1: metrics must be a list"),
        ("metrics: [3]", "f:1:11: metrics[0]: must be a mapping, not 3"),
        ("metrics:\n- name: error\n", "f:2:3: metrics[0]: kernel: 'error' is no metric of"),
        ("metrics:\n- {kernel: errors}", "f:2:3: metrics[0]: name: is missing"),
        ("metrics:\n- name: errors\n  limt: 3", "f:3:3: metrics[0]: unknown key 'limt'; did you"),
        ("metrics:\n- {name: errors, margin: yes}", "margin: True is not a figure; write 0.01, 1% or"),
        ("metrics:\n- {name: errors, margin: -1}", "margin: input should be greater than or equal to 0"),
        ("metrics:\n- {name: errors, limit: 1 %%}", "limit: '1 %%' is not a duration"),
        ("metrics:\n- {name: errors, observe: 1}", "observe: input should be a valid boolean, not 1"),
        ("metrics:\n- {name: errors, compare: false}", "with `compare: false` give a `limit`"),
        ("metrics:\n- {name: errors, worse: lower}", "`worse: lower` is for metrics from outside"),
        ("metrics:\n- {name: errors, breaches: 3}", "`breaches` is for metrics from outside"),
        ("metrics:\n- {name: errors}\n- {name: errors}", "f:3:4: metrics[1]: metric 'errors' "),
        ("metrics:\n- {name: A}", "name: must be 1 to 63 of a-z"),
        ("metrics:\n- {name: a, prometheus: {url: 'http://a'}}", "prometheus.query: is missing"),
        ("metrics:\n- name: a\n  prometheus:\n    url: b\n    query: c", "f:4:5: metrics[0]: "),
        ("metrics:\n- {name: a, prometheus: {url: 'http://a', query: a, q: 1}}", "prometheus.q: is not"),
        ("metrics:\n- {name: a, command: {argv: [ls]}}", "command.argv: 'ls' is not the whole path"),
        ("metrics:\n- {name: a, command: {argv: []}}", "command.argv: "),
        ("metrics:\n- {name: a, webhook: {url: 'http://a'}, min_samples: 3}", "`min_samples` is for"),
        ("metrics:\n- {name: a, kernel: errors, webhook: {url: 'http://a'}}", "give one source"),
        ("false_alarms: 50%\nmetrics: [{name: errors}]", "f:1:1: false_alarms: "),
        ("metrics: &a [*a]", "aliases make this endless"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(text, "f")
    assert message in caught.value.message
    assert caught.value.message.startswith("f")
    assert "lbctl schema analysis" in caught.value.hint
