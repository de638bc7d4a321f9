"""Manifests that are larger than etcd's limit of 128 compares and 128 operations a transaction."""

from __future__ import annotations

import json
from typing import Any

from lb.cli import change
from lb.cli.declarative import edit_of
from lb.cli.session import Session
from lb.lab.etcd import Etcd as Servers
from lb.model import keys, manifest
from lb.settings import Settings
from lb.store.base import Compare, Put, Store
from lb.store.opening import open_store

COUNT = 600


def backend(number: int, weight: int) -> dict[str, Any]:
    address = f"10.1.{number // 250}.{number % 250 + 1}"
    return {"name": f"b{number}", "address": address, "weight": weight}


def fleet(weight: int) -> manifest.Manifest:
    backends = [backend(number, weight) for number in range(COUNT)]
    service = {"name": "web", "vip": "198.51.100.1", "port": 80, "backends": backends}
    return manifest.load(json.dumps({"services": [service]}), "a test")


def session_of(store: Store, url: str) -> Session:
    session = Session()
    session.__dict__.update(store=store, settings=Settings(store=url))
    return session


def test_a_large_manifest_is_one_transaction(etcd: Servers) -> None:
    with open_store(etcd.url) as store:
        session = session_of(store, etcd.url)
        before = store.read(keys.ROOT).revision
        change.perform(session, edit_of(fleet(1), prune=False))
        items = store.read(keys.BACKENDS).items
        assert len(items) == COUNT
        assert {item.mod_revision for item in items} == {before + 1}
        change.perform(session, edit_of(fleet(2), prune=True))
        items = store.read(keys.BACKENDS).items
        assert {item.mod_revision for item in items} == {before + 2}
        assert all('"weight":2' in item.value for item in items)


def test_what_somebody_else_changes_meanwhile_is_not_lost(etcd: Servers) -> None:
    """A setting that the manifest leaves out, changed between its reading and its writing."""
    key = keys.backend("web", "b7")

    class Racing:
        raced = False

        def __init__(self, store: Store) -> None:
            self.store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

        def commit(self, *arguments: Any) -> int:
            if not self.raced:
                self.raced = True
                found = self.store.get(key)
                assert found is not None
                drained = found.value.replace('"up"', '"drain"')
                self.store.commit([Put(key, drained)], [Compare(key, found.mod_revision)])
            return self.store.commit(*arguments)

    with open_store(etcd.url) as store:
        change.perform(session_of(store, etcd.url), edit_of(fleet(1), prune=False))
        racing: Any = Racing(store)
        change.perform(session_of(racing, etcd.url), edit_of(fleet(2), prune=False))
        found = store.get(key)
    assert racing.raced
    assert found is not None
    assert '"drain"' in found.value
    assert '"weight":2' in found.value
