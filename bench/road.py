"""The least that a program can do in the path of a connection, both ways: road.c, for one lab."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from lb.datapath import headers
from lb.datapath.bpf import Map, Program
from lb.errors import DatapathError
from lb.lab.lab import Lab


def pin(lab: Lab) -> Path:
    """Compile road.c for the lab's client and its only backend, and pin it; its path. lbd has to have
    run there."""
    os.environ["BCC_KERNEL_SOURCE"] = str(headers.find().path)
    from bcc import BPF  # reads the environment

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
    flags = ["-Wno-ignored-attributes", *(f"-DROAD_{name}={value}" for name, value in defines.items())]
    path = Path(__file__).with_suffix(".c")
    try:
        function = BPF(text=path.read_text(), cflags=flags).load_func("bench_road", BPF.XDP)
    except Exception as error:
        raise DatapathError(f"{path.name}: {error}", hint="what the compiler said is above") from error
    Program(os.dup(function.fd)).pin(folder / "road")
    return folder / "road"


def _link(lab: Lab, namespace: str, interface: str) -> dict[str, Any]:
    found = lab.run(namespace, ["ip", "-json", "link", "show", "dev", interface]).stdout
    link: dict[str, Any] = json.loads(found)[0]
    return link


def _macs(destination: dict[str, Any], source: dict[str, Any]) -> str:
    """For an initialiser in C."""
    both = f"{destination['address']}:{source['address']}".split(":")
    return ",".join(f"0x{byte}" for byte in both)
