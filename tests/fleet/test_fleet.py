"""The fleet itself: what is in it, that it is removed, and that its nodes are one."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path

import pytest
from field import SERVICE, Field

from bench.fleet import changes
from bench.rows import Options
from lb.lab.cli import invitation
from lb.lab.fleet import Fleet, tear_down
from lb.lab.lab import Lab
from lb.lab.shell import LabError
from lb.lab.topology import VIP4, VIP6

OTHER = "lbz-"


def namespaces(prefix: str) -> set[str]:
    return {each.name for each in Path("/run/netns").iterdir() if each.name.startswith(prefix)}


def runs(pid: int) -> bool:
    """Ended processes that were ours stay in the list until they are waited for."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_the_names_are_those_of_the_issue(fleet: Fleet) -> None:
    wanted = ["router", "client", *(f"etcd{n}" for n in (1, 2, 3)), *(f"node{n}" for n in (1, 2, 3))]
    wanted += [f"backend{n}" for n in (1, 2, 3, 4)]
    assert {f"lbf-{name}" for name in wanted} <= namespaces("lbf-")
    listed = fleet.etcd.ctl("member", "list", "-w", "json").stdout
    assert len(json.loads(listed)["members"]) == 3


def test_every_node_gets_a_part_of_the_traffic_and_reaches_every_backend(field: Field) -> None:
    before = [_sent(field, node) for node in range(3)]
    with field.traffic() as four:
        field.weight(90)
    field.add_six()
    with field.traffic(VIP6) as six:
        field.weight(91)
    assert not four.failed + six.failed, (four.failures, six.failures)
    assert set(four.answers) == set(six.answers) == set(field.fleet.topology.backends)
    assert all(_sent(field, node) > before[node] for node in range(3))


def _sent(field: Field, node: int) -> int:
    status = json.loads(field.fleet.nodes[node].lbctl("status", "-o", "json").stdout)
    return int(status["outcomes"]["forward_tx"]["packets"])


def test_metrics_count_what_the_kernel_counts(field: Field) -> None:
    name = "lb_backend_new_flows_total"
    before = sum(field.metric(node, name) for node in range(3))
    with field.traffic() as requests:
        field.weight(92)
    assert not requests.failed, requests.failures
    counted = sum(field.metric(node, name) for node in range(3)) - before
    assert (
        requests.total <= counted < 1.1 * requests.total
    )  # a SYN that is sent again may be another flow
    assert {field.metric(node, "lb_store_in_touch") for node in range(3)} == {1}
    assert abs(field.metric(1, "lb_backend_share_ratio") - 1) < 1e-9


def test_all_nodes_report_the_same_tables_whatever_came_before(field: Field) -> None:
    digests = Counter[str]()
    for value in (10, 100, 30):
        field.weight(value)
        digests[field.agree()[SERVICE]] += 1
    assert len(digests) == 3  # each is another table
    assert field.status()["digests_agree"] == {SERVICE: True}


def test_wait_returns_when_all_three_kernels_have_the_change(field: Field) -> None:
    """As suite `fleet` of `make bench` measures it, which fails if --wait is ever early."""
    rows = {each.case.partition(": ")[2]: each for each in changes(field.fleet, Options(quick=True))}
    kernel, wait = rows["from commit to the last kernel"], rows["from commit to the return of --wait"]
    assert kernel.n == wait.n == 20
    # A bound against what is broken (a look once a second, say); the figure is check-fleet's.
    assert 0 < kernel.median < 500
    assert rows["from commit to the last kernel, p99"].median == kernel.max
    assert rows["lbctl backend weight --wait, with its start-up"].median > wait.min


def test_a_router_without_nodes_leads_nowhere(field: Field) -> None:
    """The traffic does go by the nodes: without any of them nobody answers."""
    fleet = field.fleet
    try:
        fleet.run("router", ["ip", "route", "replace", "unreachable", f"{VIP4}/32"])
        assert not fleet.answer(VIP4)
    finally:
        fleet.run("router", ["ip", "route", "del", "unreachable", f"{VIP4}/32"])
        fleet.route_over(fleet.nodes)
    assert fleet.answer(VIP4)


def test_what_is_proposed_can_be_done(field: Field) -> None:
    """Every command that `make fleet` prints, but those that take long or end something."""
    fleet = field.fleet
    text = invitation(fleet).replace("\\\n", "")
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    settings = next(line for line in lines if line.startswith("export ")).removeprefix("export ")
    alias = next(line for line in lines if line.startswith("alias ")).removeprefix("alias lbctl=")
    tried = 0
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "lbctl":
            words = [*shlex.split(shlex.split(alias)[0]), *words[1:]]
        elif words[0] not in ("ip", "tail") or "wrk" in words:
            continue
        done = fleet.run("switch", ["env", settings, "ETCDCTL_API=3", *words], check=False)
        assert not done.returncode, f"{line}: {done.stderr}"
        tried += 1
    assert tried >= 8


def test_nothing_is_left() -> None:
    with Fleet(prefix=OTHER, backends=1) as other:
        with pytest.raises(LabError, match="no namespace"):
            other.run("etcd9", ["true"])
        assert namespaces(OTHER) == set(other.topology.namespaces)
        pids = {
            int(pid)
            for name in other.topology.namespaces
            for pid in other.run("switch", ["ip", "netns", "pids", name]).stdout.split()
        }
        assert len(pids) >= 3 + 2  # etcd, and nginx with its worker
        other.keep()
    try:
        assert namespaces(OTHER)
    finally:
        assert tear_down(OTHER)
    assert not namespaces(OTHER)
    assert not other.folder.exists()
    assert not any(runs(pid) for pid in pids)
    assert not tear_down(OTHER)


def test_a_fleet_beside_a_lab_of_the_same_name_says_what_to_do() -> None:
    with Lab(prefix=OTHER, backends=1), pytest.raises(Exception, match="exists, and this lab"):
        Fleet(prefix=OTHER).__enter__()
    assert not namespaces(OTHER)
