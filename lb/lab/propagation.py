"""How long a change takes to the last kernel of a fleet:
`python -m lb.lab.propagation STORE SERVICE BACKEND COUNT PIN_DIR…`, in the namespace of a node.

Changes the weight of a backend COUNT times, each as any other writer would: one document, put into the
store. Looks at the pinned maps of all nodes for the table with the new share, and does what `--wait`
does. Prints one JSON document; all times in ms, from the moment at which the commit is sent.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lb.cli.wait import until_applied
from lb.core import ids, slots
from lb.datapath import slotmaps
from lb.datapath.kernel import read_owners
from lb.datapath.maps import Maps
from lb.lab.shell import LabError
from lb.model import keys
from lb.model.objects import Backend
from lb.store.base import Compare, Put, Store
from lb.store.opening import open_store

WEIGHTS = (60, 140)
PATIENCE = 20.0
PAUSE = 0.001  # between two looks at all kernels, so that the looking leaves the machine to others


@dataclass
class Kernels:
    """The tables that a service has in the kernels of all nodes."""

    service: str
    backend: str
    pin_dirs: Sequence[Path]
    _seats: list[tuple[Maps, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        service = ids.uid(keys.service(self.service))
        backend = ids.uid(keys.backend(self.service, self.backend))
        for each in self.pin_dirs:
            maps = Maps.open(each)
            number = _owned(read_owners(maps.service_owners), service)
            self._seats.append((maps, number, _owned(read_owners(maps.backend_owners), backend)))

    def tables(self) -> list[bytes | None]:
        """Which table each kernel has in force, as a number of its own."""
        return [maps.tables.get(slotmaps.table_key(number)) for maps, number, _ in self._seats]

    def share(self, node: int) -> int:
        """Slots of the backend in one kernel."""
        maps, number, backend = self._seats[node]
        held = slotmaps.read(maps.tables, number)
        return int((held.backends == backend).sum()) if held else 0


@dataclass
class Onlooker:
    """Notes when each kernel has the share that is expected."""

    kernels: Kernels
    expected: float
    seen: list[float] = field(default_factory=list)
    _first: list[bytes | None] = field(default_factory=list)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        before = self.kernels.tables()
        self._first = [*before]
        self.seen = [0.0] * len(before)
        self._thread = threading.Thread(target=self._look, args=(before,))
        self._thread.start()

    def _look(self, before: list[bytes | None]) -> None:
        deadline = time.perf_counter() + PATIENCE
        while not all(self.seen) and time.perf_counter() < deadline:
            for node, table in enumerate(self.kernels.tables()):
                if self.seen[node] or table == before[node]:
                    continue
                now = time.perf_counter()
                before[node] = table
                if abs(self.kernels.share(node) - self.expected) <= 1:
                    self.seen[node] = now
            time.sleep(PAUSE)

    def is_done(self) -> bool:
        """Looked at now, and not when the thread has its turn: do all kernels have it?"""
        now = self.kernels.tables()
        return all(
            table != first and abs(self.kernels.share(node) - self.expected) <= 1
            for node, (table, first) in enumerate(zip(now, self._first, strict=True))
        )

    def all_seen(self) -> list[float]:
        """When each kernel had it, by time.perf_counter()."""
        self._thread.join()
        if not all(self.seen):
            raise LabError(f"a change was not in all kernels after {PATIENCE:g} s")
        return self.seen


def _owned(owners: dict[int, int], uid: int) -> int:
    for number, each in owners.items():
        if each == uid:
            return number
    raise LabError("a kernel doesn't have the service, or the backend")


def expected(store: Store, changed: Backend) -> float:
    """Slots that the backend is to have with its new weight, among those that are stored."""
    found = [
        Backend.model_validate_json(item.value)
        for item in store.read(f"{keys.BACKENDS}{changed.service}/").items
    ]
    others = sum(each.weight for each in found if each.name != changed.name)
    return slots.SLOTS * changed.weight / (others + changed.weight)


def measure(store: Store, kernels: Kernels, count: int) -> dict[str, object]:
    """The figures of so many changes."""
    key = keys.backend(kernels.service, kernels.backend)
    nodes = len(store.read(keys.NODES).items)
    to_kernel: list[float] = []
    to_commit: list[float] = []
    to_wait: list[float] = []
    early = 0
    for turn in range(count):
        item = store.get(key)
        if item is None:
            raise LabError(f"{key} is gone")
        before = Backend.model_validate_json(item.value)
        weight = next(each for each in WEIGHTS[turn % 2 :] + WEIGHTS if each != before.weight)
        after = before.model_copy(update={"weight": weight})
        onlooker = Onlooker(kernels, expected(store, after))
        begin = time.perf_counter()
        put = Put(key, after.model_dump_json())
        revision = store.commit([put], [Compare(key, item.mod_revision)])
        committed = time.perf_counter()
        waited = until_applied(store, revision, PATIENCE, [key], {})
        returned = time.perf_counter()
        early += not onlooker.is_done() or len(waited.applied) < nodes
        seen = onlooker.all_seen()
        to_commit.append((committed - begin) * 1e3)
        to_kernel.append((max(seen) - begin) * 1e3)
        to_wait.append((returned - begin) * 1e3)
    return {"kernel": to_kernel, "commit": to_commit, "wait": to_wait, "early": early}


def main() -> None:
    """See above."""
    url, service, backend, count, *pins = sys.argv[1:]
    with open_store(url) as store:
        kernels = Kernels(service, backend, [Path(each) for each in pins])
        print(json.dumps(measure(store, kernels, int(count))))


if __name__ == "__main__":
    main()
