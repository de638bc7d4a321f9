"""lbctl flows with connections that are really there."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from helpers import create, held, service

from lb.lab.lab import Lab
from lb.lab.shell import LabError, wait_until
from lb.lab.topology import CLIENT4, VIP4, VIP6


def flows(lab: Lab, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _json(lab, "list", *arguments)["flows"]
    return found


def _json(lab: Lab, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.lbctl("flows", *arguments, "-o", "json").stdout)
    return found


@pytest.mark.parametrize("vip", [VIP4, VIP6])
@pytest.mark.parametrize(("mode", "kind"), [("dsr", "established"), ("fullnat", "translated")])
def test_flows_are_listed_filtered_and_forgotten(running: Lab, vip: Any, mode: str, kind: str) -> None:
    lab = running
    create(lab, service(lab, "web", vip, mode=mode, tracking="always"))
    lab.lbctl("flows", "clear", "--all")
    with held(lab, vip, 40) as connections:
        answers = Counter(connections.ask())
        mine = flows(lab, "--service", "web", "--kind", kind)
        assert Counter(each["backend"] for each in mine) == answers
        assert all(each["idle"] < 60 for each in mine)
        assert {each["source"] is not None for each in mine} == {mode == "fullnat"}

        of = mine[0]
        host = f"[{vip}]" if vip.version == 6 else vip
        client = f"[{of['client']}]" if vip.version == 6 else of["client"]
        trace = lab.lbctl("trace", f"{client}:{of['client_port']}", f"{host}:80", "-o", "json")
        traced = json.loads(trace.stdout)
        assert traced["tracked_backend"] == of["backend"]
        assert (f"port {of['source_port']}" in " ".join(traced["why"])) == (mode == "fullnat")

        one, count = answers.most_common()[0]
        assert len(flows(lab, "--backend", one, "--kind", kind)) == count
        (client,) = {each["client"] for each in mine}
        assert len(flows(lab, "--client", client, "--kind", kind)) == 40
        assert flows(lab, "--client", f"{CLIENT4[1]}/32") == []
        assert len(flows(lab, "--limit", "7")) == 7
        assert _json(lab, "list", "--kind", kind, "--limit", "7")["count"] == 40

        some = ("--backend", one, "--kind", kind)
        assert _json(lab, "clear", *some, "--dry-run")["cleared"] == count
        assert len(flows(lab, "--kind", kind)) == 40
        assert _json(lab, "clear", *some)["cleared"] == count
        left = flows(lab, "--kind", kind)
        assert Counter(each["backend"] for each in left) == answers - Counter({one: count})
    lab.lbctl("flows", "clear", "--service", "web")
    wait_until("no flow is left", lambda: not flows(lab, "--service", "web"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clear"], "say which flows"),
        (["clear", "--all", "--backend", "b"], "--all stands alone"),
        (["list", "--service", "nope"], "no service 'nope'"),
        (["list", "--backend", "nope"], "no backend 'nope'"),
        (["list", "--client", "nope"], "--client: 'nope'"),
        (["list", "--client", "198.51.100.1/24"], "host bits set"),
    ],
)
def test_what_flows_refuses(running: Lab, arguments: list[str], words: str) -> None:
    with pytest.raises(LabError, match="hint: ") as refused:
        running.lbctl("flows", *arguments)
    assert words in str(refused.value)
