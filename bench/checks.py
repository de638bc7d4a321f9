"""Suite `checks`: what it costs to check 2,000 backends once a second, and how late checks begin.

lbd's own parts in a process of their own, from the desired state to verdicts; on the other side one
nginx on the loopback, which takes a processor too.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from bench.daemon import resident
from bench.rows import Options, Row, row
from lb.core.state import DesiredState
from lb.model.health import Health, HttpCheck, TcpCheck
from lb.model.objects import Backend, Service
from lb.node.checks import Checks
from lb.probe.prober import Prober
from lb.probe.scheduler import Probed
from lb.settings import Checks as Settings

SUITE = "checks"
BACKENDS = 2000
PORT = 18099
_NGINX = """\
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 8192; }}
http {{ access_log off; server {{ listen 127.0.0.1:{port} backlog=4096; return 200 "up"; }} }}
"""


def run(options: Options) -> list[Row]:
    """CPU, memory and lateness for each kind."""
    rounds, seconds = options.pick(3, 1), options.pick(15, 12)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(_NGINX.format(folder=folder, port=PORT))
        server = subprocess.Popen(["nginx", "-e", f"{folder}/log", "-p", folder, "-c", str(config)])
        try:
            for kind in ("tcp", "http"):
                runs = [_measured(kind, seconds) for _ in range(rounds)]
                for what, unit in (("cpu", "%"), ("memory", "MB"), ("late_p99", "ms")):
                    case = f"{BACKENDS:,} {kind} checks a second: {what}"
                    found.append(row(SUITE, case, "lb", unit, [each[what] for each in runs]))
        finally:
            server.terminate()
            server.wait()
    return found


def _measured(kind: str, seconds: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "bench.checks", kind, str(seconds)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def serve(kind: str, seconds: float) -> dict[str, float]:
    """In a process of its own: check for so long, once all have been found healthy."""
    check = HttpCheck(port=PORT) if kind == "http" else TcpCheck(port=PORT)
    # All at one address, which documents can't have: it is no backend's.
    address = ip_address("127.0.0.1")
    service = Service(
        name="web", vip=ip_address("198.51.100.100"), port=80, health=Health(check=check, interval=1.0)
    )
    backends = {
        ("web", f"b{n}"): Backend.model_construct(service="web", name=f"b{n}", address=address)
        for n in range(BACKENDS)
    }
    inbox: queue.SimpleQueue[Sequence[Probed]] = queue.SimpleQueue()
    prober = Prober(inbox.put, lambda error: sys.exit(repr(error)))
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(memory=Path(folder) / "health.json")
        checks = Checks(settings, prober, lambda _: None)
        checks.follow(DesiredState(services={"web": service}, backends=backends))
        while checks.verdicts["web"].fitness:
            checks.take(_all(inbox, None))
        began, cpu = time.monotonic(), time.process_time()
        while (left := began + seconds - time.monotonic()) > 0:
            checks.take(_all(inbox, left))
            checks.tick()
        used = 100 * (time.process_time() - cpu) / (time.monotonic() - began)
        return {
            "cpu": used,
            # Not ru_maxrss, which a process has from the one that started it.
            "memory": resident(os.getpid(), "VmHWM"),
            "late_p99": prober.lateness(99) * 1000,
        }


def _all(inbox: queue.SimpleQueue[Sequence[Probed]], timeout: float | None) -> list[Probed]:
    """As lbd's loop does: everything that has come, as soon as something has."""
    found: list[Probed] = []
    try:
        found += inbox.get(timeout=timeout)
        while True:
            found += inbox.get_nowait()
    except queue.Empty:
        return found


if __name__ == "__main__":
    print(json.dumps(serve(sys.argv[1], float(sys.argv[2]))))
