"""What is run under each kernel."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lb.lab.shell import LabError

from . import machine
from .debian import Kernel
from .results import Line, Ran, Result

PACKETS = 500  # under each hook, against the model
# Without KVM everything takes some 10 times longer, and there may be more going on.
PATIENCE = 10
MINUTES = 15  # that a part may take: without KVM, and beside another one

BALANCERS = "tests/datapath/test_hooks.py::test_the_verifier_has_room_left"
BESIDE = "tests/datapath/test_beside.py::test_the_kernel_takes_it"
MODEL = "tests/datapath/test_against_model.py"
ENDS = "tests/datapath/test_hooks.py::test_every_end_of_a_packet"
MODES = "tests/lab/test_all_modes_at_once.py"
DOCTOR = "tests/lab/test_lbd.py::test_doctor_names_what_is_wrong"
RESTART = "tests/lab/test_traffic.py::test_killed_and_started_again_breaks_nothing_and_forgets_nothing"
UPGRADE = "tests/lab/test_upgrade.py::test_no_packet_is_lost"
DEMO = "demo"
TUNNELS = "tests/lab/test_tunnel_devices.py"
IPVS = "tests/lab/test_ipvs_beside.py"
LINKS = "tests/lab/test_bad_links.py"
INTERFACES = "tests/lab/test_interfaces.py"
# What the kernel has to take: name of a program, and the test that loads it.
PROGRAMS = {
    "XDP": f"{BALANCERS}[xdp]",
    "tc": f"{BALANCERS}[tc]",
    **{
        name: f"{BESIDE}[{name}]"
        for name in ("decap", "watch", "probe_out", "probe_back", "mirror_out", "mirror_in")
    },
}


@dataclass(frozen=True)
class Part:
    """Tests that are run together; or a script of Python. `only`: under this kernel and no other."""

    name: str
    tests: tuple[str, ...]
    script: str = ""
    only: str = ""


OWN = "6.1"  # Debian 12's: there somebody else is at the other end, and links are as they are
# What matters most is first. What is rare, and what takes long, is left to the tests under the running
# kernel.
PARTS = {
    part.name: part
    for part in (
        Part("programs", (BALANCERS, ENDS, MODEL)),
        Part("beside", (BESIDE,)),
        Part("modes", (DOCTOR, MODES)),
        Part("tunnels", (TUNNELS,), only=OWN),
        Part("ipvs", (IPVS,), only=OWN),
        Part("adoption", (f"{RESTART}[tc]", f"{UPGRADE}[xdp-nat]")),
        Part("interfaces", (INTERFACES,), only=OWN),
        Part("links", (LINKS,), only=OWN),
        Part("demo", (), "-m tests.kernels.short_demo"),
    )
}
# In the suite, on every change: is what the kernel has to take, taken, and does each way that a packet
# can go end at both hooks as it should?
SHORT = Part("short", (BALANCERS, ENDS, BESIDE))


def wanted(series: str) -> list[str]:
    """The parts that are run under a kernel if none is left out."""
    return [part.name for part in PARTS.values() if part.only in ("", series)]


MATRIX = wanted("")  # under every kernel


def run(kernel: Kernel, tree: Path, log: Path, part: Part, minutes: float = MINUTES) -> Result:
    """Boot the kernel, and run this part in it. Raises LabError if the machine doesn't come up."""
    when = datetime.now(UTC).date().isoformat()
    ended = machine.run(kernel, script(tree, part), timeout=minutes * 60, log=log)
    if not ended.up:
        raise LabError(f"the machine with {kernel.release} did not come up; its console: {log}")
    return Result(kernel.series, kernel.release, heard(ended.lines, when))


def heard(said: Iterable[str], when: str) -> tuple[Ran, ...]:
    """The parts, out of the lines that a guest wrote."""
    ran: list[Ran] = []
    for line in said:
        if not line.startswith("{"):
            continue
        raw = json.loads(line)
        if "begun" in raw:
            ran.append(Ran(raw["begun"], when))
        elif "ended" in raw:
            ran[-1] = replace(ran[-1], status=raw["status"], seconds=raw["seconds"])
        else:
            ran[-1] = replace(ran[-1], lines=(*ran[-1].lines, Line(**raw)))
    return tuple(ran)


def script(tree: Path, part: Part) -> str:
    """Of sh, for the guest."""
    python = shlex.quote(sys.executable)
    patience = 1 if machine.has_kvm() else PATIENCE
    tests = shlex.join([f"--timeout={300 * patience}", "-p", "tests.kernels.report", *part.tests])
    lines = [
        f"cd {shlex.quote(str(tree))} || exit 1",
        f"export PYTHONPATH={shlex.quote(str(tree))} LB_REPORT=/dev/ttyS1 LB_PATIENCE={patience}",
        f"export LB_FIXED_PACKETS={PACKETS} LB_ONE_LAB=1",
        "seconds() { cut -d. -f1 /proc/uptime; }",
        """report() { printf '{"%s": "%s", "status": %s, "seconds": %s}\\n' "$@" >$LB_REPORT; }""",
        f"report begun {part.name} 0 0",
        f"{python} {part.script or f'-m pytest -q {tests}'}",
        "status=$?",
        f"report ended {part.name} $status $(seconds)",
        "exit $status",
        "",
    ]
    return "\n".join(lines)
