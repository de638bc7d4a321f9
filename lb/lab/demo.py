"""`make demo`: real connections, steered by weight, and a weight that changes while they flow."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from lb.errors import LbError
from lb.lab.example import SERVICE, create_web, lbctl
from lb.lab.lab import Lab
from lb.lab.load import Client, Tally, finish
from lb.lab.shell import LabError

MAX_ERROR_PP = 1.0
MIN_REQUESTS = 20_000

# With 50,000 draws the share of a backend that should have 50 % has a standard deviation of
# sqrt(0.5 * 0.5 / 50,000) = 0.22 percentage points: a whole one is 4.5 of them.
REQUESTS = 50_000

NEW_WEIGHT = 100
LIVE_SECONDS = 6
LIVE_REQUESTS = 1_000_000  # more than there is time for
CHANGE_AFTER_SECONDS = 2


@dataclass
class Score:
    """What the last line tells."""

    requests: int = 0
    failed: int = 0
    error_pp: float = 0.0
    measured: int = 0

    def count(self, tally: Tally) -> None:
        """Add a run's connections."""
        self.requests += tally.requests
        self.failed += tally.failed

    @property
    def passed(self) -> bool:
        """Both measurements made, enough connections, none failed, and the shares as asked."""
        return (
            self.measured == 2
            and self.requests >= MIN_REQUESTS
            and self.failed == 0
            and self.error_pp <= MAX_ERROR_PP
        )

    def line(self, passed: bool) -> str:
        """The last line, for programs."""
        # Where nothing was measured, no share is known: as wrong as it can be.
        error = self.error_pp if self.measured else 100.0
        return (
            f"demo: {'PASS' if passed else 'FAIL'} requests={self.requests} failed={self.failed}"
            f" max_share_error_pp={error:.2f}"
        )


class Demo:
    """The play, scene by scene."""

    def __init__(self, mode: str, hook: str, requests: int) -> None:
        self.score = Score()
        self._mode = mode
        self._hook = hook
        self._requests = requests
        self._begin = time.monotonic()

    def play(self) -> None:
        """All of it. Raises LbError where something breaks."""
        self._scene("building the lab: 1 client, 1 node, 4 backends with nginx")
        with Lab() as lab:
            self._scene(f"starting lbd on {lab.topology.node}: compile, load, attach")
            lab.start_lbd(self._hook)
            self._say(lab.lbd_ready_line)
            self._scene(f"creating the service {SERVICE!r}, mode {self._mode}")
            asked = create_web(lab, self._mode, self._say)
            client = Client(lab)
            self._scene(f"phase 1: {self._requests:,} connections from {lab.topology.client}")
            self._measure(client, asked)
            changed = lab.topology.backends[-1]
            self._scene(f"phase 2: the weight of {changed} changes while connections flow")
            self._change_live(lab, client, changed)
            self._scene(f"phase 2: {self._requests:,} connections with the new weight")
            self._measure(client, {**asked, changed: NEW_WEIGHT})
            self._scene("cleaning up")
        self._scene("done")

    def _scene(self, title: str) -> None:
        print(f"[{time.monotonic() - self._begin:5.1f} s] {title}", flush=True)

    def _say(self, text: str) -> None:
        print(f"          {text}", flush=True)

    def _measure(self, client: Client, asked: Mapping[str, int]) -> None:
        tally = client.measure(self._requests, self._say_failures)
        self.score.count(tally)
        self._say(f"{'backend':<14}{'weight':>7}{'asked %':>10}{'got %':>10}{'diff':>8}{'answers':>10}")
        for name, weight in asked.items():
            want = 100 * weight / sum(asked.values())
            got = tally.share(name)
            self._say(
                f"{name:<14}{weight:>7}{want:>10.2f}{got:>10.2f}{got - want:>+8.2f}"
                f"{tally.names[name]:>10,}"
            )
            self.score.error_pp = max(self.score.error_pp, abs(got - want))
        if strangers := set(tally.names) - set(asked):
            raise LabError(f"answers from {', '.join(sorted(strangers))}, which nobody asked")
        self.score.measured += 1

    def _change_live(self, lab: Lab, client: Client, name: str) -> None:
        run = client.start(LIVE_REQUESTS, LIVE_SECONDS)
        # Not a wait for a condition: the moment of the change, some way into the run.
        time.sleep(CHANGE_AFTER_SECONDS)
        typed = time.time()
        lbctl(lab, self._say, "backend", "weight", SERVICE, name, str(NEW_WEIGHT), "--wait")
        applied = time.time()
        self._say(f"in force on every node after {applied - typed:.2f} s")
        tally = finish(run)
        self.score.count(tally)
        self._say(f"{'second':>6}{'connections':>13}   share of {name}")
        first = min(tally.seconds, default=0)
        for second, names in tally.seconds.items():
            share = 100 * names[name] / names.total()
            note = "   <- the change" if int(typed) <= second <= int(applied) else ""
            self._say(f"{second - first:>6}{names.total():>13,}{share:>10.1f} %{note}")
        self._say_failures(tally)

    def _say_failures(self, tally: Tally) -> None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in tally.failures.items() if count)
        self._say(f"{tally.requests:>7,} connections, {tally.failed} failed{kinds and f': {kinds}'}")


def demo(mode: str, hook: str, requests: int) -> bool:
    """Run the demo; prints the verdict as its last line, whatever happens before."""
    play = Demo(mode, hook, requests)
    passed = False
    try:
        play.play()
        passed = play.score.passed
        if not passed:
            _explain(f"not as asked: at least {MIN_REQUESTS:,} connections, none of them failed, "
                     f"every share within {MAX_ERROR_PP:g} percentage point")  # fmt: skip
    except LbError as error:
        _explain(f"{error.message}\n{error.hint}".rstrip())
    except KeyboardInterrupt:
        _explain("interrupted")
    except Exception:  # noqa: BLE001 - programs wait for the last line
        traceback.print_exc()
    print(play.score.line(passed), flush=True)
    return passed


def _explain(reason: str) -> None:
    sys.stdout.flush()
    print(f"demo: {reason}", file=sys.stderr, flush=True)
