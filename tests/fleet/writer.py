"""One of several writers of one weight: `python writer.py STORE SERVICE BACKEND COUNT SECONDS`.

Adds 1 to the weight COUNT times, spread over so many seconds, as any service with an etcd client would:
it compares, and begins anew when another was faster. Prints how many times that was, as JSON.
"""

from __future__ import annotations

import json
import sys
import time

from lb.errors import ConflictError
from lb.model import keys
from lb.model.objects import Backend
from lb.store.base import Compare, Put, Store
from lb.store.opening import open_store


def add_one(store: Store, key: str) -> int:
    """Returns how often another was faster."""
    conflicts = 0
    while True:
        item = store.get(key)
        assert item is not None
        before = Backend.model_validate_json(item.value)
        after = before.model_copy(update={"weight": before.weight + 1})
        try:
            store.commit([Put(key, after.model_dump_json())], [Compare(key, item.mod_revision)])
        except ConflictError:
            conflicts += 1
        else:
            return conflicts


def main() -> None:
    url, service, backend, count, seconds = sys.argv[1:]
    conflicts = 0
    with open_store(url) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        begin = time.monotonic()
        for number in range(int(count)):
            # Its pace, not a wait for anything.
            time.sleep(max(0.0, number * float(seconds) / int(count) - (time.monotonic() - begin)))
            conflicts += add_one(store, keys.backend(service, backend))
        print(json.dumps({"conflicts": conflicts, "seconds": time.monotonic() - begin}))


if __name__ == "__main__":
    main()
