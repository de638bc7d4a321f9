"""A third party that writes nonsense: `python rubbish.py STORE SERVICE BACKEND RATE SECONDS`.

New keys of every kind, and, again and again, the document of one backend that is in force. Prints how
many keys it wrote in which time, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from lb.model import keys
from lb.store.base import Put
from lb.store.opening import open_store

HANDS = 4
VALUES = (
    "",
    "not json",
    "{",
    "[]",
    '{"name": "web", "vip": "nowhere"}',
    '{"service": "nobody", "name": "x", "address": "198.51.100.21"}',
    "\x00\x01",
    '"' + "x" * 20_000,
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
    begin = time.monotonic()

    def write(hand: int) -> int:
        """Every fourth of all keys, so that the pace can be kept while nodes and etcd are busy."""
        written = 0
        with open_store(url) as store:
            for number in range(hand, round(float(rate) * float(seconds)), HANDS):
                # Its pace, not a wait for anything.
                time.sleep(max(0.0, number / float(rate) - (time.monotonic() - begin)))
                # 200 places, each again and again: rubbish over rubbish is news, too.
                place = kinds[number % len(kinds)](number % 200)
                store.commit([Put(place, VALUES[number % len(VALUES)])])
                written += 1
        return written

    with ThreadPoolExecutor(HANDS) as pool:
        total = sum(pool.map(write, range(HANDS)))
    print(json.dumps({"written": total, "seconds": time.monotonic() - begin}))


if __name__ == "__main__":
    main()
