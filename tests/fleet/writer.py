"""A writer of weights, as fast as it can: `python writer.py SERVICE BACKEND COUNT SECONDS`.

Each change is `lbctl backend weight`, in this process. Prints, as JSON, how many were made in the time,
how many were refused, and the last weight that was stored for sure.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections import Counter

from lb.cli.main import app
from lb.errors import LbError


def main() -> None:
    service, backend, count, seconds = sys.argv[1:]
    refused: Counter[str] = Counter()
    made, last = 0, 0
    # Times are compared with those of other writers, so that all begin together.
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.monotonic()
    for number in range(int(count)):
        if time.monotonic() - begin > float(seconds):
            break
        weight = 50 + number % 100
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                app(["backend", "weight", service, backend, str(weight)], standalone_mode=False)
        except LbError as error:
            refused[type(error).__name__] += 1
        else:
            made, last = made + 1, weight
    seconds_taken = time.monotonic() - begin
    print(json.dumps({"made": made, "refused": refused, "last": last, "seconds": seconds_taken}))


if __name__ == "__main__":
    main()
