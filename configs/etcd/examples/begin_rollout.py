"""Begin a rollout, if none is under way."""

import json
import os
import time

import etcd3

host, _, port = os.environ.get("ETCD", "127.0.0.1:2379").rpartition(":")
etcd = etcd3.client(host=host.removeprefix("http://"), port=int(port))
KEY = "/lb/v1/rollouts/shop"


def begin(spec):
    """Its ID, or None: one is under way, or somebody else was faster."""
    present, meta = etcd.get(KEY)
    phase = json.loads(present).get("status", {}).get("phase") if present else "aborted"
    if phase not in ("promoted", "aborted"):
        return None
    id = time.strftime("%Y%m%d-%H%M%S-ci", time.gmtime())  # IDs are in the order of time
    document = {"service": "shop", "id": id, "spec": spec}
    done, _ = etcd.transaction(
        compare=[etcd.transactions.mod(KEY) == (meta.mod_revision if present else 0)],
        success=[etcd.transactions.put(KEY, json.dumps(document))],
        failure=[],
    )
    return id if done else None


spec = {"pool": "canary", "steps": [5, 50, 100], "every": "60s", "auto": True, "who": "ci"}
print(begin(spec) or "another one is under way")
