"""`python -m bench [--quick] [SUITE…]`: run the suites, write bench/results/latest.{json,md} and the
tables of docs/performance.md. What isn't a whole run goes to bench/results/partial instead."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

from bench import document, report, rows
from bench.rows import RESULTS, Options, Row, row
from bench.suites import NEED_ROOT, SUITES, measured
from lb.errors import LbError


def main() -> int:
    """Run what was asked for; 0 if all was measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure lb.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="less of everything, in under a minute")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    chosen = parser.parse_args()
    suites = chosen.suites or list(SUITES)
    if unknown := set(suites) - SUITES.keys():
        parser.error(f"no suite is called {', '.join(sorted(unknown))}; there are: {', '.join(SUITES)}")
    if NEED_ROOT.intersection(suites) and os.geteuid():
        parser.error(f"{', '.join(sorted(NEED_ROOT))} load programs into the kernel: run as root")
    options = Options(quick=chosen.quick)
    found: list[Row] = []
    load = [os.getloadavg()[0]]
    try:
        for suite in suites:
            start = time.monotonic()
            print(f"bench: {suite} …", file=sys.stderr, flush=True)
            found += measured(suite, options)
            print(f"bench: {suite}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            load.append(os.getloadavg()[0])
    except LbError as error:
        print(f"error: {error.message}" + f"\nhint: {error.hint}" * bool(error.hint), file=sys.stderr)
        return int(error.exit_code)
    found = [*machine(load), *found]
    is_whole = not chosen.quick and SUITES.keys() <= set(suites)
    folder = chosen.results if is_whole else chosen.results / "partial"
    rows.write(folder / "latest.json", found)
    report.write(folder, found)
    if folder == RESULTS:
        document.write()
    print(folder / "latest.md")
    return 0


def machine(load: list[float]) -> list[Row]:
    """What it ran on, as rows: load average before, between and after the suites."""
    name = f"{_cpu()}, {os.cpu_count()} CPUs, kernel {platform.release()}"
    return [
        row("machine", "load: average over 1 min, before, between and after", name, "processes", load)
    ]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
