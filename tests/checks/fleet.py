"""`make check-fleet`: what can happen to a fleet, for real, with traffic flowing all the time.

The last line has the figures of this run: faults gone through, requests that failed in all of them, and
how long 120 changes of weight took from their commit to the last of three kernels. PASS if the fleet did
what it should in every fault, no request failed, and `--wait` never returned before a kernel had the
change.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lb.errors import LbError
from lb.lab.fleet import Fleet
from lb.lab.fleet_topology import OTHER_VIP4
from lb.lab.topology import VIP4, Address

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
sys.path.insert(0, str(Path(__file__).parents[1] / "fleet"))
import faults
from field import Field, percentile

CHANGES = 120  # to measure; the p99 is the second slowest
CONNECTIONS = 1000
TRIES = 3


@dataclass
class Score:
    """What the last line tells."""

    tried: int = 0
    survived: int = 0
    requests: int = 0
    failed: int = 0
    early: int = 0
    kernel_ms: list[float] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return (
            self.tried > 0
            and self.survived == self.tried
            and self.requests > 0
            and self.failed == 0
            and self.early == 0
            and len(self.kernel_ms) == CHANGES
        )

    def line(self, passed: bool) -> str:
        """For programs. What was not measured is not a number."""
        measured = self.kernel_ms or [float("nan")]
        return (
            f"check-fleet: {'PASS' if passed else 'FAIL'} faults={self.tried}"
            f" failed_requests={self.failed}"
            f" propagation_p50_ms={percentile(measured, 50):.1f}"
            f" propagation_p99_ms={percentile(measured, 99):.1f}"
        )


def scenes_without_a_node(ground: Field) -> dict[str, Callable[[], str]]:
    """Faults that have clients' packets come by another node, by name. They need `Field.add_still`."""

    def after_a_change() -> str:
        older, younger = faults.node_withdrawn_after_a_change(ground, CONNECTIONS)
        half = CONNECTIONS // 2
        faults.insist(older == half, f"older connections go on: {older} of {half}")
        return f"older connections: {older} of {half} went on; begun since: {younger} of {half}"

    return {
        "node withdrawn from the router": lambda: faults.node_withdrawn(ground, CONNECTIONS),
        "node withdrawn just after a change": after_a_change,
        "node lost with all its links": lambda: faults.node_lost(ground, CONNECTIONS),
    }


def scenes(ground: Field, folder: Path) -> dict[str, Callable[[], str]]:
    """The other faults, by name."""
    return {
        "etcd leader killed": lambda: faults.leader_killed(ground),
        "etcd leader frozen": lambda: faults.member_frozen(ground, 15),
        "quorum lost for 60 s": lambda: faults.quorum_lost(ground, 60),
        "all of etcd frozen for 30 s": lambda: faults.etcd_frozen(ground, 30),
        "lbd killed on one node": lambda: faults.lbd_killed(ground),
        "lbd frozen on one node": lambda: faults.lbd_frozen(ground),
        "node cut off from etcd for 40 s": lambda: faults.partitioned(ground, 40),
        "compaction while a node is cut off": lambda: faults.compacted_while_cut_off(ground),
        "1,000 changes in 10 s from three writers": lambda: at_pace(
            lambda: faults.many_writers(ground, 1000, 10, is_pace_due=True)
        ),
        "rubbish at 100 keys a second": lambda: at_pace(
            lambda: faults.rubbish_written(ground, 20, is_pace_due=True)
        ),
        "etcd restored from a backup": lambda: faults.restored_from_backup(ground, folder),
        "all of etcd lost and restored": lambda: faults.all_lost(ground),
        "clock of a node jumps": lambda: faults.clock_jumped(ground, folder),
    }


def at_pace(does: Callable[[], str]) -> str:
    """A fault that is one only at its pace: tried again while this machine is too busy for it, and
    failed if it never comes to that."""
    for _ in range(TRIES - 1):
        try:
            return does()
        except faults.TooSlow as error:
            print(f"once more: {error.message}", flush=True)
    return does()


def go_through(
    score: Score, ground: Field, name: str, does: Callable[[], str], address: Address = VIP4
) -> None:
    """One fault, with traffic to an address."""
    ground.prepare()
    ground.agree()
    if address == OTHER_VIP4:
        ground.add_still()
    begin = time.monotonic()
    score.tried += 1
    said = "failed"
    with ground.traffic(address) as requests:
        try:
            said = does()
            score.survived += 1
        except LbError as error:
            said = f"NOT as it should be: {error.message}"
    score.requests += requests.total
    score.failed += requests.failed
    kinds = ", ".join(f"{count} {kind}" for kind, count in requests.failures.items())
    print(
        f"{name}: {requests.total:,} requests in {time.monotonic() - begin:.0f} s, {requests.failed}"
        f" failed{kinds and f' ({kinds})'}, the slowest {requests.slowest_ms} ms; {said}",
        flush=True,
    )


def propagation(score: Score, ground: Field) -> None:
    """How long changes take, with traffic, too."""
    ground.prepare()
    ground.agree()
    with ground.traffic() as requests:
        found = ground.propagation(CHANGES)
    score.requests += requests.total
    score.failed += requests.failed
    score.early = found["early"]
    score.kernel_ms = found["kernel"]
    for what in ("commit", "kernel", "wait"):
        values = found[what]
        print(
            f"propagation, {len(values)} changes: to {what} p50 {percentile(values, 50):.1f} ms,"
            f" p99 {percentile(values, 99):.1f} ms, slowest {max(values):.1f} ms",
            flush=True,
        )
    print(f"--wait returned before all kernels had the change: {score.early} times", flush=True)


def main() -> None:
    """Run everything; exit code 0 = PASS."""
    score, passed = Score(), False
    try:
        with tempfile.TemporaryDirectory(prefix="lb-check-") as folder, Fleet(prefix="lbk-") as fleet:
            fleet.start()
            ground = Field(fleet)
            propagation(score, ground)
            for name, does in scenes_without_a_node(ground).items():
                go_through(score, ground, name, does, OTHER_VIP4)
            for name, does in scenes(ground, Path(folder)).items():
                go_through(score, ground, name, does)
        passed = score.passed
    except LbError as error:
        print(f"check-fleet: {error.message}", flush=True)
    except Exception:  # noqa: BLE001 - programs wait for the last line
        traceback.print_exc()
    print(score.line(passed), flush=True)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
