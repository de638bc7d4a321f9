"""Wait until each live node has applied a change."""

import json
import os
import time

import etcd3

host, _, port = os.environ.get("ETCD", "127.0.0.1:2379").rpartition(":")
etcd = etcd3.client(host=host.removeprefix("http://"), port=int(port), timeout=5)


def statuses():
    """What each live node reports of itself, by its name."""
    found = [json.loads(value) for value, _ in etcd.get_prefix("/lb/reports/v1/nodes/")]
    return {each["node"]: each for each in found}


def wait_for(key, seconds=30):
    """Until each live node has applied what is at this key now; who has not."""
    _, meta = etcd.get(key)
    deadline = time.monotonic() + seconds
    while True:
        nodes = statuses()
        late = [name for name, each in nodes.items() if each["revision"] < meta.mod_revision]
        if (nodes and not late) or time.monotonic() > deadline:
            return late if nodes else ["no node is there"]
        time.sleep(0.2)


late = wait_for("/lb/v1/services/shop")
print("not applied by: " + ", ".join(late) if late else "applied")
