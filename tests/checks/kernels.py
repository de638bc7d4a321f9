"""`make check-kernels`: the kernels that people have, other implementations at the other end, links as
they are, and a fresh machine.

The last line has the figures of this run; PASS if all of it is as it should be.
"""

from __future__ import annotations

import sys

from lb.errors import LbError
from tests.kernels import debian, fresh, plan
from tests.kernels.__main__ import everything
from tests.kernels.results import Result

INTEROP = (plan.TUNNELS, plan.IPVS, plan.LINKS, plan.INTERFACES)


def programs_loaded(result: Result) -> int:
    """How many of our programs this kernel took."""
    return sum(result.outcome(test) == "passed" for test in plan.PROGRAMS.values())


def main() -> None:
    """Run everything; exit code 0 = PASS."""
    results: list[Result] = []
    good = False
    try:
        results = everything(debian.SERIES)
        good = fresh.works()
    except LbError as error:
        print(f"check-kernels: error: {error.message}\ncheck-kernels: {error.hint}", file=sys.stderr)
    ends = [line for result in results for test in INTEROP for line in result.of(test)]
    kernels = sum(result.whole(plan.MATRIX) for result in results)
    loaded = sum(map(programs_loaded, results))
    programs = len(plan.PROGRAMS) * len(debian.SERIES)
    mismatches = sum(result.outcome(plan.MODEL) != "passed" for result in results)
    working = sum(line.outcome == "passed" for line in ends)
    passed = (
        kernels == len(debian.SERIES)
        and loaded == programs
        and not mismatches
        and 0 < working == len(ends)
        and all(result.whole(plan.wanted(result.series)) for result in results)
        and good
    )
    print(
        f"check-kernels: {'PASS' if passed else 'FAIL'} kernels={kernels}/{len(debian.SERIES)}"
        f" programs_loaded={loaded}/{programs} mismatches={mismatches} interop={working}/{len(ends)}"
        f" fresh={'ok' if good else 'failed'}"
    )
    sys.exit(not passed)


if __name__ == "__main__":
    main()
