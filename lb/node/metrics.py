"""What Prometheus is told: text over HTTP, by threads of their own, so that a scrape holds up nothing.

A scrape is a picture of the node (`Scrape`: values), and functions from it to metrics (`FAMILIES`). More
of what a node knows is one more field, and one more function in that list. docs/reference/metrics.md is
made of them.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import lb
from lb.core.health import State, Verdict
from lb.core.plan import Wanted
from lb.core.slots import SLOTS
from lb.core.state import BackendKey, DesiredState
from lb.datapath.view import Counter, KernelView, MirrorStats, Stats
from lb.model import keys
from lb.model.reports import NodeStatus, Problem
from lb.model.rollout import Phase, Rollout
from lb.node.checks import PoolKey
from lb.settings import Metrics

# Documents that can be quarantined, by where they are.
KINDS = {
    keys.SERVICES: "service",
    keys.BACKENDS: "backend",
    keys.TABLES: "table",
    keys.NODES: "node",
    keys.MEMBERS: "member",
    keys.CONFIG: "config",
}
OTHER = "other"
_COUNTED = {  # of Stats: what it is called, and what it is
    "packets": ("packets", "Packets from clients"),
    "bytes": ("bytes", "Bytes from clients"),
    "flows": ("new_flows", "New flows"),
    "reply_packets": ("reply_packets", "Packets to clients that came by this node (modes nat, fullnat)"),
    "reply_bytes": ("reply_bytes", "Bytes to clients that came by this node (modes nat, fullnat)"),
}


_COPIED = {  # of MirrorStats
    "copies": ("packets", "Packets of which a copy was sent to the pool that mirrors a service"),
    "bytes": ("bytes", "Bytes of these"),
    "flows": ("flows", "TCP connections of which copies were sent"),
    "given_up": ("given_up", "Connections and datagrams that were to be copied, and whose copy is lost"),
    "answers": ("answer_packets", "Packets that answered copies, and were dropped"),
}


@dataclass(frozen=True)
class Scrape:
    """A node at one moment. `status` is what it reported last; counters are sums over all CPUs."""

    node: str
    status: NodeStatus | None = None
    state: DesiredState = field(default_factory=DesiredState)
    wanted: Wanted = field(default_factory=lambda: Wanted({}, {}))
    in_touch: bool = False
    is_followed: bool = True
    serves_copy: bool = False
    repaired: int = 0
    outcomes: Mapping[str, Counter] = field(default_factory=dict)
    services: Mapping[str, Stats] = field(default_factory=dict)
    backends: Mapping[BackendKey, Stats] = field(default_factory=dict)
    mirrors: Mapping[str, MirrorStats] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    panicked: Mapping[PoolKey, int] = field(default_factory=dict)
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)  # by service


def copied(view: KernelView, state: DesiredState) -> dict[str, MirrorStats]:
    """What the kernel has copied of the services that are mirrored."""
    found = {name: view.mirror_stats(name) for name, each in state.services.items() if each.mirror}
    return {name: each for name, each in found.items() if each}


def counters(
    view: KernelView, state: DesiredState
) -> tuple[dict[str, Counter], dict[str, Stats], dict[BackendKey, Stats]]:
    """What the kernel has counted: outcomes, services, backends."""
    services = {name: view.service_stats(name) for name in state.services}
    backends = {key: view.backend_stats(*key) for key in state.backends}
    return (
        view.outcomes(),
        {name: each for name, each in services.items() if each},
        {key: each for key, each in backends.items() if each},
    )


def of_the_node(scrape: Scrape) -> Iterator[Metric]:
    """Who it is, and how far it has come."""
    info = GaugeMetricFamily(
        "lb_build_info", "1; which lb this is, on which node", labels=["version", "node"]
    )
    info.add_metric([lb.__version__, scrape.node], 1)
    yield info
    status = scrape.status
    links = GaugeMetricFamily(
        "lb_interface_info", "1; an interface that is attached, and how", labels=["interface", "hook"]
    )
    for link in status.links if status else ():
        links.add_metric([link.interface, link.hook], 1)
    yield links
    yield GaugeMetricFamily(
        "lb_applied_revision",
        "Revision of the store that the kernel holds; 0 while the store is not followed",
        status.revision if status else 0,
    )
    yield GaugeMetricFamily("lb_services", "Services in force", len(scrape.state.services))
    yield GaugeMetricFamily("lb_backends", "Backends in force", len(scrape.state.backends))
    yield CounterMetricFamily(
        "lb_repaired_entries",
        "Entries of the kernel's maps that somebody else had changed, and lbd put right",
        scrape.repaired,
    )
    yield GaugeMetricFamily(
        "lb_unresolved_next_hops",
        "Backends whose next hop this node has not found: they get nothing from it",
        len(status.unresolved) if status else 0,
    )
    yield GaugeMetricFamily(
        "lb_left_out",
        "Services and backends that are not programmed, or not wholly, because a map is full",
        len(status.left_out) if status else 0,
    )


def of_the_store(scrape: Scrape) -> Iterator[Metric]:
    """Whether it is there, and what is wrong with what is in it."""
    yield GaugeMetricFamily(
        "lb_store_in_touch",
        "1 while the store answers, 0 while the node goes by memory",
        scrape.in_touch,
    )
    yield GaugeMetricFamily(
        "lb_store_followed",
        "0 while the node does not do what the store says: it was emptied, or is another fleet's",
        scrape.is_followed,
    )
    yield GaugeMetricFamily(
        "lb_last_known_good_in_force",
        "1 from a boot without the store until the store is there: the copy on disk is served",
        scrape.serves_copy,
    )
    found = Tally(_kind(problem) for problem in scrape.state.problems)
    quarantined = GaugeMetricFamily(
        "lb_quarantined_documents",
        "Documents in the store that are not obeyed, because they can't be read or contradict others",
        labels=["kind"],
    )
    for kind in (*KINDS.values(), OTHER):
        quarantined.add_metric([kind], found[kind])
    yield quarantined
    problems = GaugeMetricFamily(
        "lb_problems",
        "What the node has to say in `lbctl status`; warning: what was asked for is in force",
        labels=["severity"],
    )
    told = Tally(_severity(each) for each in (scrape.status.problems if scrape.status else ()))
    for severity in ("error", "warning"):
        problems.add_metric([severity], told[severity])
    yield problems


def _kind(problem: Problem) -> str:
    return next((k for prefix, k in KINDS.items() if problem.where.startswith(prefix)), OTHER)


def _severity(problem: Problem) -> str:
    return "warning" if problem.warning else "error"


def of_packets(scrape: Scrape) -> Iterator[Metric]:
    """What the kernel has counted, since its maps were made: a restart of lbd forgets nothing."""
    for name in ("packets", "bytes"):
        outcome = CounterMetricFamily(
            f"lb_outcome_{name}",
            f"{name.capitalize()} by how they ended (docs/data-path.md)",
            labels=["outcome"],
        )
        for key, each in scrape.outcomes.items():
            outcome.add_metric([key], getattr(each, name))
        yield outcome
    for attribute, (name, words) in _COUNTED.items():
        services = CounterMetricFamily(
            f"lb_service_{name}", f"{words}, of a service", labels=["service"]
        )
        for service, stats in scrape.services.items():
            services.add_metric([service], getattr(stats, attribute))
        yield services
        backends = CounterMetricFamily(
            f"lb_backend_{name}", f"{words}, of a backend; sum by pool for a pool", labels=_BACKEND
        )
        for backend, stats in scrape.backends.items():
            backends.add_metric(_labels(scrape, backend), getattr(stats, attribute))
        yield backends


def of_copies(scrape: Scrape) -> Iterator[Metric]:
    """Mirrored traffic."""
    for attribute, (name, words) in _COPIED.items():
        copies = CounterMetricFamily(f"lb_mirror_{name}", words, labels=["service"])
        for service, stats in scrape.mirrors.items():
            copies.add_metric([service], getattr(stats, attribute))
        yield copies


_BACKEND = ["service", "pool", "backend"]


def _labels(scrape: Scrape, key: BackendKey) -> list[str]:
    return [key[0], scrape.state.backends[key].pool, key[1]]


def of_backends(scrape: Scrape) -> Iterator[Metric]:
    """What is wanted of each, what its checks have shown, and what it has of it."""
    weight = GaugeMetricFamily("lb_backend_weight", "Weight that was asked for", labels=_BACKEND)
    share = GaugeMetricFamily(
        "lb_backend_share_ratio",
        "Share of its service's slots, so of its new flows, that a backend has on this node",
        labels=_BACKEND,
    )
    health = GaugeMetricFamily(
        "lb_backend_health",
        "1 for the state that this node's checks found: unknown, healthy or unhealthy",
        labels=[*_BACKEND, "state"],
    )
    fitness = GaugeMetricFamily(
        "lb_backend_health_share_ratio",
        "Share of its weight that health lets a backend have; below 1 in slow start",
        labels=_BACKEND,
    )
    full = GaugeMetricFamily(
        "lb_backend_full",
        "1 while a backend with max_connections has as many on this node, else 0",
        labels=_BACKEND,
    )
    slots = {name: each.table.counts() for name, each in scrape.wanted.services.items()}
    reports = scrape.status.health if scrape.status else {}
    are_full = scrape.status.full if scrape.status else {}
    for key, backend in scrape.state.backends.items():
        labels = _labels(scrape, key)
        weight.add_metric(labels, backend.weight)
        share.add_metric(labels, slots.get(key[0], {}).get(key[1], 0) / SLOTS)
        if backend.max_connections is not None:
            full.add_metric(labels, "/".join(key) in are_full)
        if found := reports.get("/".join(key)):
            fitness.add_metric(labels, found.share)
            for state in State:
                health.add_metric([*labels, state], found.state == state)
    yield from (weight, share, health, fitness, full)


def of_pools(scrape: Scrape) -> Iterator[Metric]:
    """Of services with health checks: is there a pool of which too few are healthy?"""
    panic = GaugeMetricFamily(
        "lb_pool_panic",
        "1 while so few of a pool are healthy that all of it is used, else 0",
        labels=["service", "pool"],
    )
    panics = CounterMetricFamily(
        "lb_pool_panics", "How often that began, since lbd started", labels=["service", "pool"]
    )
    pools = {(service, each.pool) for (service, _), each in scrape.state.backends.items()}
    for service, pool in sorted(pools):
        if (verdict := scrape.verdicts.get(service)) is not None:
            panic.add_metric([service, pool], pool in verdict.panics)
            panics.add_metric([service, pool], scrape.panicked.get((service, pool), 0))
    yield from (panic, panics)


def of_rollouts(scrape: Scrape) -> Iterator[Metric]:
    """The one under way of each service, or the last one. Each node tells all, as the store has them,
    so that none is missing when a node is: take `max by (service, pool)`, never a sum."""
    labels = ["service", "pool"]
    phases = GaugeMetricFamily(
        "lb_rollout_phase",
        "1 for the phase in which it is (docs/reference/rollout.md), 0 for the others",
        labels=[*labels, "phase"],
    )
    since = GaugeMetricFamily(
        "lb_rollout_phase_timestamp_seconds", "When that phase began; Unix time", labels=labels
    )
    step = GaugeMetricFamily("lb_rollout_step", "Steps taken; 0 before the first", labels=labels)
    steps = GaugeMetricFamily("lb_rollout_steps", "Steps that it has", labels=labels)
    endings = GaugeMetricFamily(
        "lb_rollout_ending", "1 for why it is aborted; none while it isn't", labels=[*labels, "ending"]
    )
    for service, rollout in sorted(scrape.rollouts.items()):
        values, status = [service, rollout.spec.pool], rollout.status
        for phase in Phase:
            phases.add_metric([*values, phase], phase is status.phase)
        since.add_metric(values, status.since or rollout.spec.when)
        step.add_metric(values, status.step)
        steps.add_metric(values, len(rollout.spec.steps))
        if status.ending is not None:
            endings.add_metric([*values, status.ending], 1)
    yield from (phases, since, step, steps, endings)


FAMILIES: tuple[Callable[[Scrape], Iterator[Metric]], ...] = (
    of_the_node,
    of_the_store,
    of_packets,
    of_copies,
    of_backends,
    of_pools,
    of_rollouts,
)


class Exporter(Collector):
    """`look` takes the picture; it is called by the thread of each scrape."""

    def __init__(self, look: Callable[[], Scrape]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        scrape = self._look()
        for family in FAMILIES:
            yield from family(scrape)


def serve(settings: Metrics, look: Callable[[], Scrape]) -> Problem | None:
    """Answer scrapes from now on, if that is wanted. What keeps it from that is no reason to stop."""
    if settings.address is None:
        return None
    registry = CollectorRegistry()
    registry.register(Exporter(look))
    ProcessCollector(registry=registry)
    host, port = settings.address
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        return Problem(
            where="metrics",
            message=f"no metrics at {settings.listen}: {error.strerror or error}",
            hint='another lbd on this machine? Set `listen` under [metrics] in lb.toml; "" = none',
            warning=True,
        )
    return None
