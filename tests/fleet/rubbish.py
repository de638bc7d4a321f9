"""A third party that writes nonsense: `python rubbish.py STORE SERVICE BACKEND RATE SECONDS`.

New keys of every kind, and, again and again, the document of one backend that is in force. Prints how
many keys it wrote in which time, as JSON.
"""

from __future__ import annotations

import json
import sys
import time

from lb.model import keys
from lb.store.base import Put
from lb.store.opening import open_store

VALUES = (
    "",
    "not json",
    "{",
    "[]",
    '{"name": "web", "vip": "nowhere"}',
    '{"service": "nobody", "name": "x", "address": "198.51.100.21"}',
    "\x00\x01",
    '"' + "x" * 100_000,
)


def main() -> None:
    url, service, backend, rate, seconds = sys.argv[1:]
    kinds = (
        lambda n: keys.service(f"rubbish-{n}"),
        lambda n: keys.backend(service, f"rubbish-{n}"),
        lambda n: keys.table(f"rubbish-{n}"),
        lambda n: keys.backend("rubbish", f"b{n}"),
        lambda n: f"{keys.ROOT}rubbish/{n}",
        lambda _: keys.backend(service, backend),
    )
    begin, written = time.monotonic(), 0
    with open_store(url) as store:
        while time.monotonic() - begin < float(seconds):
            # 200 places, each again and again: rubbish over rubbish is news, too.
            place = kinds[written % len(kinds)](written % 200)
            store.commit([Put(place, VALUES[written % len(VALUES)])])
            written += 1
            # Its pace, not a wait for anything.
            time.sleep(max(0.0, written / float(rate) - (time.monotonic() - begin)))
    print(json.dumps({"written": written, "seconds": time.monotonic() - begin}))


if __name__ == "__main__":
    main()
