"""Debian 12's own kernel takes all of our programs, and packets end in it as they should: in a virtual
machine, in the middle of the suite. `make test-kernels` runs much more, under other kernels, too.

A machine that doesn't come up, or is too slow, says nothing about our programs: then this is skipped,
and says so.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from lb.errors import LbError
from lb.lab.shell import tail

from . import debian, machine, plan
from .debian import Kernel
from .plan import Part
from .results import Line

MINUTES = 6.0
CACHED_SECONDS = 30.0  # to look into the cache: `make test` has filled it


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    if os.geteuid():
        pytest.skip("needs root: it shares this machine's files with a virtual machine")
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("qemu is not installed: run make deps-kernels")
    try:
        return debian.fetch(plan.OWN, seconds=CACHED_SECONDS)
    except LbError as error:
        pytest.skip(f"no kernel {plan.OWN} to be had: {error.message.splitlines()[0]}")


class NoVerdict(Exception):
    """The machine has said nothing about our programs."""


def failures(kernel: Kernel, part: Part, log: Path) -> list[Line]:
    """The tests that failed. Raises NoVerdict."""
    with machine.snapshot() as tree:
        try:
            ended = machine.run(kernel, plan.script(tree, part), timeout=MINUTES * 60, log=log)
        except LbError as error:
            raise NoVerdict(f"no virtual machine: {error.message}") from None
    if not ended.up:
        raise NoVerdict(f"{kernel.release} did not come up in {ended.seconds:.0f} s: {tail(log)}")
    lines = [line for ran in plan.heard(ended.lines, "") for line in ran.lines]
    bad = [line for line in lines if line.outcome == "failed"]
    if ended.status is None and not bad:
        if ended.seconds < MINUTES * 60:
            bad.append(Line("the kernel itself", "failed", ended.seconds, why=tail(log)))
        else:
            raise NoVerdict(f"too slow: {len(lines)} tests passed, none failed, in {MINUTES:g} minutes")
    passed = sum(line.outcome == "passed" for line in lines)
    assert bad or passed == len(lines) > len(plan.PROGRAMS)
    return bad


@pytest.mark.timeout(0)  # it ends itself
def test_debians_kernel_takes_our_programs(kernel: Kernel, tmp_path: Path) -> None:
    try:
        bad = failures(kernel, plan.SHORT, tmp_path / "console")
    except NoVerdict as words:
        pytest.skip(str(words))
    if bad:
        # What is the kernel's verdict fails again; a machine that now says nothing takes nothing back.
        with suppress(NoVerdict):
            again = {line.test for line in failures(kernel, plan.SHORT, tmp_path / "console-again")}
            bad = [line for line in bad if line.test in again]
    assert not bad, "\n\n".join(f"{kernel.release}: {line.test}\n{line.why}" for line in bad)
