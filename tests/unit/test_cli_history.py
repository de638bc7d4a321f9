"""lbctl history and lbctl rollback, on both drivers."""

from __future__ import annotations

import getpass
import json
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lb.cli import change
from lb.cli.session import Session
from lb.core import records
from lb.errors import StoreUnavailable
from lb.lab.etcd import Etcd
from lb.model import keys
from lb.model.history import Record
from lb.settings import Settings
from lb.store.base import Put, Store
from lb.store.opening import open_store


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@dataclass
class Place:
    """Where the state is, and how to have its past forgotten."""

    url: str
    compact: Callable[[], None]


@pytest.fixture(params=["sqlite", "etcd"])
def place(
    request: pytest.FixtureRequest, lbctl: Any, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    del lbctl  # it makes sure that it is not this machine's own store; then we choose
    monkeypatch.delenv("LB_ACTOR", raising=False)
    monkeypatch.delenv("SUDO_USER", raising=False)
    if request.param == "sqlite":
        file = machine / "store.db"

        def forget() -> None:
            with sqlite3.connect(file) as db:  # what `history` revisions later would be so
                db.execute("UPDATE history SET compacted = (SELECT max(revision) FROM log)")

        return Place(str(file), forget)
    etcd: Etcd = request.getfixturevalue("etcd")
    etcd.ctl("del", "--prefix", keys.ROOT)
    monkeypatch.setenv("LB_STORE", etcd.url)

    def compact() -> None:
        header = json.loads(etcd.ctl("get", "x", "-w", "json").stdout)["header"]
        etcd.ctl("compact", str(header["revision"]))

    return Place(etcd.url, compact)


@pytest.fixture
def web(place: Place, lbctl: Any) -> Any:
    assert os.environ["LB_STORE"] == place.url
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80")
    for number in (1, 2):
        lbctl.ok("backend", "add", "web", f"b{number}", f"10.0.1.{number}")
    return lbctl


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with open_store(place.url) as store:
        yield store


def export(lbctl: Any) -> Any:
    return lbctl.json("export")


def test_each_change_is_recorded(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = web.json("backend", "weight", "web", "b1", "7")
    monkeypatch.setenv("LB_ACTOR", "deploy job 42")
    second = web.json("backend", "rm", "web", "b2")
    listed = web.json("history")
    assert [each["revision"] for each in listed[:2]] == [second["revision"], first["revision"]]
    assert listed[0]["who"] == "deploy job 42"
    assert listed[0]["what"] == "lbctl backend rm web b2 -o json"
    assert listed[1]["who"] == f"{getpass.getuser()}@{socket.gethostname()}"
    (change,) = listed[1]["changes"]
    assert change["key"] == keys.backend("web", "b1")
    assert (json.loads(change["before"])["weight"], json.loads(change["after"])["weight"]) == (100, 7)
    assert len(listed) == 5
    assert [each["when"] for each in listed] == sorted((e["when"] for e in listed), reverse=True)
    text = web.ok("history", "--limit", "1").out
    assert "deploy job 42" in text
    assert "backend web/b2" in text
    assert len(text.splitlines()) == 2


def test_sudo_does_not_hide_who_it_was(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    web.ok("backend", "weight", "web", "b1", "7")
    assert web.json("history")[0]["who"] == f"alice@{socket.gethostname()}"


def test_what_changes_nothing_is_not_recorded(web: Any, store: Store) -> None:
    before = store.read(keys.ROOT)
    web.ok("backend", "weight", "web", "b1", "100")
    web.ok("backend", "weight", "web", "b1", "7", "--dry-run")
    assert store.read(keys.ROOT) == before


@pytest.mark.usefixtures("web")
def test_the_seed_is_not_in_the_history(store: Store) -> None:
    found = store.get(keys.CONFIG)
    assert found is not None
    seed = json.loads(found.value)["seed"]
    assert not any(seed in item.value for item in store.read(keys.HISTORY).items)


def test_history_of_one_service(web: Any) -> None:
    web.ok("service", "add", "web2", "--vip", "10.0.0.2:80")
    assert len(web.json("history", "--service", "web2")) == 1
    assert len(web.json("history", "--service", "web")) == 3


def test_the_history_is_bounded(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORDS", 3)
    for weight in range(5):
        web.ok("backend", "weight", "web", "b1", str(weight))
    listed = web.json("history")
    assert len(listed) == 3
    assert listed[0]["what"].startswith("lbctl backend weight web b1 4")


@pytest.mark.parametrize("compacted", [False, True], ids=["kept", "compacted"])
def test_rollback_brings_back_what_was(web: Any, place: Place, compacted: bool) -> None:
    good = web.json("backend", "weight", "web", "b1", "7")["revision"]
    before = export(web)
    web.ok("backend", "rm", "web", "b2")
    web.ok("backend", "weight", "web", "b1", "9")
    web.ok("service", "set", "web", "--window", "60")
    web.ok("service", "add", "new", "--vip", "10.0.0.9:80")
    web.ok("backend", "add", "new", "b1", "10.0.1.9")
    after = export(web)
    if compacted:
        place.compact()
    dry = web.ok("rollback", str(good), "--dry-run")
    assert "+ backend web/b2" in dry.out
    assert "- service new" in dry.out
    assert export(web) == after
    rolled = web.json("rollback", str(good))
    assert export(web) == before
    listed = web.json("history")
    assert listed[0]["what"].startswith(f"lbctl rollback {good}")
    # And forward again: a rollback is a change, too.
    web.ok("rollback", str(rolled["revision"] - 1))
    assert export(web) == after


def test_rollback_of_one_service_leaves_the_others(web: Any) -> None:
    good = web.json("service", "add", "other", "--vip", "10.0.0.2:80")["revision"]
    web.ok("backend", "weight", "web", "b1", "9")
    web.ok("service", "set", "other", "--window", "60")
    web.ok("rollback", str(good), "--service", "web")
    services = {each["name"]: each for each in export(web)["services"]}
    assert services["other"]["window"] == 60
    assert services["web"]["backends"][0].get("weight", 100) == 100
    assert web("rollback", str(good), "--service", "nobody").code == 3


def test_what_can_not_be_rolled_back_to(
    web: Any, place: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = store.read(keys.ROOT).revision
    assert web("rollback", str(newest + 100)).code == 3
    assert web("rollback", "0").code == 2
    with monkeypatch.context() as small:
        small.setattr(records, "MAX_BYTES", 10)
        large = web.json("backend", "weight", "web", "b1", "9")["revision"]
    newest_record = web.json("history")[0]
    assert newest_record["changes"] is None
    assert newest_record["keys"] == [keys.service("web")]
    web.ok("rollback", str(newest), "--dry-run")  # the store has it still
    place.compact()
    refused = web("rollback", str(newest))
    assert refused.code == 3
    assert f"the change at revision {large} was too large" in refused.err
    oldest = web.json("history")[-1]["revision"]
    refused = web("rollback", str(oldest - 1)) if oldest > 1 else web("rollback", "1")
    assert refused.code == 3


def test_records_that_make_no_sense_are_left_out(web: Any, store: Store) -> None:
    store.commit([Put(keys.record("0"), "{}"), Put(keys.record("1"), "")])
    assert len(web.json("history")) == 3
    web.ok("status")
    assert web.json("status")["quarantined"] == []


def test_a_commit_whose_answer_is_lost_is_found_by_its_record(
    web: Any, place: Place, store: Store
) -> None:
    """The store did it, and the connection broke before it could say so."""

    class Broken:
        def __init__(self, stored: bool) -> None:
            self.stored = stored

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def commit(self, *arguments: Any) -> int:
            if self.stored:
                store.commit(*arguments)
            raise StoreUnavailable("etcd did not say whether the change was stored")

    def edit(draft: change.Draft) -> None:
        draft.put(draft.backend("web", "b1").model_copy(update={"weight": 33}))

    session = Session()
    session.__dict__.update(store=Broken(stored=False), settings=Settings(store=place.url))
    before = store.read(keys.ROOT).revision
    with pytest.raises(StoreUnavailable):
        change.perform(session, edit)
    assert store.read(keys.ROOT).revision == before
    session.__dict__["store"] = Broken(stored=True)
    change.perform(session, edit)
    assert web.json("history")[0]["revision"] == before + 1
    found = store.get(keys.backend("web", "b1"))
    assert found is not None
    assert '"weight":33' in found.value


def test_who_did_it_can_not_write_on_the_reader_s_terminal(
    web: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LB_ACTOR", "eve\x1b]0;root\x07\n9 root\x9b2J\u202e\udcff é" + "x" * 100_000)
    web.ok("backend", "weight", "web", "b1", "7")
    who = web.json("history")[0]["who"]
    assert who.startswith(r"eve\x1b]0;root\x07\n9 root\x9b2J\u202e\udcff éxxx")
    assert len(who) == 200
    # Who writes records without lbctl may not have been as careful.
    record = Record(when=1e9, who="eve\x1b[2J\nroot", what="a\rb", keys=())
    store.commit([Put(keys.record("x"), record.model_dump_json())])
    lines = web.ok("history").out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert r" eve\x1b[2J\nroot " in lines[1]
    assert r" a\rb" in lines[1]


def test_a_record_is_in_the_transaction_of_its_change(web: Any, store: Store) -> None:
    revision = web.json("backend", "weight", "web", "b1", "7")["revision"]
    with store.watch(keys.ROOT, after=revision - 1) as watch:
        batch = watch.next(10)
    assert batch is not None
    written = {event.key: event.value for event in batch.events if event.revision == revision}
    (key,) = (key for key in written if key.startswith(keys.HISTORY))
    assert Record.model_validate_json(written[key] or "").keys == (keys.backend("web", "b1"),)
    assert keys.backend("web", "b1") in written
