"""What is there of a rollout: its service, its canary, the nodes that are to follow. Pure.

- A split is *applied* when every live node has applied the service's document, and there is one. A node
  that is lost is waited for PATIENCE seconds; it may go on with the split that it knew, so the history
  says its name. An abort has to be seen, too: no node's table holds a slot for the canary.
- A canary *can be used* while one of its backends takes flows and is not found unhealthy by most of the
  live nodes that check it (the quorum of lb/core/quorum.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lb.core import quorum
from lb.core.health import State
from lb.core.measures import default_analysis
from lb.model.flows import Vantage
from lb.model.objects import Backend, Service
from lb.model.reports import NodeStatus
from lb.model.rollout import Phase, Rollout, RolloutSpec

PATIENCE = 5.0  # seconds for a lost node to come back: when etcd was away, all leases end at once


@dataclass(frozen=True)
class View:
    """What is known of a service at one moment. `version`: mod_revision of its document. `nodes`: the
    live ones, as they report; `lost`: names of those that report no more. `unreadable`: why its document
    can't be read; then `service` is None, and nothing is decided."""

    service: Service | None
    version: int
    backends: Sequence[Backend] = ()
    nodes: Mapping[str, NodeStatus] = field(default_factory=dict)
    lost: Sequence[str] = ()
    unreadable: str = ""


def refusal(spec: RolloutSpec, service: Service, backends: Sequence[Backend]) -> str:
    """Why it can't begin; empty if it can."""
    inside = [each for each in backends if each.pool == spec.pool]
    if not inside:
        return f"pool {spec.pool!r} of service {service.name!r} has no backends"
    if not any(each.takes_flows for each in inside):
        return f"no backend of pool {spec.pool!r} takes new flows: all are drained, down or of weight 0"
    if share := service.split.get(spec.pool):
        return f"pool {spec.pool!r} has {share:g} % of the new flows already"
    if service.backup == spec.pool:
        return f"pool {spec.pool!r} is the service's backup"
    if spec.auto and default_analysis(service.mode, service.protocol, Vantage.NODE) is None:
        return f"nothing can be seen of {service.protocol} to judge it by"
    return ""


def usable_backends(rollout: Rollout, view: View) -> list[str]:
    """The canary's backends that take flows, as far as people and checks are concerned. Before the first
    step those that nobody has found healthy yet don't count."""
    ballots = {name: quorum.reported(status) for name, status in view.nodes.items()}
    suspected = quorum.suspects(ballots)
    found = []
    for backend in view.backends:
        if backend.pool != rollout.spec.pool or not backend.takes_flows:
            continue
        path = f"{backend.service}/{backend.name}"
        votes = quorum.electorate(ballots, suspected, path)
        bad = sum(each.state is State.UNHEALTHY for each in votes)
        is_new = not votes and any(path in status.health for status in view.nodes.values())
        if 2 * bad <= len(votes) and not (is_new and rollout.status.phase is Phase.PENDING):
            found.append(backend.name)
    return found


def late_nodes(view: View) -> list[str]:
    """Live nodes that have not applied the service's document."""
    return sorted(name for name, each in view.nodes.items() if each.revision < view.version)


def holding(rollout: Rollout, nodes: Mapping[str, NodeStatus]) -> list[str]:
    """Nodes whose table has slots for the canary."""
    return sorted(
        name
        for name, status in nodes.items()
        if status.shares.get(rollout.service, {}).get(rollout.spec.pool)
    )


def is_applied(rollout: Rollout, view: View, now: float) -> bool:
    """Has every live node applied the service's document, as far as it is known yet?"""
    patient = view.lost and now < rollout.status.since + PATIENCE
    return bool(view.nodes) and not late_nodes(view) and not patient


def awaits(rollout: Rollout, view: View) -> str:
    """What has to happen next, for people."""
    status, spec = rollout.status, rollout.spec
    if view.unreadable and not rollout.is_over:
        return f"a document of service {rollout.service!r} that can be read: {view.unreadable}"
    if status.phase is Phase.PENDING and view.nodes and usable_backends(rollout, view):
        return "a look at what can be seen of the stable pool"
    if status.phase is Phase.PENDING and view.nodes:
        return f"a backend of pool {spec.pool} that can be used"
    if rollout.is_over:
        return ""
    if not view.nodes:
        return "a node: none is there to run it"
    if status.phase in (Phase.STEPPING, Phase.PROMOTING, Phase.ABORTING):
        late = late_nodes(view) or list(view.lost) or holding(rollout, view.nodes)
        return f"node {', '.join(late)}" if late else ""
    return {
        Phase.BAKING: "the end of the step's time",
        Phase.ANALYSING: "the verdict",
        Phase.GATE: f"a person: lbctl rollout resume {rollout.service}, or abort",
        Phase.PAUSED: f"a person: lbctl rollout resume {rollout.service}, or abort",
    }.get(status.phase, "")
