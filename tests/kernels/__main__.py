"""`python -m tests.kernels SERIES… | all`: what `make test-kernel` and `make test-kernels` run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from lb.errors import LbError

from . import debian, machine, plan, table
from .debian import Kernel
from .plan import Part, Result

# What each kernel said last; the page is made of all of them.
RESULTS = Path(__file__).parents[2] / ".make/kernels"
SHOWN = 20  # lines of a test that failed
# Tests wait for one another more than they use two processors; each machine takes 3 GB of memory.
AT_ONCE = 2


def measure(kernel: Kernel, tree: Path, name: str, parts: Sequence[Part]) -> Result:
    """Run these parts under a kernel; says how it goes, and keeps the result."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    log = RESULTS / f"{name}.log"
    how = "KVM" if machine.has_kvm() else "without KVM: minutes"
    print(f"kernels: {kernel.release}: {', '.join(part.name for part in parts)} ({how})", flush=True)
    result = plan.run(kernel, tree, log, parts)
    (RESULTS / f"{name}.json").write_text(result.dump())
    for line in result.failures:
        print(f"failed: {kernel.release}: {line.test}")
        print("\n".join(line.why.splitlines()[-SHOWN:]))
    passed = sum(line.outcome == "passed" for line in result.lines)
    skipped = sum(line.outcome == "skipped" for line in result.lines)
    print(
        f"kernels: {kernel.release}: {'ok' if result.whole else 'FAILED'}, {passed} passed,"
        f" {skipped} skipped,"
        f" {len(result.failures)} failed, {result.seconds:.0f} s; console: {log}",
        flush=True,
    )
    return result


def everything(series: Iterable[str], others: bool = True, at_once: int = AT_ONCE) -> list[Result]:
    """The matrix under these kernels, and the other ends under the one that they are for; so many
    machines at once."""
    with machine.snapshot() as tree, ThreadPoolExecutor(at_once) as pool:
        runs = []
        for kernel in [debian.fetch(each) for each in series]:
            if others and kernel.series == plan.OTHERS_ON:
                name = f"{kernel.series}-others"
                runs.append(pool.submit(measure, kernel, tree, name, plan.OTHERS))
            runs.append(pool.submit(measure, kernel, tree, kernel.series, plan.MATRIX))
        return [run.result() for run in runs]


def write_page() -> None:
    """Write what is known of all kernels."""
    names = [name for each in debian.SERIES for name in (each, f"{each}-others")]
    files = [RESULTS / f"{name}.json" for name in names]
    results = [Result.load(file.read_text()) for file in files if file.exists()]
    table.PAGE.write_text(table.page(results))


def main(
    series: Annotated[list[str], typer.Argument(help="6.1, 5.10, …, newest; all.")],
    others: Annotated[bool, typer.Option(help="Also tunnels, IPVS, links: with 6.1.")] = True,
    at_once: Annotated[int, typer.Option(min=1, help="Machines at a time.")] = AT_ONCE,
) -> None:
    """Run the tests under these kernels, each in a virtual machine."""
    results = everything(debian.SERIES if series == ["all"] else series, others, at_once)
    if series == ["all"]:
        write_page()
    sys.exit(not all(result.whole for result in results))


if __name__ == "__main__":
    try:
        typer.run(main)
    except LbError as error:
        sys.exit(f"kernels: error: {error.message}\nkernels: {error.hint}")
