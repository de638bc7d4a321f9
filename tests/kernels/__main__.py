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


def measure(kernel: Kernel, tree: Path, part: Part, minutes: float) -> Result:
    """Run a part under a kernel; says how it goes."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{kernel.series}-{part.name}.log"
    how = "KVM" if machine.has_kvm() else "without KVM: minutes"
    print(f"kernels: {kernel.release}: {part.name} ({how})", flush=True)
    try:
        result = plan.run(kernel, tree, log, part, minutes)
    except LbError as error:
        print(f"kernels: {kernel.release}: {part.name}: FAILED: {error.message}", flush=True)
        return Result(kernel.series, kernel.release)
    # At once: what was said isn't lost if another machine is what goes wrong.
    results.keep([result])
    for line in result.failures:
        print(f"failed: {kernel.release}: {line.test}")
        print("\n".join(line.why.splitlines()[-SHOWN:]))
    for ran in result.parts:
        end = "ok" if ran.whole else "no end" if ran.status is None else "FAILED"
        said = ", ".join(f"{number} {word}" for word, number in ran.counts().items())
        print(f"kernels: {kernel.release}: {ran.part}: {end}, {said}, {ran.seconds:.0f} s", flush=True)
    return result


def jobs(series: Iterable[str], names: Sequence[str]) -> list[tuple[str, Part]]:
    """Which machines, those first that matter most: the named parts, or all that there are."""
    if unknown := {*names} - plan.PARTS.keys():
        raise UserError(f"no part {min(unknown)!r}", hint=f"there are: {', '.join(plan.PARTS)}")
    return [
        (each, part)
        for part in plan.PARTS.values()
        for each in series
        if part.name in (names or plan.wanted(each))
    ]


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
            pool.submit(measure, kernels[each], tree, part, minutes)
            for each, part in jobs(series, parts)
        ]
        try:
            found = [run.result() for run in runs]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            machine.end_all()
            raise
        finally:
            pool.shutdown()
            table.write()
    merged: dict[str, Result] = {}
    for result in found:
        merged[result.series] = merged.get(result.series, result).with_newer(result)
    return list(merged.values())


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
    good = [result.whole(part or plan.wanted(result.series)) for result in found]
    sys.exit(not all(good))


if __name__ == "__main__":
    try:
        typer.run(main)
    except LbError as error:
        sys.exit(f"kernels: error: {error.message}\nkernels: {error.hint}")
