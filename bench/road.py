"""The least that a program can do in the path of a connection, both ways: road.c, for one lab."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.load import compiled
from lb.datapath.bpf import Map
from lb.lab.lab import Lab


def pin(lab: Lab) -> Path:
    """Compile road.c for the lab's client and its only backend, and pin it; its path. lbd has to have
    run there."""
    plan, folder = lab.topology, lab.node_folder / "bpf"
    (backend,) = plan.backends
    egress = Map.open(folder / "lb/maps/egress")
    front, back = (_link(lab, plan.node, side) for side in ("front0", "back0"))
    client, server = plan.client_addresses[0], plan.back_addresses(backend)[0]
    defines = {
        "FD_EGRESS": egress.fd,
        "TO_SERVER": _macs(_link(lab, backend, "back0"), back),
        "TO_CLIENT": _macs(_link(lab, plan.client, "front0"), front),
        "CLIENT": f"{int.from_bytes(client.packed, sys.byteorder)}u",
        "SERVER": f"{int.from_bytes(server.packed, sys.byteorder)}u",
        "BACK": back["ifindex"],
        "FRONT": front["ifindex"],
    }
    flags = [f"-DROAD_{name}={value}" for name, value in defines.items()]
    loaded = compiled(Path(__file__).with_suffix(".c"), "xdp", ["bench_road"], flags)
    loaded["bench_road"].pin(folder / "road")
    return folder / "road"


def _link(lab: Lab, namespace: str, interface: str) -> dict[str, Any]:
    found = lab.run(namespace, ["ip", "-json", "link", "show", "dev", interface]).stdout
    link: dict[str, Any] = json.loads(found)[0]
    return link


def _macs(destination: dict[str, Any], source: dict[str, Any]) -> str:
    """For an initialiser in C."""
    both = f"{destination['address']}:{source['address']}".split(":")
    return ",".join(f"0x{byte}" for byte in both)
