"""Suite `control`: from desired state to kernel maps, with 1,000 services of 10 backends; how long
`lbctl` takes to start; what a watch costs while nothing happens.

The maps are real ones, but nobody's: not pinned, and no program uses them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from bench.daemon import resident
from bench.rows import Options, Row, interleaved, row, stopwatch
from lb.core import ids, slots
from lb.core.nexthop import NextHop
from lb.core.plan import Observed
from lb.core.state import BackendKey, DesiredState, advance, parse
from lb.datapath.bpf import Map
from lb.datapath.encode import index_key
from lb.datapath.kernel import Kernel, read_owners
from lb.datapath.maps import Maps, new_table
from lb.datapath.slotmaps import table_key
from lb.errors import LbError
from lb.model import keys
from lb.model.objects import Address, Backend, ClusterConfig, Service
from lb.node.planning import Bases, Plans
from lb.settings import Limits
from lb.store.base import Put, Store
from lb.store.opening import open_store

SUITE = "control"
BACKENDS = 10
PEER = "lb"
_HOP = NextHop(1, bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2]))

_WATCH = """
import sys, time
from lb.errors import LbError
from lb.model import keys
from lb.store.opening import open_store
store = open_store(sys.argv[1])
with store.watch(keys.ROOT, after=store.read(keys.ROOT).revision) as watch:
    watch.next(0.5)
    cpu, wall = time.process_time(), time.monotonic()
    watch.next(float(sys.argv[2]))
    print(100 * (time.process_time() - cpu) / (time.monotonic() - wall))
