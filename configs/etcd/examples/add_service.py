"""Add a service with its backends, in one transaction with the lock of structure."""

import json
import os

import etcd3

host, _, port = os.environ.get("ETCD", "127.0.0.1:2379").rpartition(":")
etcd = etcd3.client(host=host.removeprefix("http://"), port=int(port))
is_at = etcd.transactions.mod
put = etcd.transactions.put


def add(service, backends):
    """True if it is stored; False if the name is taken, or somebody else was faster."""
    config, meta = etcd.get("/lb/v1/config")
    documents = {"/lb/v1/services/" + service["name"]: service}
    for each in backends:
        documents["/lb/v1/backends/" + service["name"] + "/" + each["name"]] = each
    compare = [is_at(key) == 0 for key in documents]
    writes = [put(key, json.dumps(document)) for key, document in documents.items()]
    if config is not None:  # the lock of structure, with the value that it has
        compare.append(is_at("/lb/v1/config") == meta.mod_revision)
        writes.append(put("/lb/v1/config", config))
    done, _ = etcd.transaction(compare=compare, success=writes, failure=[])
    return done


service = {"name": "shop", "vip": "203.0.113.10", "port": 80, "mode": "nat"}
backends = [
    {"service": "shop", "name": "b1", "address": "203.0.113.21", "weight": 50},
    {"service": "shop", "name": "c1", "address": "203.0.113.31", "pool": "canary"},
]
print("stored" if add(service, backends) else "taken, or somebody else was faster")
