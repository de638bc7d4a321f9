"""What is run under each kernel, and what came of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import machine
from .debian import Kernel

PACKETS = 2000  # under each hook, against the model
# Without KVM everything takes some 10 times longer, and there may be more going on.
PATIENCE = 6
MINUTES = 15  # that a kernel may take

VERIFIER = "tests/datapath/test_hooks.py::test_the_verifier_has_room_left"
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


@dataclass(frozen=True)
class Part:
    """Tests that are run together; or a script of Python."""

    name: str
    tests: tuple[str, ...]
    script: str = ""


# Under every kernel. What is rare, and what takes long, is left to the tests under the running kernel.
MATRIX = (
    Part("programs and packets", (VERIFIER, ENDS, MODEL)),
    Part("hooks, modes, adoption", (DOCTOR, MODES, f"{RESTART}[tc]", f"{UPGRADE}[xdp-nat]")),
    Part("demo", (), "-m tests.kernels.short_demo"),
)
# Under Debian 12's own: somebody else at the other end, and links as they are.
OTHERS = (
    Part("tunnel devices", (TUNNELS,)),
    Part("IPVS", (IPVS,)),
    Part("bad links", (LINKS,)),
    Part("interfaces", (INTERFACES,)),
)
OTHERS_ON = "6.1"


@dataclass(frozen=True)
class Line:
    """How one test ended: passed, failed or skipped."""

    test: str
    outcome: str
    seconds: float
    properties: dict[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Result:
    """What one kernel said. `status` None: it came to no end."""

    series: str
    release: str
    status: int | None
    seconds: float
    lines: tuple[Line, ...]

    def of(self, beginning: str) -> list[Line]:
        """The tests of a file, or one test in all its forms."""
        return [line for line in self.lines if line.test.startswith(beginning)]

    def outcome(self, beginning: str) -> str:
        """ "passed" if all of these did, "failed" if one did or none was run, else "skipped"."""
        outcomes = {line.outcome for line in self.of(beginning)}
        if not outcomes or "failed" in outcomes:
            return "failed"
        return "skipped" if "skipped" in outcomes else "passed"

    def recorded(self, beginning: str, name: str) -> Any:
        """What these tests recorded by this name, or None."""
        return next(
            (line.properties[name] for line in self.of(beginning) if name in line.properties), None
        )

    def mode_works(self, hook: str, mode: str) -> bool | None:
        """Did this mode work on this hook? None: it was not tried."""
        said = self.recorded(f"{MODES}::test_all_modes_at_once[{hook}]", "modes")
        return None if said is None else said[mode] == "works"

    @property
    def failures(self) -> list[Line]:
        """The tests that failed."""
        return [line for line in self.lines if line.outcome == "failed"]

    @property
    def whole(self) -> bool:
        """Did everything run, and nothing fail?"""
        return self.status == 0 and bool(self.lines) and not self.failures

    def dump(self) -> str:
        """As JSON, for `load`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def load(cls, text: str) -> Result:
        """What `dump` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, "lines": tuple(Line(**line) for line in raw["lines"])})


def run(kernel: Kernel, tree: Path, log: Path, parts: Sequence[Part]) -> Result:
    """Boot the kernel, and run these parts in it."""
    ended = machine.run(kernel, script(tree, parts), timeout=MINUTES * 60, log=log)
    lines = tuple(Line(**json.loads(line)) for line in ended.lines if line.startswith("{"))
    return Result(kernel.series, kernel.release, ended.status, ended.seconds, lines)


def script(tree: Path, parts: Sequence[Part]) -> str:
    """Of sh, for the guest. Its status is not 0 if any part's isn't."""
    python = shlex.quote(sys.executable)
    patience = 1 if machine.has_kvm() else PATIENCE
    lines = [
        f"cd {shlex.quote(str(tree))} || exit 1",
        f"export PYTHONPATH={shlex.quote(str(tree))} LB_REPORT=/dev/ttyS1 LB_PATIENCE={patience}",
        f"export LB_FIXED_PACKETS={PACKETS}",
        "status=0",
    ]
    for part in parts:
        tests = shlex.join([f"--timeout={300 * patience}", "-p", "tests.kernels.report", *part.tests])
        what = part.script or f"-m pytest -q {tests}"
        lines += [
            f"echo {shlex.quote(f'part: {part.name}')} after $(cut -d. -f1 /proc/uptime) s",
            f"{python} {what} || status=1",
            # The host holds a descriptor for each file that is remembered here.
            "echo 2 >/proc/sys/vm/drop_caches",
        ]
    return "\n".join([*lines, "exit $status", ""])
