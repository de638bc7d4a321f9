"""QUIC clients whose address changes in the middle of a connection, with a real implementation at both
ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import create, service

from lb.lab.lab import Lab
from lb.lab.shell import run, wait_until
from lb.lab.topology import VIP4, VIP6, Address

PORT = 4433
CONNECTIONS = 12
SERVER, CLIENT = (Path(__file__).with_name(f"quic_{side}.py") for side in ("server", "client"))


@pytest.fixture(scope="module")
def ids(lab: Lab) -> dict[str, str]:
    """QUIC servers on all backends; the ID of each."""
    certificate, key = lab.folder / "quic.crt", lab.folder / "quic.key"
    run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=lb", "-days", "2", "-keyout", str(key), "-out", str(certificate)),
        ]
    )
    found = {}
    for number, name in enumerate(lab.topology.backends, 1):
        found[name] = f"a0{number:02x}"
        addresses = [str(each) for each in (VIP4, VIP6, *lab.topology.back_addresses(name))]
        files = [str(certificate), str(key)]
        lab.popen(name, [sys.executable, str(SERVER), name, found[name], str(PORT), *files, *addresses])
    for name in found:
        wait_until(
            f"the QUIC server of {name}",
            lambda n=name: (  # type: ignore[misc]
                lab.run(n, ["ss", "-Huln", "sport", "=", f":{PORT}"]).stdout.count("\n") == 4
            ),
        )
    return found


def ask(lab: Lab, vip: Address) -> list[tuple[str, str]]:
    argv = [sys.executable, str(CLIENT), str(vip), str(PORT), str(CONNECTIONS)]
    pairs: list[tuple[str, str]] = json.loads(lab.run("client", argv, timeout=120).stdout)
    return pairs


def quic(lab: Lab, vip: Address, ids: dict[str, str], mode: str, *, steered: bool) -> None:
    entry = service(lab, "quic", vip, mode=mode, port=PORT, protocol="udp")
    if steered:
        entry |= {"quic_id_bytes": 2, "quic_config": 2}
        for backend in entry["backends"]:
            backend["quic_id"] = ids[backend["name"]]
    create(lab, entry)


@pytest.mark.parametrize("mode", ["dsr", "nat", "fullnat"])
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_a_client_that_moves_stays_with_its_server(
    node: Callable[[str], Lab], ids: dict[str, str], hook: str, mode: str
) -> None:
    lab = node(hook)
    for vip in (VIP4, VIP6):
        quic(lab, vip, ids, mode, steered=True)
        pairs = ask(lab, vip)
        assert all(before == after for before, after in pairs), pairs
        assert len({before for before, _ in pairs}) > 1
        lab.lbctl("service", "rm", "quic", "--cascade", "--wait")


def test_without_that_it_loses_it(node: Callable[[str], Lab], ids: dict[str, str]) -> None:
    """What steering by connection ID is for: 3 of 4 new source ports lead to another server."""
    lab = node("xdp")
    quic(lab, VIP4, ids, "dsr", steered=False)
    assert any(after.startswith("!") for _, after in ask(lab, VIP4))
