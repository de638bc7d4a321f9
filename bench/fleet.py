"""Suite `fleet`: from a commit in etcd to the last of three kernels, and to the last of 100 nodes that
have none.

The three are `make fleet`'s: lbd, etcd and kernels in namespaces of this machine. The hundred are lbd's
own loop, with everything but kernel and netlink, in a few processes that share this machine's processors
with an etcd: what one node would do on a machine of its own is done a hundred times here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.rows import Options, Row, row
from bench.simulated import BACKEND, SERVICE, state_of_simulation
from lb.cli.wait import until_applied
from lb.errors import LbError
from lb.lab.etcd import Etcd
from lb.lab.example import add_web
from lb.lab.fleet import Fleet
from lb.model import keys
from lb.model.objects import Mode
from lb.model.reports import NodeStatus
from lb.store.base import Put, Store
from lb.store.opening import open_store

SUITE = "fleet"
PEER = "lb"
NODES = 100
PROCESSES = 4
PATIENCE = 60.0


def percentiles(case: str, values: list[float]) -> list[Row]:
    """The values, and their p99 as a figure of its own (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * 99 // 100) - 1
    return [
        row(SUITE, case, PEER, "ms", values),
        row(SUITE, f"{case}, p99", PEER, "ms", [ordered[rank]]),
    ]


def real(options: Options) -> list[Row]:
    """Three nodes with kernels."""
    with Fleet(prefix="lbb-") as fleet:
        fleet.start()
        add_web(fleet, Mode.DSR.value, lambda _: None)
        return changes(fleet, options)


def changes(fleet: Fleet, options: Options) -> list[Row]:
    """A fleet that serves `web`, and changes of one backend's weight."""
    where = "3 nodes, one weight change"
    backend = fleet.topology.backends[0]
    pins = [f"{node.node_folder}/bpf/lb" for node in fleet.nodes]
    measure = [sys.executable, "-m", "lb.lab.propagation", fleet.etcd.url, "web", backend]
    argv = [*measure, str(options.pick(200, 20)), *pins]
    found = json.loads(fleet.run(fleet.nodes[0].name, argv, timeout=300).stdout)
    if found["early"]:
        raise LbError(f"bench: --wait returned before the kernels had it {found['early']} times")
    command: list[float] = []
    for weight in range(1, options.pick(20, 4)):
        change = ("backend", "weight", "web", backend, str(weight), "--wait")
        begin = time.perf_counter()
        fleet.lbctl(*change)
        command.append((time.perf_counter() - begin) * 1e3)
    return [
        *percentiles(f"{where}: from commit to the last kernel", found["kernel"]),
        *percentiles(f"{where}: from commit to the return of --wait", found["wait"]),
        row(SUITE, f"{where}: lbctl backend weight --wait, with its start-up", PEER, "ms", command),
    ]


def simulated(options: Options) -> list[Row]:
    """A hundred nodes without kernels."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lb-bench-"))
        etcd = stack.enter_context(Etcd(Path(folder), size=1))
        store = stack.enter_context(open_store(etcd.url))
        state = state_of_simulation()
        assert state.config
        puts = [Put(keys.CONFIG, state.config.model_dump_json())]
        puts += [
            Put(keys.service(name), each.model_dump_json()) for name, each in state.services.items()
        ]
        puts += [Put(keys.backend(*key), each.model_dump_json()) for key, each in state.backends.items()]
        store.commit(puts)
        each = str(NODES // PROCESSES)
        command = [sys.executable, "-m", "bench.simulated", etcd.url, folder]
        children = [
            subprocess.Popen(
                [*command, str(n), each], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for n in range(PROCESSES)
        ]
        applied: list[tuple[str, float]] = []
        try:
            _await(store, NODES)
            turns = [_change(store, turn) for turn in range(options.pick(50, 5))]
            for child in children:
                applied += json.loads(child.communicate(timeout=PATIENCE)[0])
        finally:
            for child in children:
                child.kill()
                child.wait()
    last = []
    for begin, digest in turns:
        times = [at for each, at in applied if each == digest]
        if len(times) != NODES or min(times) < begin:
            raise LbError(f"bench: {len(times)} of {NODES} nodes applied a change")
        last.append((max(times) - begin) * 1e3)
    return percentiles(f"{NODES} simulated nodes, one weight change: from commit to the last plan", last)


def _await(store: Store, nodes: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(store.read(keys.NODES).items) < nodes:
        if time.monotonic() > deadline:
            raise LbError("bench: the simulated nodes did not all begin")
        time.sleep(0.1)


def _settle(store: Store) -> None:
    """Until nobody has reported for a moment: a change is followed by the nodes' table, which all
    report, too, and what is measured is one change."""
    before = -1
    while (now := store.read(keys.ROOT).revision) != before:
        before = now
        time.sleep(0.5)


def _change(store: Store, turn: int) -> tuple[float, str]:
    """One change, applied by all when this returns: when it began, and the table's digest."""
    weight = 200 + turn
    backend = state_of_simulation().backends[SERVICE, BACKEND].model_copy(update={"weight": weight})
    _settle(store)
    begin = time.monotonic()
    revision = store.commit([Put(keys.backend(SERVICE, BACKEND), backend.model_dump_json())])
    until_applied(store, revision, PATIENCE, [], {})
    item = store.read(keys.NODES).items[0]
    return begin, NodeStatus.model_validate_json(item.value).digests[SERVICE]


def run(options: Options) -> list[Row]:
    """The whole suite. Needs root."""
    return [*real(options), *simulated(options)]