"""


def fleet(services: int) -> tuple[DesiredState, Observed]:
    """So many services, their backends, and the ways there."""
    found: dict[str, Service] = {}
    backends: dict[BackendKey, Backend] = {}
    hops: dict[Address, NextHop] = {}
    for number in range(services):
        name = f"service-{number}"
        vip = ip_address(f"198.18.{number // 250}.{number % 250 + 1}")
        found[name] = Service(name=name, vip=vip, port=443)
        for i in range(BACKENDS):
            address = ip_address(f"10.{number // 250 + 1}.{number % 250}.{i + 1}")
            backends[name, f"b{i}"] = Backend(service=name, name=f"b{i}", address=address)
            hops[address] = _HOP
    config = ClusterConfig(seed="000102030405060708090a0b0c0d0e0f")
    state = DesiredState(config=config, services=found, backends=backends)
    return state, Observed(hops, frozenset({_HOP.ifindex}))


def reweighted(state: DesiredState, turn: int) -> DesiredState:
    """The state with another weight for one backend."""
    service = list(state.services)[turn * 7 % len(state.services)]
    key = service, "b3"
    backend = state.backends[key]
    changed = backend.model_copy(update={"weight": 50 if backend.weight != 50 else 100})
    return replace(state, backends={**state.backends, key: changed})


@dataclass
class Node:
    """What an lbd holds between store and kernel."""

    state: DesiredState
    observed: Observed
    bases: Bases
    plans: Plans
    kernel: Kernel

    def apply(self) -> int:
        """As Daemon._reconcile does it: tables, plan, kernel."""
        tables = self.bases.update(self.state)
        return self.kernel.apply(self.plans.update(self.state, self.observed, tables))


class Onlooker:
    """Looks when packets see another table of a service, in a thread of its own: the call that swaps
    it returns later, when no packet sees the old one any more. Exact to PAUSE."""

    PAUSE = 0.001

    def __init__(self, maps: Maps, service: str) -> None:
        owners = read_owners(maps.service_owners)
        wanted = ids.uid(keys.service(service))
        self._tables = maps.tables
        self._number = table_key(next(number for number, uid in owners.items() if uid == wanted))
        self._before = self._tables.get(self._number)
        self._seen = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        # Without a pause it would keep the interpreter from those whom it looks at.
        while not self._stop.wait(self.PAUSE):
            if self._tables.get(self._number) != self._before:
                self._seen = time.perf_counter()
                return

    def seen(self) -> float:
        """When, by time.perf_counter()."""
        self._thread.join(5)
        self._stop.set()
        return self._seen


def cold_start(services: int, options: Options) -> tuple[list[Row], Node]:
    """New maps, filled from nothing, in the steps that a start takes; and the last node of them."""
    where = f"cold start: {services:,} services x {BACKENDS} backends"
    steps: dict[str, list[float]] = {}
    for _ in range(options.pick(3, 1)):
        state, observed = fleet(services)
        times = [time.perf_counter()]
        maps = Maps.create(Limits())
        times.append(time.perf_counter())
        bases, plans = Bases(), Plans()
        tables = bases.update(state)
        times.append(time.perf_counter())
        wanted = plans.update(state, observed, tables)
        times.append(time.perf_counter())
        kernel = Kernel(maps)
        kernel.adopt()
        kernel.apply(wanted)
        times.append(time.perf_counter())
        names = ("make the maps", "tables", "plan", "adopt and apply to the kernel")
        for name, start, end in zip(names, times[:-1], times[1:], strict=True):
            steps.setdefault(name, []).append((end - start) * 1e3)
        steps.setdefault("in all", []).append((times[-1] - times[0]) * 1e3)
    rows = [row(SUITE, f"{where}, {name}", PEER, "ms", values) for name, values in steps.items()]
    return rows, Node(state, observed, bases, plans, kernel)


def memory_of(each: Map) -> int:
    """Bytes that the kernel accounts to a map."""
    for line in Path(f"/proc/self/fdinfo/{each.fd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "memlock":
            return int(value)
    return 0


def memory(node: Node, services: int) -> list[Row]:
    """Of all maps with their tables, as /proc/self/fdinfo states it (memlock)."""
    maps = {name: memory_of(each) for name, each in node.kernel.maps}
    tables = 0
    for inner in (value for _, value in node.kernel.maps.tables.items()):
        tables += memory_of(Map.by_id(int.from_bytes(inner, sys.byteorder)))
    parts = {
        "in all": sum(maps.values()) + tables,
        "slot tables": tables,
        "conntrack": maps["conntrack"],
        "everything else": sum(maps.values()) - maps["conntrack"],
    }
    where = f"kernel memory: {services:,} services x {BACKENDS} backends, default limits"
    found = [row(SUITE, f"{where}, {name}", PEER, "MB", [size / 1e6]) for name, size in parts.items()]
    return [
        *found,
        row(SUITE, f"memory of the process: {services:,} services", PEER, "MB", [resident(os.getpid())]),
    ]


def changes(node: Node, services: int, options: Options) -> list[Row]:
    """One weight change, from the parsed state to the kernel; and the swap of one table alone."""
    tables, number = node.kernel.maps.tables, table_key(1)
    content = bytes(new_table().value_size)
    fill: list[float] = []
    swap: list[float] = []

    def swap_table() -> None:
        start = time.perf_counter()
        fresh = new_table()
        fresh.put(index_key(0), content)
        filled = time.perf_counter()
        tables.put(number, fresh.fd.to_bytes(4, sys.byteorder))
        fill.append((filled - start) * 1e3)
        swap.append((time.perf_counter() - filled) * 1e3)

    turn = iter(range(10**6))

    def change_weight() -> float:
        node.state = reweighted(node.state, next(turn))
        return stopwatch(node.apply)()

    def nothing_changed() -> float:
        return stopwatch(node.apply)()

    work = {
        "one weight change": change_weight,
        "no change": nothing_changed,
        "swap": stopwatch(swap_table),
    }
    times = interleaved(work, options.pick(15, 8))
    where = f"state to kernel: {services:,} services"
    return [
        *(row(SUITE, f"{where}, {name}", PEER, "ms", times[name]) for name in list(work)[:2]),
        row(SUITE, "table swap: make and fill a table", PEER, "ms", fill),
        row(SUITE, "table swap: put it in place, until no packet sees the old one", PEER, "ms", swap),
        row(SUITE, "table swap: in all", PEER, "ms", times["swap"]),
    ]


def fill_store(store: Store, state: DesiredState) -> None:
    """What lbctl and lbd would have written."""
    bases = Bases().update(state)
    puts = [Put(keys.CONFIG, state.config.model_dump_json())] if state.config else []
    puts += [Put(keys.service(name), each.model_dump_json()) for name, each in state.services.items()]
    puts += [Put(keys.backend(*key), each.model_dump_json()) for key, each in state.backends.items()]
    puts += [
        Put(keys.table(name), slots.to_document(name, table).model_dump_json())
        for name, table in bases.items()
    ]
    store.commit(puts)


def read_state(store: Store, previous: DesiredState | None) -> DesiredState:
    """As Desired.read() does it."""
    snapshot = store.read(keys.ROOT)
    items = ((kv.key, kv.value, kv.mod_revision) for kv in snapshot.items)
    return parse(snapshot.revision, items, previous, snapshot.created)


def from_the_store(node: Node, path: Path, services: int, options: Options) -> list[Row]:
    """From a commit in the store, through watch, parsing and planning, to the kernel."""
    with open_store(str(path)) as store:
        fill_store(store, node.state)
        node.state = read_state(store, None)
        node.apply()
        event: list[float] = []
        visible: list[float] = []
        whole: list[float] = []
        with store.watch(keys.ROOT, after=node.state.revision) as watch:
            for turn in range(options.pick(10, 3)):
                changed = reweighted(node.state, turn)
                key = next(k for k, b in changed.backends.items() if b != node.state.backends[k])
                onlooker = Onlooker(node.kernel.maps, key[0])
                start = time.perf_counter()
                store.commit([Put(keys.backend(*key), changed.backends[key].model_dump_json())])
                batch = watch.next(5)
                seen = time.perf_counter()
                news = [(each.key, each.value, each.revision) for each in batch.events] if batch else []
                state = advance(node.state, batch.revision if batch else 0, news)
                if state is None:
                    raise LbError("bench: a change of weight was not a plain one")
                node.state = state
                node.apply()
                end = time.perf_counter()
                event.append((seen - start) * 1e3)
                visible.append((onlooker.seen() - seen) * 1e3)
                whole.append((end - start) * 1e3)
    where = f"store to kernel: {services:,} services, one weight change"
    return [
        row(SUITE, f"{where}, commit to watch event", PEER, "ms", event),
        row(SUITE, f"{where}, watch event to packets", PEER, "ms", visible),
        row(SUITE, f"{where}, in all, until no packet sees the old table", PEER, "ms", whole),
    ]


def start_up(store: Path, options: Options) -> list[Row]:
    """`lbctl`, beside a Python that does nothing."""
    environment = {**os.environ, "LB_STORE": str(store), "LB_CONFIG": os.devnull}

    def command(*arguments: str) -> Callable[[], float]:
        argv = [sys.executable, *arguments]
        return stopwatch(lambda: subprocess.run(argv, env=environment, capture_output=True, check=True))

    lbctl = "from lb.cli.main import main; main()"
    work = {
        "python -c pass": command("-c", "pass"),
        "lbctl --help": command("-c", lbctl, "--help"),
        "lbctl service list -o json": command("-c", lbctl, "service", "list", "-o", "json"),
    }
    times = interleaved(work, options.pick(11, 3))
    floor = sorted(times["python -c pass"])[len(times["python -c pass"]) // 2]
    return [row(SUITE, f"start-up: {name}", PEER, "ms", values, floor) for name, values in times.items()]


def idle_watch(store: Path, options: Options) -> list[Row]:
    """CPU of a process that only waits for changes."""
    seconds = options.pick(5, 2)
    found = []
    for _ in range(options.pick(3, 1)):
        argv = [sys.executable, "-c", _WATCH, str(store), str(seconds)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        found.append(float(done.stdout))
    return [row(SUITE, "idle: a watch of the store", PEER, "% of a CPU", found)]


def run(options: Options) -> list[Row]:
    """The whole suite. Needs root."""
    services = options.pick(1000, 100)
    found, node = cold_start(services, options)
    found += memory(node, services)
    found += changes(node, services, options)
    with tempfile.TemporaryDirectory(prefix="lb-bench-") as folder:
        found += from_the_store(node, Path(folder) / "large.db", services, options)
        small = Path(folder) / "small.db"
        with open_store(str(small)) as store:
            fill_store(store, fleet(3)[0])
        found += start_up(small, options)
        found += idle_watch(small, options)
    return found
