"""Suite `daemon`: memory and idle CPU of a real lbd in the lab, after its start and after a thousand
changes.

A thousand are what an hour brings at one every 3.6 s; here they come as fast as lbd applies them.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from bench.rows import Options, Row, row
from lb.cli.wait import until_applied
from lb.lab.lab import Lab
from lb.lab.topology import VIP4
from lb.model import keys
from lb.model.objects import Backend
from lb.store.base import Put, Store
from lb.store.opening import open_store

SUITE = "daemon"
PEER = "lb"
PATIENCE = 60.0
_SERVICES = 3


def resident(pid: int) -> float:
    """Memory of a process, in MB (VmRSS)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def cpu(pid: int) -> float:
    """Seconds that it has run for (proc(5): utime, stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(pid: int, seconds: float) -> float:
    """Per cent of a CPU while nothing happens."""
    before, start = cpu(pid), time.monotonic()
    time.sleep(seconds)  # what is measured is time that passes
    return 100 * (cpu(pid) - before) / (time.monotonic() - start)


def change(store: Store, turn: int) -> None:
    """Another weight for one backend; back when it is in the kernel."""
    key = keys.backend("web0", "lbb-backend1")
    held = next(item for item in store.read(key).items if item.key == key)
    backend = Backend.model_validate_json(held.value).model_copy(update={"weight": 50 + turn % 50})
    revision = store.commit([Put(key, backend.model_dump_json())])
    until_applied(store, revision, PATIENCE, [], {})


def run(options: Options) -> list[Row]:
    """The whole suite. Needs root."""
    changes, seconds = options.pick(1000, 50), options.pick(10, 3)
    with Lab(prefix="lbb-", backends=4) as lab:
        begin = time.perf_counter()
        lbd = lab.start_lbd("xdp")
        first = time.perf_counter() - begin
        services = [
            {
                "name": f"web{n}", "vip": str(VIP4), "port": 80 + n, "mode": "nat",
                "backends": [
                    {"name": name, "address": str(lab.topology.back_addresses(name)[0]), "port": 80 + n}
                    for name in lab.topology.backends
                ],
            }
            for n in range(_SERVICES)
        ]  # fmt: skip
        lab.lbctl("apply", "-f", "-", "--wait", text=json.dumps({"services": services}))
        quiet = [idle(lbd.pid, seconds) for _ in range(options.pick(3, 1))]
        fresh = resident(lbd.pid)
        with open_store(lab.store) as store:
            for turn in range(changes):
                change(store, turn)
        soaked = resident(lbd.pid)
        lab.kill_lbd()
        begin = time.perf_counter()
        lab.start_lbd("xdp")
        again = time.perf_counter() - begin
    return [
        row(SUITE, "start-up: first, with a program to compile", PEER, "s", [first]),
        row(SUITE, "start-up: again, all is there", PEER, "s", [again]),
        row(SUITE, "idle: CPU", PEER, "% of a CPU", quiet),
        row(SUITE, "memory: after start", PEER, "MB", [fresh]),
        row(SUITE, f"memory: after {changes:,} changes", PEER, "MB", [soaked]),
    ]
