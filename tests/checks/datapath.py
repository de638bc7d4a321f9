"""`make check-datapath`: the kernel's programs against the model, and every mode with real traffic.

The last line has the figures of this run; PASS if nothing differed and every transfer was whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from lb.lab.lab import Lab
from lb.lab.shell import LabError
from lb.lab.topology import VIP4, VIP6

sys.path.insert(0, str(Path(__file__).parent.parent / "lab"))
from helpers import held, remove_all
from transfers import (
    MODES,
    ask_dns,
    ask_in_pieces,
    ask_udp,
    download,
    download_through_small_hop,
    everything,
    publish,
    put_client_behind_small_hop,
    start_dns_servers,
)

PACKETS = 12000  # for each mode, under each program
DIFFERENTIAL = "tests/datapath/test_against_model.py"
BIG, SMALL = 100_000_000, 5_000_000  # bytes
CONNECTIONS = 1000
JUMBO = 9000


class Found:
    """What was measured."""

    def __init__(self) -> None:
        self.packets = self.mismatches = 0
        self.tried: Counter[str] = Counter()
        self.good: Counter[str] = Counter()

    def transfer(self, mode: str, what: str, does: Callable[[], bool]) -> None:
        """Try one, and say so if it failed."""
        self.tried[mode] += 1
        try:
            is_good = does()
        except LabError as error:
            is_good = False
            what = f"{what}: {error.message}"
        self.good[mode] += is_good
        if not is_good:
            print(f"failed: {mode}, {what}", flush=True)


def against_model(found: Found, mode: str) -> str:
    """Random packets for services of one mode, through both programs and the model."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", DIFFERENTIAL, f"--junit-xml={report}"],
            env={**os.environ, "LB_MODE": mode, "LB_PACKETS": str(PACKETS)},
            capture_output=True,
            text=True,
            check=False,
        )
        properties = ElementTree.parse(report).iter("property")
        sent = sum(int(each.attrib["value"]) for each in properties if each.attrib["name"] == "packets")
    found.packets += 2 * sent
    if done.returncode:
        # The comparison ends with the first that it finds.
        found.mismatches += 1
        print(done.stdout[-3000:])
    return f"{sent} packets under XDP and tc each: {'a mismatch' if done.returncode else 'all alike'}"


def real_traffic(found: Found, lab: Lab, hook: str, mode: str, far: str, size: int) -> None:
    """What clients do, by IPv4 and IPv6."""
    everything(lab, mode)
    checksum, everybody = publish(lab, size), set(lab.topology.backends)
    for vip in (VIP4, VIP6):

        def many(vip=vip) -> bool:  # type: ignore[no-untyped-def]
            with held(lab, vip, CONNECTIONS) as connections:
                first = connections.ask()
                return set(first) == everybody and connections.ask() == first

        def small_hop(vip=vip) -> bool:  # type: ignore[no-untyped-def]
            got, told = download_through_small_hop(lab, far, vip)
            return got == checksum and told > 0

        attempts: dict[str, Callable[[], bool]] = {
            f"download of {size:,} bytes": lambda v=vip: download(lab, v) == checksum,  # type: ignore[misc]
            "UDP from 100 ports": lambda v=vip: ask_udp(lab, v, range(20000, 20100)) == everybody,  # type: ignore[misc]
            "large datagrams from 40 ports": lambda v=vip: (  # type: ignore[misc]
                ask_in_pieces(lab, v, range(20000, 20040)) == everybody
            ),
            "10 DNS queries": lambda v=vip: ask_dns(lab, v, 10) <= everybody,  # type: ignore[misc]
            f"{CONNECTIONS} connections at a time": many,
            f"download of {size:,} bytes through a hop of small MTU": small_hop,
        }
        for what, does in attempts.items():
            found.transfer(mode, f"{hook}, {vip}: {what}", does)


def jumbo(found: Found) -> None:
    """Frames of 9,000 bytes: tc, because XDP takes none that long on these links."""
    with Lab(prefix="lbk-", mtu=JUMBO) as lab:
        lab.start_lbd("tc")
        for mode in MODES:
            everything(lab, mode)
            checksum = publish(lab, SMALL)
            for vip in (VIP4, VIP6):
                found.transfer(
                    mode,
                    f"tc, {vip}: jumbo frames",
                    lambda v=vip, c=checksum: download(lab, v) == c,  # type: ignore[misc]
                )


def main() -> None:
    """Run everything; exit code 0 = PASS."""
    found = Found()
    for mode in MODES:
        print(f"model: {mode}: {against_model(found, mode)}", flush=True)
    with Lab(prefix="lbk-") as lab:
        lab.start_udp_servers()
        start_dns_servers(lab)
        far = put_client_behind_small_hop(lab)
        for hook, size in (("xdp", BIG), ("xdp-generic", SMALL), ("tc", SMALL)):
            if lab.lbd:
                lab.kill_lbd()
            lab.start_lbd(hook)
            for mode in MODES:
                before = (found.good[mode], found.tried[mode])
                real_traffic(found, lab, hook, mode, far, size)
                good, tried = found.good[mode] - before[0], found.tried[mode] - before[1]
                print(f"traffic: {hook}, {mode}: {good} of {tried} transfers whole", flush=True)
            remove_all(lab)
    jumbo(found)
    good, tried = found.good.total(), found.tried.total()
    whole = [mode for mode in MODES if found.tried[mode] and found.good[mode] == found.tried[mode]]
    passed = not found.mismatches and good == tried and found.packets >= 2 * PACKETS * len(MODES)
    print(
        f"check-datapath: {'PASS' if passed else 'FAIL'} packets={found.packets}"
        f" mismatches={found.mismatches} modes={len(whole)} transfers_ok={good}/{tried}"
    )
    sys.exit(not passed)


if __name__ == "__main__":
    main()
