"""Real connections from the client, made by wrk, and who answered them."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from math import ceil
from pathlib import Path

from lb.lab.base import Namespaces
from lb.lab.shell import PATIENCE, LabError
from lb.lab.topology import VIP4

SCRIPT = Path(__file__).with_name("count_names.lua")

# One run gives up after this, so that a slow machine gets an answer, if a coarser one.
RUN_SECONDS = 6

# How long the last connections of a run may take: a second for a lost SYN to be sent again.
GRACE_SECONDS = 3

# The kernel gives a client's ports out in turn, every second one of 64,512 first
# (__inet_hash_connect), before they come again. A run stays well below.
RUN_REQUESTS = 12_500


@dataclass(frozen=True)
class Tally:
    """Who answered how many connections in which second of the clock, and what failed."""

    seconds: dict[int, Counter[str]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def names(self) -> Counter[str]:
        """Answers per backend."""
        return sum(self.seconds.values(), Counter())

    @property
    def failed(self) -> int:
        """All that went wrong: no connection, no answer, another answer than 200 and a name."""
        return self.failures.total()

    @property
    def requests(self) -> int:
        """Everything that was tried and came to an end."""
        return self.names.total() + self.failed

    def __add__(self, other: Tally) -> Tally:
        seconds = {
            second: self.seconds.get(second, Counter()) + other.seconds.get(second, Counter())
            for second in sorted({*self.seconds, *other.seconds})
        }
        return Tally(seconds, self.failures + other.failures)

    def share(self, name: str) -> float:
        """Per cent of the answers that a backend gave."""
        return 100 * self.names[name] / max(self.names.total(), 1)


def parse(output: str) -> Tally:
    """The tally in the last line of wrk's output."""
    try:
        result = json.loads(output.strip().rpartition("\n")[2])
    except json.JSONDecodeError:
        raise LabError(f"wrk gave no result:\n{output}") from None
    seconds: dict[int, Counter[str]] = {}
    for second, name, count in sorted(result["counts"]):
        seconds.setdefault(second, Counter())[name] += count
    return Tally(seconds, Counter(result["failures"]))


class Client:
    """wrk in the client's namespace, against one URL."""

    def __init__(self, lab: Namespaces, url: str = f"http://{VIP4}/", *, connections: int = 32) -> None:
        self._lab = lab
        self._url = url
        self._connections = connections
        # With another address for each run hardly a port pair comes twice in a measurement, so
        # that each connection is a draw of its own.
        self._sources = cycle(lab.plan.client_addresses)

    def start(self, requests: int, seconds: int = RUN_SECONDS) -> subprocess.Popen[str]:
        """Begin a run of so many connections in so many seconds; `finish` ends it."""
        for route in self._lab.plan.client_routes(next(self._sources)):
            self._lab.run("client", ["ip", "route", "replace", *route.split()])
        options = ["--threads", "1", "--connections", str(self._connections)]
        options += ["--duration", f"{seconds + GRACE_SECONDS}s", "--script", str(SCRIPT)]
        arguments = [str(requests), str(seconds), str(self._connections)]
        command = ["wrk", *options, self._url, "--", *arguments]
        return self._lab.popen("client", command, output=subprocess.PIPE)

    def run(self, requests: int, seconds: int = RUN_SECONDS) -> Tally:
        """One run, to its end."""
        return finish(self.start(requests, seconds))

    def measure(self, requests: int, progress: Callable[[Tally], None] | None = None) -> Tally:
        """So many connections, in as many runs as it takes; `progress` hears of each."""
        runs = ceil(requests / RUN_REQUESTS)
        tally = Tally()
        for _ in range(runs):
            tally += self.run(ceil(requests / runs))
            if progress:
                progress(tally)
        return tally


def finish(run: subprocess.Popen[str]) -> Tally:
    """Wait for the end of a run and read its result."""
    # Before it counts, wrk makes a connection to try the address, and waits for it as long as the
    # kernel tries, which is minutes.
    try:
        output, _ = run.communicate(timeout=30 * PATIENCE)
    except subprocess.TimeoutExpired:
        raise LabError("wrk did not end: nobody answers the client's first SYN") from None
    if run.returncode:
        raise LabError(f"wrk: exit status {run.returncode}\n{output}")
    return parse(output)
