"""Suite `daemon`: memory and idle CPU of a real lbd in the lab, after its start and in the course of two
thousand changes.

Two thousand are what an hour brings at one every 1.8 s; here they come as fast as lbd applies them:
weights, and a service with a backend that comes and goes. Meanwhile each backend is checked ten times a
second.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from bench.rows import Options, Row, row
from lb.cli.wait import until_applied
from lb.lab.lab import Lab
from lb.lab.topology import VIP4
from lb.model import keys
from lb.model.objects import Backend, Mode, Service
from lb.store.base import Delete, Put, Store
from lb.store.opening import open_store

SUITE = "daemon"
PEER = "lb"
PATIENCE = 60.0
_SERVICES = 3


def resident(pid: int, what: str = "VmRSS") -> float:
    """Memory of a process, in MB. VmHWM: the most that it had since its program began."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


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
    """Another weight for one backend, or a service that comes or goes; back when it is in the kernel."""
    key = keys.backend("web0", "lbb-backend1")
    held = next(item for item in store.read(key).items if item.key == key)
    backend = Backend.model_validate_json(held.value)
    guest = Service(name="guest", vip=VIP4, port=90, mode=Mode.NAT)
    server = Backend(service="guest", name="server", address=backend.address, port=90)
    places = keys.service(guest.name), keys.backend(server.service, server.name)
    match turn % 4:
        case 1:
            texts = guest.model_dump_json(), server.model_dump_json()
            changes: list[Put | Delete] = [Put(*each) for each in zip(places, texts, strict=True)]
        case 3:
            changes = [Delete(place) for place in places]
        case _:
            weighed = backend.model_copy(update={"weight": 50 + turn % 50})
            changes = [Put(key, weighed.model_dump_json())]
    until_applied(store, store.commit(changes), PATIENCE, [], {})


def serve(lab: Lab, more: Mapping[str, object]) -> None:
    """The services, with these settings besides; back when they are in the kernel."""
    services = [
        {
            "name": f"web{n}", "vip": str(VIP4), "port": 80 + n, "mode": "nat", **more,
            "backends": [
                {"name": name, "address": str(lab.topology.back_addresses(name)[0]), "port": 80 + n}
                for name in lab.topology.backends
            ],
        }
        for n in range(_SERVICES)
    ]  # fmt: skip
    lab.lbctl("apply", "-f", "-", "--wait", text=json.dumps({"services": services}))


def run(options: Options) -> list[Row]:
    """The whole suite. Needs root."""
    steps, seconds = ((250, 500, 1000, 2000), 10) if not options.quick else ((50,), 3)
    with Lab(prefix="lbb-", backends=4) as lab:
        begin = time.perf_counter()
        lbd = lab.start_lbd("xdp")
        first = time.perf_counter() - begin
        serve(lab, {})
        quiet = [idle(lbd.pid, seconds) for _ in range(options.pick(3, 1))]
        fresh = resident(lbd.pid)
        serve(lab, {"health": {"check": {"kind": "tcp", "port": 80}, "interval": 0.1}})
        with open_store(lab.store) as store:
            done, soaked = 0, {}
            for step in steps:
                for turn in range(done, step):
                    change(store, turn)
                done, soaked[step] = step, resident(lbd.pid)
        lab.kill_lbd()
        begin = time.perf_counter()
        lab.start_lbd("xdp")
        again = time.perf_counter() - begin
    return [
        row(SUITE, "start-up: first, with a program to compile", PEER, "s", [first]),
        row(SUITE, "start-up: again, all is there", PEER, "s", [again]),
        row(SUITE, "idle: CPU", PEER, "% of a CPU", quiet),
        row(SUITE, "memory: after start", PEER, "MB", [fresh]),
        *(row(SUITE, f"memory: after {n:,} changes", PEER, "MB", [size]) for n, size in soaked.items()),
    ]
