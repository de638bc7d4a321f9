"""What lbd tells Prometheus, as Prometheus' own parser reads it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from doubles import node_status
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as families

from lb.core.health import Verdict
from lb.core.plan import Observed, plan
from lb.core.state import parse
from lb.datapath.view import Counter, Stats
from lb.model import keys
from lb.model.objects import (
    Backend,
    ClusterConfig,
    Mode,
    Service,
)
from lb.model.reports import BackendHealth, FullReport, Problem
from lb.model.rollout import Ending, Phase, Rollout, RolloutSpec, RolloutStatus
from lb.node.metrics import KINDS, Exporter, Scrape, serve
from lb.node.planning import Bases
from lb.settings import Metrics, Settings

CONFIGS = Path(__file__).parents[2] / "configs/prometheus"
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def text_of(scrape: Scrape) -> str:
    registry = CollectorRegistry()
    registry.register(Exporter(lambda: scrape))
    return generate_latest(registry).decode()


def series(text: str) -> Series:
    found: Series = {}
    for family in families(text):
        assert family.documentation, family.name
        assert family.type in ("gauge", "counter"), family.name
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


FULL = "lb_backend_full"


def value(found: Series, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def rollout(service: str, phase: Phase, **status: Any) -> Rollout:
    return Rollout(
        service=service,
        id="1",
        spec=RolloutSpec(pool="canary", steps=(5, 50, 100), when=500.0),
        status=RolloutStatus(phase=phase, **status),
    )


def busy() -> Scrape:
    """A node with everything."""
    service = Service(name="web", vip=ip_address("198.51.100.100"), port=80, mode=Mode.FULLNAT)
    backends = [
        Backend(
            service="web",
            name=name,
            address=ip_address(f"203.0.113.{n}"),
            pool=pool,
            max_connections=None if pool == "canary" else 10,
        )
        for n, (name, pool) in enumerate((("b1", "stable"), ("b2", "stable"), ("c1", "canary")), 1)
    ]
    items = [
        (keys.CONFIG, ClusterConfig(seed="00" * 16).model_dump_json(), 1),
        (keys.service("web"), service.model_dump_json(), 2),
        (keys.service("bad"), "{", 3),
        (keys.backend("web", "x"), "[]", 4),
        (keys.backend("gone", "x"), "", 5),
        (keys.table("web"), "no table", 6),
        *((keys.backend("web", each.name), each.model_dump_json(), 7) for each in backends),
    ]
    state = parse(7, items)
    problems = (Problem(where="node1", message="bad"), Problem(where="x", message="y", warning=True))
    health = {
        "web/b1": BackendHealth(state="healthy", since=1.0, share=0.25),
        "web/b2": BackendHealth(state="unhealthy", since=1.0, share=0.0),
    }
    status = node_status("node1", 7).model_copy(
        update={
            **{"problems": problems, "health": health, "unresolved": ("web/b2",)},
            "full": {"web/b1": FullReport(connections=12, limit=10)},
            "left_out": ("api", "web/b3", "web/b4"),
        }
    )
    wanted = plan(state, Observed({}, frozenset()), Bases().update(state))
    return Scrape(
        node="node1",
        status=status,
        state=state,
        wanted=wanted,
        in_touch=True,
        outcomes={"forward_tx": Counter(5, 500), "drop_malformed": Counter(0, 0)},
        services={"web": Stats(5, 500, 2, 1, 100)},
        backends={("web", "b1"): Stats(5, 500, 2, 1, 100)},
        verdicts={"web": Verdict(panics=("canary",))},
        panicked={("web", "canary"): 3},
        rollouts={
            "web": rollout("web", Phase.GATE, step=2, since=1000.0),
            "api": rollout("api", Phase.ABORTED, step=1, since=2000.0, ending=Ending.ANALYSIS),
        },
    )


def test_what_is_quarantined_is_counted_by_kind() -> None:
    found = series(text_of(busy()))
    counted = {kind: value(found, "lb_quarantined_documents", kind=kind) for kind in KINDS.values()}
    assert counted == {"service": 1, "backend": 2, "table": 1, "node": 0, "member": 0, "config": 0}
    assert value(found, "lb_problems", severity="error") == 1
    assert value(found, "lb_problems", severity="warning") == 1


def test_figures_are_those_of_the_node() -> None:
    scrape = busy()
    found = series(text_of(scrape))
    assert value(found, "lb_applied_revision") == 7
    assert value(found, "lb_unresolved_next_hops") == 1
    assert value(found, "lb_left_out") == 3
    assert value(found, "lb_store_in_touch") == 1
    assert value(found, "lb_last_known_good_in_force") == 0
    assert value(found, "lb_outcome_packets_total", outcome="forward_tx") == 5
    assert value(found, "lb_service_new_flows_total", service="web") == 2
    b1 = {"service": "web", "pool": "stable", "backend": "b1"}
    assert value(found, "lb_backend_bytes_total", **b1) == 500
    assert value(found, "lb_backend_health_share_ratio", **b1) == 0.25
    assert value(found, "lb_backend_health", **b1, state="healthy") == 1
    assert value(found, "lb_backend_health", **b1, state="unhealthy") == 0
    c1 = {"service": "web", "pool": "canary", "backend": "c1"}
    assert value(found, "lb_backend_weight", **c1) == 100
    full = {dict(labels)["backend"]: each for (name, labels), each in found.items() if name == FULL}
    assert full == {"b1": 1, "b2": 0}  # of those that have a limit
    panic = [value(found, "lb_pool_panic", service="web", pool=pool) for pool in ("stable", "canary")]
    assert panic == [0, 1]
    panics = [value(found, "lb_pool_panics_total", service="web", pool=p) for p in ("stable", "canary")]
    assert panics == [0, 3]
    held = scrape.wanted.services["web"].table.counts()
    for name, pool in (("b1", "stable"), ("b2", "stable"), ("c1", "canary")):
        share = value(found, "lb_backend_share_ratio", service="web", pool=pool, backend=name)
        assert share == held[name] / 65536


def test_rollouts_are_told_so_that_no_sum_over_nodes_is_needed() -> None:
    found = series(text_of(busy()))
    of = {name: {"service": name, "pool": "canary"} for name in ("web", "api")}
    for name, present in (("web", "gate"), ("api", "aborted")):
        told = {phase: value(found, "lb_rollout_phase", **of[name], phase=phase) for phase in Phase}
        assert told == {phase: float(phase == present) for phase in Phase}
    assert value(found, "lb_rollout_step", **of["web"]) == 2
    assert value(found, "lb_rollout_steps", **of["web"]) == 3
    assert value(found, "lb_rollout_phase_timestamp_seconds", **of["api"]) == 2000
    endings = {labels: each for (name, labels), each in found.items() if name == "lb_rollout_ending"}
    assert endings == {frozenset({**of["api"], "ending": "analysis"}.items()): 1}
    alerts = (CONFIGS / "alerts.yml").read_text()
    assert 'max by (service, pool) (lb_rollout_phase{phase=~"gate|paused"}) == 1' in alerts
    assert {"gate", "paused"} <= set(Phase)


def test_a_node_that_has_nothing_yet_says_so() -> None:
    found = series(text_of(Scrape(node="node1", serves_copy=True, is_followed=False)))
    assert value(found, "lb_applied_revision") == 0
    assert value(found, "lb_store_in_touch") == 0
    assert value(found, "lb_store_followed") == 0
    assert value(found, "lb_last_known_good_in_force") == 1


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_it_is_served_over_http_until_a_scrape_fails_and_after() -> None:
    port = free_port()
    scrapes = [busy(), None, busy()]

    def look() -> Scrape:
        found = scrapes.pop(0)
        if found is None:
            raise OSError("no maps")
        return found

    assert serve(Metrics(listen=f"127.0.0.1:{port}"), look) is None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://127.0.0.1:{port}/metrics"
    with opener.open(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    assert value(series(text), "lb_applied_revision") == 7
    assert "process_cpu_seconds_total" in text
    with pytest.raises((urllib.error.HTTPError, OSError)):
        opener.open(url, timeout=10)
    with opener.open(url, timeout=10) as answer:
        assert answer.status == 200


def test_where_somebody_listens_already_lbd_goes_on_and_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        problem = serve(Metrics(listen=listen), busy)
    assert problem is not None
    assert listen in problem.message
    assert problem.warning
    assert serve(Metrics(listen=""), busy) is None


@pytest.mark.parametrize(
    "listen", ["9642", ":9642", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:0", "a:65536"]
)
def test_where_to_listen_is_an_address_with_a_port(listen: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        Metrics(listen=listen)


def test_ipv6_is_in_brackets() -> None:
    assert Metrics(listen="[::1]:9642").address == ("::1", 9642)
    assert Settings().metrics.address == ("127.0.0.1", 9642)


def test_alerts_name_metrics_that_there_are() -> None:
    told = {name for name, _ in series(text_of(busy()))}
    for file in CONFIGS.iterdir():
        named = set(re.findall(r"\blb_\w+", file.read_text()))
        assert named <= told, file.name
    assert "lb_quarantined_documents" in (CONFIGS / "alerts.yml").read_text()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus, 96 MB)")
def test_prometheus_takes_it() -> None:
    checked = ["promtool", "check", "config", str(CONFIGS / "prometheus.yml")]
    done = subprocess.run(checked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = ["promtool", "check", "metrics"]
    done = subprocess.run(checked, input=text_of(busy()), capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus, 96 MB)")
def test_alerts_of_rollouts_come_once_for_all_nodes(tmp_path: Path) -> None:
    def samples(name: str, labels: str, values: str) -> list[dict[str, str]]:
        return [
            {
                "series": f'{name}{{service="web",pool="canary",instance="{node}"{labels}}}',
                "values": values,
            }
            for node in ("n1", "n2", "n3")
        ]

    def alert(name: str, at: str, *expected: dict[str, Any]) -> dict[str, Any]:
        return {"eval_time": at, "alertname": name, "exp_alerts": list(expected)}

    web = {"service": "web", "pool": "canary"}
    waits = {
        "exp_labels": web,
        "exp_annotations": {
            "summary": "web: the rollout to canary waits for a person: lbctl rollout status"
        },
    }
    aborted = {
        "exp_labels": {**web, "ending": "analysis"},
        "exp_annotations": {"summary": "web: the rollout to canary was aborted (analysis)"},
    }
    test = {
        "rule_files": [str(CONFIGS / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                # At the gate from minute 2 to 5; aborted in minute 10.
                "input_series": [
                    *samples("lb_rollout_phase", ',phase="gate"', "0 0 1 1 1 1 0x120"),
                    *samples("lb_rollout_phase_timestamp_seconds", "", "0x9 600x120"),
                    *samples("lb_rollout_ending", ',ending="analysis"', "_x9 1x120"),
                ],
                "alert_rule_test": [
                    alert("LbRolloutWaits", "1m"),
                    alert("LbRolloutWaits", "4m", waits),
                    alert("LbRolloutWaits", "7m"),
                    alert("LbRolloutAborted", "7m"),
                    alert("LbRolloutAborted", "20m", aborted),
                    alert("LbRolloutAborted", "90m"),
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(test))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
