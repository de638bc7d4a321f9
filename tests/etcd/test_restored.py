"""An etcd that is restored from a backup, and has passed the old revisions before a node looks again."""

from __future__ import annotations

from pathlib import Path

from lb.core.state import DesiredState
from lb.lab.etcd import Etcd
from lb.model import keys
from lb.model.objects import Backend, ClusterConfig, Service
from lb.node.last_known import LastKnown
from lb.store.base import Put, Store
from lb.store.opening import open_store

CONFIG = ClusterConfig(seed="0" * 32)
WEB = Service.model_validate({"name": "web", "vip": "198.51.100.1", "port": 80})
B1 = Backend.model_validate({"service": "web", "name": "b1", "address": "203.0.113.1"})


def weigh(store: Store, weight: int) -> int:
    changed = B1.model_copy(update={"weight": weight})
    return store.commit([Put(keys.backend("web", "b1"), changed.model_dump_json())])


def test_it_is_noticed_by_what_is_older_than_it_was(etcd: Etcd, tmp_path: Path) -> None:
    known = LastKnown("n1", tmp_path / "copy" / "last.json")
    with open_store(etcd.url) as store:
        store.commit([Put(keys.CONFIG, CONFIG.model_dump_json())])
        store.commit([Put(keys.service("web"), WEB.model_dump_json())])
        weigh(store, 10)
        etcd.save(tmp_path / "backup.db")
        revision = weigh(store, 20)
        state = known.follow(store.read(keys.EVERYTHING), DesiredState())
        assert state is not None
        assert state.revision == revision
        # Nothing is wrong while nothing was restored, however much is written.
        store.commit([Put(keys.record("r"), "{}")])
        state = known.follow(store.read(keys.EVERYTHING), state)
        assert state is not None
        assert known.problems() == ()
        etcd.stop()
        etcd.restore(tmp_path / "backup.db")
        while store.commit([Put(keys.record("r"), "{}")]) <= state.revision + 2:
            pass
        snapshot = store.read(keys.EVERYTHING)
    known.cluster = snapshot.cluster  # as it is where names, addresses and token are the same
    after = known.follow(snapshot, state)
    assert after is not None
    assert after.backends["web", "b1"].weight == 10  # what the store says is in force
    assert "went back" in known.problems()[0].message
    assert known.restored is not None
    assert '"weight": 20' in known.restored.read_text()
