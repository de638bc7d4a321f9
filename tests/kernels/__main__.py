"""`python -m tests.kernels SERIES… | all`: what `make test-kernel` and `make test-kernels` run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from lb.errors import LbError, UserError

from . import debian, machine, plan, results, table
from .debian import Kernel
from .plan import Part
from .results import Result

LOGS = Path(__file__).parents[2] / ".make/kernels"
SHOWN = 20  # lines of a test that failed
# Tests wait for one another more than they use two processors; each machine takes 3 GB of memory.
AT_ONCE = 2


def measure(kernel: Kernel, tree: Path, parts: Sequence[Part], minutes: float) -> Result:
    """Run these parts under a kernel; says how it goes."""
    LOGS.mkdir(parents=True, exist_ok=True)
    names = [part.name for part in parts]
    log = LOGS / f"{kernel.series}-{names[0]}.log"
    how = "KVM" if machine.has_kvm() else "without KVM: minutes"
    print(f"kernels: {kernel.release}: {', '.join(names)} ({how})", flush=True)
    try:
        result = plan.run(kernel, tree, log, parts, minutes)
    except LbError as error:
        print(f"kernels: {kernel.release}: FAILED: {error.message}", flush=True)
        return Result(kernel.series, kernel.release)
    for line in result.failures:
        print(f"failed: {kernel.release}: {line.test}")
        print("\n".join(line.why.splitlines()[-SHOWN:]))
    for part in result.parts:
        end = "ok" if part.whole else "no end" if part.status is None else "FAILED"
        said = ", ".join(f"{number} {word}" for word, number in part.counts().items())
        print(f"kernels: {kernel.release}: {part.part}: {end}, {said}, {part.seconds:.0f} s")
    print(f"kernels: {kernel.release}: console: {log}", flush=True)
    return result


def jobs(series: Iterable[str], parts: Sequence[str]) -> list[tuple[str, tuple[Part, ...]]]:
    """Which machines: the matrix with each kernel, the other ends with the one that they are for; or,
    if parts are named, those."""
    if unknown := {*parts} - plan.PARTS.keys():
        raise UserError(f"no part {min(unknown)!r}", hint=f"there are: {', '.join(plan.PARTS)}")
    if parts:
        return [(each, tuple(plan.PARTS[name] for name in parts)) for each in series]
    found = [(each, plan.MATRIX) for each in series]
    return found + [(each, (part,)) for each in series if each == plan.OTHERS_ON for part in plan.OTHERS]


def everything(
    series: Sequence[str],
    parts: Sequence[str] = (),
    at_once: int = AT_ONCE,
    minutes: float = plan.MINUTES,
) -> list[Result]:
    """Run them, so many machines at once; keep what they said, and write the page anew."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kernels = {each: debian.fetch(each) for each in series}
    with machine.snapshot() as tree, ThreadPoolExecutor(at_once) as pool:
        runs = [
            pool.submit(measure, kernels[each], tree, chosen, minutes)
            for each, chosen in jobs(series, parts)
        ]
        try:
            found = []
            for run in runs:
                found.append(run.result())
                results.keep(found[-1:])
                table.write()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            machine.end_all()
            raise
    merged: dict[str, Result] = {}
    for result in found:
        merged[result.series] = merged.get(result.series, result).with_newer(result)
    return list(merged.values())


def wanted(series: str) -> tuple[Part, ...]:
    """What is run with this kernel if nothing is left out."""
    return plan.MATRIX + (plan.OTHERS if series == plan.OTHERS_ON else ())


def main(
    series: Annotated[list[str], typer.Argument(help="6.1, 5.10, …, newest; all.")],
    part: Annotated[
        list[str] | None, typer.Option(help="Only this part (may be repeated): programs, modes, ….")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Machines at a time.")] = AT_ONCE,
    minutes: Annotated[float, typer.Option(help="After which a machine is ended.")] = plan.MINUTES,
) -> None:
    """Run the tests under these kernels, each in a virtual machine, and write the table of kernels."""
    chosen = debian.SERIES if series == ["all"] else tuple(series)
    found = everything(chosen, part or (), at_once, minutes)
    good = [result.whole(part or [each.name for each in wanted(result.series)]) for result in found]
    sys.exit(not all(good))


if __name__ == "__main__":
    try:
        typer.run(main)
    except LbError as error:
        sys.exit(f"kernels: error: {error.message}\nkernels: {error.hint}")
