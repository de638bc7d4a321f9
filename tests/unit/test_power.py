"""What `lbctl analysis check` says of power is what simulated rollouts show."""

from __future__ import annotations

import pytest
from simulated import Scenario, aborted

from lb.core.power import explain, power
from lb.core.spending import Look, Plan, allowance
from lb.model.analysis import Analysis, KernelMetric, Metric, Prometheus


def analysis(*names: str) -> Analysis:
    return Analysis(metrics=tuple(Metric(name=each) for each in names))


@pytest.mark.parametrize("steps", [(1, 5, 25, 50, 100), (10, 50, 100), (5, 20, 40)], ids=str)
def test_power_is_about_that_of_the_simulation(steps) -> None:
    both = analysis("http_5xx", "first_byte_p95")
    for index, latency, worse in ((0, False, {"worse": 0.02}), (1, True, {"slower": 1.3})):
        found = power(both.metrics[index], both, Plan(steps, 1), 2000)
        assert found is not None
        scenario = Scenario(steps=steps, looks=1, metrics=2, stable_backends=1, **worse)
        fails = aborted(scenario, 300, seed=1, latency=latency)
        for step, said in enumerate(found.by_step):
            simulated = float(((fails >= 0) & (fails <= step)).mean())
            assert simulated == pytest.approx(said, abs=0.1), (index, step)


def test_more_connections_find_more_and_more_metrics_less() -> None:
    one = analysis("http_5xx")
    six = analysis("http_5xx", "resets", "unserved", "errors", "client_resets", "http_4xx")
    plan = Plan((1, 5, 25, 50, 100), 6)
    few, many = (power(one.metrics[0], one, plan, each) for each in (500, 5000))
    shared = power(six.metrics[0], six, plan, 5000)
    assert few is not None
    assert many is not None
    assert shared is not None
    assert few.by_step[2] < shared.by_step[2] < many.by_step[2]
    assert list(many.by_step) == sorted(many.by_step)


def test_what_has_no_known_power_has_none() -> None:
    metrics = analysis("syn_retransmissions")
    assert power(metrics.metrics[0], metrics, Plan((50,)), 2000) is None
    limit = Metric(name="http_5xx", limit=0.01)
    assert power(limit, Analysis(metrics=(limit,)), Plan((50,)), 2000) is None


def test_every_metric_is_explained() -> None:
    for each in KernelMetric:
        assert explain(Metric(name=each.value)).startswith("fails if the ")
    asked = Metric(
        name="x", prometheus=Prometheus(url="http://a", query="q"), worse="lower", limit=2, observe=True
    )
    assert explain(asked) == (
        "tells, but does not abort, if the query 'q' at http://a is below 2, 2 looks in a row"
    )


@pytest.mark.parametrize("looks", [1, 2, 6])
def test_the_allowance_is_never_exceeded(looks: int) -> None:
    plan = Plan((1, 5, 25, 50, 100), looks)
    whole = sum(allowance(plan, Look(step, n)) for step in range(5) for n in range(looks + 200))
    assert 0.99 <= whole <= 1.0
