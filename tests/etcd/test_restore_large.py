"""`lbctl restore` of more than etcd takes at once: tables alone are 2 MB, and so are 8,000 backends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lb.cli import restore
from lb.cli.session import Session
from lb.core import slots
from lb.core.state import DesiredState, parse
from lb.errors import StoreUnavailable
from lb.lab.etcd import Etcd
from lb.model import keys
from lb.model.objects import Backend, ClusterConfig, Service
from lb.node import last_known
from lb.node.last_known import LastKnown, stored
from lb.settings import Settings
from lb.store.base import Store
from lb.store.opening import open_store

SERVICES, BACKENDS, CHANGES = 80, 100, 60
TAKEN = 1_572_864  # etcd's --max-request-bytes, unless it was told otherwise: 1.5 MiB


def made() -> DesiredState:
    """What a node has in force of services whose weights were changed 60 times."""
    dice = random.Random(1)
    weights = {f"backend-{n:03}": 100 for n in range(BACKENDS)}
    table: slots.Table | None = None
    for _ in range(CHANGES):
        weights[dice.choice(list(weights))] = dice.randint(50, 150)
        members = [slots.Member(name, "stable", weight) for name, weight in weights.items()]
        table = slots.plan(members, {"stable": 100.0}, table)
    assert table is not None
    names = [f"service-{n:02}" for n in range(SERVICES)]
    document = slots.to_document(names[0], table)
    return DesiredState(
        revision=1000,
        config=ClusterConfig(seed="5" * 32),
        services={
            name: Service(name=name, vip=ip_address(f"198.51.100.{n + 1}"), port=80)
            for n, name in enumerate(names)
        },
        backends={
            (name, each): Backend(
                service=name, name=each, address=ip_address(f"10.1.{n}.{m + 1}"), weight=weight
            )
            for n, name in enumerate(names)
            for m, (each, weight) in enumerate(weights.items())
        },
        tables={name: document.model_copy(update={"service": name}) for name in names},
    )


@pytest.fixture(scope="module")
def served() -> DesiredState:
    return made()


@pytest.fixture
def copy(served: DesiredState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(last_known, "SAVE_SECONDS", 0.0)
    known = LastKnown("n1", tmp_path / "copy" / "last.json")
    known.changed()
    known.save_if_due(served)
    assert known.path is not None
    return known.path


def run(store: Store, url: str, file: Path) -> None:
    session = Session()
    session.__dict__.update(store=store, settings=Settings(store=url))
    restore.restore(session, file)


def state_in(store: Store) -> DesiredState:
    found = store.read(keys.ROOT)
    return parse(found.revision, [(i.key, i.value, i.mod_revision) for i in found.items])


def size(state: DesiredState, prefix: str) -> int:
    return sum(len(key + e.model_dump_json()) for key, e in stored(state) if key.startswith(prefix))


def test_eighty_services_of_a_hundred_backends(etcd: Etcd, served: DesiredState, copy: Path) -> None:
    assert size(served, keys.TABLES) > TAKEN
    assert size(served, keys.BACKENDS) > TAKEN
    with open_store(etcd.url) as store:
        run(store, etcd.url, copy)
        after = state_in(store)
    assert dict(stored(after)) == dict(stored(served))
    assert after.problems == ()
    began = {after.versions[key] for key in after.versions if key.startswith(keys.SERVICES)}
    assert began == {after.versions[keys.CONFIG]} == {max(after.versions.values())}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Etcd]:
    """Takes less at once than anybody's: but the services alone still fit."""
    with Etcd(tmp_path / "etcd", options=["--max-request-bytes=65536", "--max-txn-ops=100"]) as etcd:
        yield etcd


def test_half_way_nothing_is_in_force_and_the_same_command_goes_on(
    small: Etcd, served: DesiredState, copy: Path
) -> None:
    class Ending:
        """The connection that is lost after so many commits."""

        def __init__(self, store: Store, commits: int) -> None:
            self.store, self.left = store, commits

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

        def commit(self, *arguments: Any) -> int:
            if not self.left:
                raise StoreUnavailable("cut off")
            revision = self.store.commit(*arguments)
            self.left -= 1
            return revision

    with open_store(small.url) as store:
        for commits, reached in ((10, keys.TABLES), (60, keys.BACKENDS)):
            with pytest.raises(StoreUnavailable):
                run(Ending(store, commits), small.url, copy)  # type: ignore[arg-type]
            snapshot = store.read(keys.EVERYTHING)
            assert any(item.key.startswith(reached) for item in snapshot.items)
            # Who serves it goes on; who comes new has nothing, and writes nothing.
            known = LastKnown("n1", None, cluster="before")
            assert known.follow(snapshot, replace(served, versions={})) is None
            assert not state_in(store).services
        run(store, small.url, copy)
        after = state_in(store)
    assert dict(stored(after)) == dict(stored(served))
    assert after.problems == ()
