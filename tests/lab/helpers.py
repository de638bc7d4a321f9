"""What the lab's tests share: services, connections that are held open."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lb.lab.lab import Lab
from lb.lab.node import program
from lb.lab.shell import environment, in_namespace, run
from lb.lab.topology import Address

HELD = Path(__file__).with_name("held.py")


class Held:
    """Connections that a client in the lab keeps open."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def ask(self) -> list[str]:
        """Who answers on each of them now; an answer that begins with "!" is a failure."""
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        answers: list[str] = json.loads(self._child.stdout.readline())
        return answers


# So many connections miss one of four backends with a probability of 4 * (3/4)^64 < 1e-7. With 40 it is
# 4e-5, and a suite makes some hundred such draws.
ENOUGH = 64


@contextmanager
def held(
    lab: Lab, address: Address, count: int, first_port: int = 0, *, port: int = 80
) -> Iterator[Held]:
    argv = [sys.executable, str(HELD), str(address), str(port), str(count), str(first_port)]
    child = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{lab.topology.client}", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Held(child)
    finally:
        child.kill()
        child.wait()


def service(
    lab: Lab,
    name: str,
    vip: Address,
    *,
    mode: str = "dsr",
    port: int = 80,
    protocol: str = "tcp",
    via: int | None = None,
    **policies: Any,
) -> dict[str, Any]:
    """A service with all of the lab's backends, as an entry of a manifest. `via`: the IP version by
    which they are reached, if it isn't the VIP's."""
    index = 0 if (via or vip.version) == 4 else 1
    backends = [
        {"name": backend, "address": str(lab.topology.back_addresses(backend)[index])}
        for backend in lab.topology.backends
    ]
    return {"name": name, "vip": str(vip), "port": port, "protocol": protocol, "mode": mode,
            "backends": backends, **policies}  # fmt: skip


def create(lab: Lab, *services: dict[str, Any]) -> None:
    """Have these services, in force in the kernel."""
    lab.lbctl("apply", "-f", "-", "--wait", text=json.dumps({"services": services}))


def remove_all(lab: Lab) -> None:
    """Back to an empty store."""
    lab.lbctl("apply", "-f", "-", "--prune", "--force", "--wait", text="services: []")


def outcomes(lab: Lab) -> dict[str, int]:
    """Packets of each outcome until now."""
    status = json.loads(lab.lbctl("status", "-o", "json").stdout)
    return {name: counter["packets"] for name, counter in status["outcomes"].items()}


def backend_node(lab: Lab, backend: str, *arguments: str) -> str:
    """lbctl backend-node on a backend."""
    pins = ["--pin-dir", str(lab.folder / backend / "bpf" / "lb")]
    command = [*program("lbctl"), "backend-node", *arguments, *pins]
    return run(in_namespace(backend, command), env=environment(lab.lb_environment)).stdout


def found(lab: Lab, backend: str, name: str = "web") -> dict[str, Any]:
    """What the node says of a backend's health; empty while it says nothing."""
    [node] = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
    health: dict[str, Any] = node["health"].get(f"{name}/{lab.namespace(backend)}", {})
    return health
