"""The demo, with as few connections as a translated machine has time for; its verdict to $LB_REPORT."""

from __future__ import annotations

import json
import os
import sys
import time
from math import sqrt

from lb.errors import LbError
from lb.lab.demo import Demo

REQUESTS = 2000  # in each of the two measurements
SIGMAS = 5.0


def main() -> None:
    """Exit code 0: no connection failed, and the shares are those of the weights, as far as so few
    connections can tell."""
    play, began = Demo("dsr", "auto", REQUESTS), time.monotonic()
    why = ""
    try:
        play.play()
    except LbError as error:
        why = f"{error.message}\n{error.hint}"
    score = play.score
    allowed = 100 * SIGMAS * sqrt(0.25 / REQUESTS)
    if score.failed or score.measured != 2 or score.error_pp > allowed or score.requests < 2 * REQUESTS:
        why = why or f"not as asked (at most {allowed:.1f} points off): {score}"
    line = {
        "test": "demo",
        "outcome": "failed" if why else "passed",
        "seconds": round(time.monotonic() - began, 1),
        "properties": {"requests": score.requests, "failed": score.failed},
        "why": why,
    }
    with open(os.environ["LB_REPORT"], "a") as file:
        file.write(json.dumps(line) + "\n")
    sys.exit(bool(why))


if __name__ == "__main__":
    main()
