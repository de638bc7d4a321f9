"""A fleet with a service and traffic, as the faults find it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from helpers import create, service
from prometheus_client.parser import text_string_to_metric_families as families

from lb.lab.fleet import Fleet
from lb.lab.fleet_topology import OTHER_VIP4
from lb.lab.lab import Lab
from lb.lab.node import Node
from lb.lab.shell import LabError, environment, in_namespace, run, wait_until
from lb.lab.steady import Requests, traffic
from lb.lab.topology import VIP4, VIP6, Address
from lb.model import keys
from lb.model.rollout import RolloutLock
from lb.settings import Settings

HERE = Path(__file__).parent
SERVICE = "web"
STILL = "still"
RATE = 200.0  # requests a second
PATIENCE = 60.0


@dataclass
class Field:
    """A fleet that serves `web`, on IPv4, from all of its backends."""

    fleet: Fleet

    def prepare(self, *more: dict[str, Any]) -> None:
        """Have the service, and nothing else but `more`."""
        entries = [service(self.fleet, SERVICE, VIP4), *more]
        text = json.dumps({"services": entries})
        self.fleet.lbctl("apply", "-f", "-", "--prune", "--wait", "--timeout", "30", text=text)

    def add_six(self) -> None:
        """Have another service, on IPv6, as something that can be deleted."""
        create(self.fleet, service(self.fleet, "six", VIP6))

    def add_still(self) -> None:
        """Have another service, on another address: it is new, so that none of its slots has moved.

        A connection that begins in a slot that has just moved is known to one node (docs/concepts.md,
        "What that promises"); who takes a node away, and may lose nothing, asks this service."""
        self.fleet.add_vip(OTHER_VIP4)
        create(self.fleet, service(self.fleet, STILL, OTHER_VIP4))
        self.agree()

    def traffic(self, address: Address = VIP4) -> AbstractContextManager[Requests]:
        """Requests at a steady pace; what came of them is known after the block."""
        return traffic(self.fleet, address, RATE)

    def script(self, namespace: str, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a program of this folder in a namespace, with its ends in our hands."""
        argv = [sys.executable, str(HERE / name), *arguments]
        return subprocess.Popen(
            in_namespace(self.fleet.namespace(namespace), argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )

    def weight(self, value: int, backend: int = 0, timeout: float = 30) -> None:
        """A change, in the kernels of all live nodes when this returns."""
        name = self.fleet.topology.backends[backend]
        self.fleet.lbctl(
            *("backend", "weight", SERVICE, name, str(value), "--wait", "--timeout", f"{timeout:g}")
        )

    def metric(self, node: int, name: str) -> float:
        """What a node tells Prometheus, all series of that name added up."""
        argv = ["curl", "-sS", "--fail", "--noproxy", "*", f"http://{Settings().metrics.listen}/metrics"]
        text = self.fleet.run(self.fleet.nodes[node].name, argv).stdout
        found = [s.value for f in families(text) for s in f.samples if s.name == name]
        if not found:
            raise LabError(f"node {node} has no metric {name}")
        return sum(found)

    def status(self) -> dict[str, Any]:
        """As lbctl shows it."""
        data: dict[str, Any] = json.loads(self.fleet.lbctl("status", "-o", "json").stdout)
        return data

    def runner(self) -> Node | None:
        """The node that holds the lock of the rollouts."""
        done = self.fleet.etcd.ctl("get", "--print-value-only", keys.ROLLOUT_LOCK).stdout.strip()
        name = RolloutLock.model_validate_json(done).node if done else ""
        return next((node for node in self.fleet.nodes if node.name == name and node.lbd), None)

    def rollout(self) -> dict[str, Any]:
        """The service's, as lbctl shows it."""
        done = self.fleet.lbctl("rollout", "status", SERVICE, "-o", "json")
        found: dict[str, Any] = json.loads(done.stdout)["rollout"]
        return found

    def problems(self) -> str:
        """What any node has to say."""
        return " ".join(each["message"] for node in self.status()["nodes"] for each in node["problems"])

    def agree(self) -> dict[str, str]:
        """Wait until all nodes are live, have applied everything, and hold the same tables; returns
        the digests."""
        held: list[dict[str, str]] = []

        def do_agree() -> bool:
            if self.fleet.lbctl("status", check=False).returncode:
                return False
            found = self.status()
            nodes = found["nodes"]
            held[:] = [each["digests"] for each in nodes]
            return (
                len(nodes) == len(self.fleet.nodes)
                and all(each["applied"] for each in nodes)
                and all(each == held[0] for each in held)
                and len(held[0]) == found["services"]
            )

        try:
            wait_until("the nodes to agree", do_agree, timeout=PATIENCE)
        except LabError as error:
            said = self.fleet.lbctl("status", "-o", "json", check=False)
            raise LabError(f"{error}; they say: {said.stdout or said.stderr}; tables: {held}") from None
        return held[0]

    def weights(self) -> dict[str, int]:
        """Of the backends, as they are stored."""
        rows = json.loads(self.fleet.lbctl("backend", "list", SERVICE, "-o", "json").stdout)
        return {row["name"]: row["weight"] for row in rows}

    def propagation(self, count: int) -> dict[str, Any]:
        """What lb/lab/propagation.py finds."""
        pins = [f"{node.node_folder}/bpf/lb" for node in self.fleet.nodes]
        arguments = [self.fleet.etcd.url, SERVICE, self.fleet.topology.backends[0], str(count), *pins]
        argv = [sys.executable, "-m", "lb.lab.propagation", *arguments]
        found: dict[str, Any] = json.loads(
            self.fleet.run(self.fleet.nodes[0].name, argv, timeout=300).stdout
        )
        return found

    def write_all(self, count: int, seconds: float) -> list[dict[str, Any]]:
        """Three writers at once, one on each node, of one backend's weight; each adds 1 so often."""
        arguments = (
            self.fleet.etcd.url,
            SERVICE,
            self.fleet.topology.backends[0],
            f"{count}",
            f"{seconds}",
        )
        children = [self.script(node.name, "writer.py", *arguments) for node in self.fleet.nodes]
        try:
            for child in children:
                assert child.stdout
                if child.stdout.readline() != "ready\n":
                    raise LabError("a writer did not begin")
            for child in children:
                assert child.stdin
                child.stdin.write("\n")
                child.stdin.flush()
            return [json.loads(child.communicate(timeout=3 * seconds + 30)[0]) for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()


def abort(place: Lab | Fleet, service: str, canary: Sequence[str]) -> dict[str, float]:
    """Abort its rollout; returns what aborting.py measures."""
    nodes = [place] if isinstance(place, Lab) else place.nodes
    first = nodes[0]
    pins = [f"{node.node_folder}/bpf/lb" for node in nodes]
    argv = [sys.executable, str(HERE / "aborting.py"), first.store, service, ",".join(canary), *pins]
    name = place.plan.nodes[0]
    done = run(in_namespace(name, argv), env=environment(first.lb_environment))
    found: dict[str, float] = json.loads(done.stdout)
    return found


def log_position(node: Node) -> int:
    return len(node.lbd_log.read_text(errors="replace"))


def logged(node: Node, words: str, begin: int) -> bool:
    """Has lbd said so since?"""
    return words in node.lbd_log.read_text(errors="replace")[begin:]


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many per cent don't exceed: nearest rank."""
    ordered = sorted(values)
    return ordered[max(1, ceil(len(ordered) * percent / 100)) - 1]
