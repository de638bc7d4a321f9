"""lbctl restore: an empty store, filled from a node's copy."""

import json

import pytest
from doubles import Small

from lb.cli import restore
from lb.cli.session import Session
from lb.core.state import parse
from lb.errors import CapacityError, ConflictError, StoreUnavailable
from lb.model import keys
from lb.node import last_known
from lb.node.last_known import LastKnown, stored
from lb.node.planning import Bases
from lb.store.base import Delete, Put


def state_in(store):
    snapshot = store.read(keys.ROOT)
    return parse(snapshot.revision, [(i.key, i.value, i.mod_revision) for i in snapshot.items])


@pytest.fixture
def copy(web, store, tmp_path, monkeypatch):
    """What a node has kept of a store that has been lost since."""
    del web  # it is in the store
    monkeypatch.setattr(last_known, "SAVE_SECONDS", 0.0)
    known = LastKnown("n1", tmp_path / "copy.json")
    snapshot = store.read(keys.ROOT)
    state = known.follow(snapshot, known.load())
    known.changed()
    known.save_if_due(state)
    store.commit([Delete(item.key) for item in snapshot.items])
    return known.path


def test_everything_is_there_again_seed_included(lbctl, copy, store):
    before, _ = last_known.read(copy)
    assert before.config is not None
    dry = lbctl.ok("restore", str(copy), "--dry-run")
    assert "1 services, 3 backends" in dry.out
    assert store.read(keys.ROOT).items == ()
    result = lbctl.json("restore", str(copy))
    after = state_in(store)
    assert dict(stored(after)) == dict(stored(before))
    assert after.problems == ()
    assert {v for k, v in after.versions.items()} == {result["revision"]}  # in one transaction
    assert lbctl.json("history")[0]["what"].startswith("lbctl restore")


def test_a_store_with_anything_in_it_is_left_alone(lbctl, copy, store):
    lbctl.ok("service", "add", "other", "--vip", "10.0.0.9:80")
    before = store.read(keys.ROOT)
    result = lbctl("restore", str(copy))
    assert result.code == 4
    assert "lbctl export" in result.err
    assert store.read(keys.ROOT) == before


@pytest.mark.parametrize("damage", ["missing", "text", "config", "document"])
def test_a_copy_that_is_not_whole_is_refused(lbctl, copy, store, damage):
    found = json.loads(copy.read_text())
    if damage == "config":
        del found["documents"][keys.CONFIG]
    elif damage == "document":
        found["documents"][keys.service("web")]["port"] = 0
    copy.write_text("{" if damage == "text" else json.dumps(found))
    if damage == "missing":
        copy.unlink()
    result = lbctl("restore", str(copy))
    assert result.code == 2
    assert "hint: " in result.err
    assert store.read(keys.ROOT).items == ()


def test_with_wait(lbctl, copy, nodes):
    nodes.follow("n1")
    result = lbctl.json("restore", str(copy), "--wait", "--timeout", "30")
    assert result["applied_by"] == ["n1"]


class Counted(Small):
    """Remembers what each commit had, and may fail, or do something else first, before one of them."""

    def __init__(self, store, limit, before=lambda _: None):
        super().__init__(store, limit)
        self.commits, self.before = [], before

    def commit(self, operations, *compares):
        self.before(len(self.commits))
        revision = super().commit(operations, *compares)
        self.commits.append([each.key for each in operations])
        return revision


def run(store, copy):
    session = Session()
    session.__dict__["store"] = store
    restore.restore(session, copy)


@pytest.fixture
def large(lbctl, store, tmp_path, monkeypatch):
    """A copy of 3 services with 60 backends each, and their tables: (path, state, size of the backends'
    documents together)."""
    services = [
        {
            "name": f"s{number}",
            "vip": f"10.0.0.{number + 1}",
            "port": 80,
            "backends": [
                {"name": f"b{n}", "address": f"10.1.{number}.{n + 1}", "weight": n + 1}
                for n in range(60)
            ],
        }
        for number in range(3)
    ]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"services": services}))
    lbctl.ok("apply", "-f", str(manifest))
    bases = Bases()
    bases.update(state_in(store))
    documents = bases.unstored(state_in(store))
    store.commit([Put(keys.table(path), each.model_dump_json()) for path, each in documents.items()])
    monkeypatch.setattr(last_known, "SAVE_SECONDS", 0.0)
    known = LastKnown("n1", tmp_path / "large.json")
    snapshot = store.read(keys.ROOT)
    state = known.follow(snapshot, known.load())
    known.changed()
    known.save_if_due(state)
    store.commit([Delete(item.key) for item in snapshot.items])
    size = sum(len(each.model_dump_json()) for each in state.backends.values())
    return known.path, state, size


def kinds_of(commit):
    return {key.removeprefix(keys.ROOT).partition("/")[0] for key in commit}


def is_followed(store, state):
    """By a node that has all of it in force, of a store that was emptied, and of a new one."""
    snapshot = store.read(keys.ROOT)
    held = [last_known.foreign(state, snapshot, other) for other in (False, True)]
    assert all(held) or not any(held)
    return not any(held)


def test_what_is_too_large_goes_in_portions_and_comes_into_force_at_once(large, store):
    path, state, size = large
    counted = Counted(store, size // 4)
    run(counted, path)
    kinds = [kinds_of(each) for each in counted.commits]
    assert kinds[-1] == {"config", "services", "history"}
    assert all(each in ({"tables"}, {"backends"}) for each in kinds[:-1])
    assert kinds.count({"backends"}) > 4
    assert kinds.index({"backends"}) > max(n for n, each in enumerate(kinds) if each == {"tables"})
    after = state_in(store)
    assert dict(stored(after)) == dict(stored(state))
    assert after.problems == ()
    assert is_followed(store, state)


@pytest.mark.parametrize("parts", [0.5, 4])
def test_one_that_ends_half_way_leaves_nothing_in_force_and_goes_on(large, store, parts, capsys):
    path, state, size = large
    failed = 0
    while True:

        def fail(number, at=failed):
            if number == at:
                raise StoreUnavailable("etcd is away")

        try:
            run(Counted(store, size // parts, fail), path)
        except StoreUnavailable:
            assert not is_followed(store, state)
            assert ("the same command goes on" in capsys.readouterr().err) == (failed > 0)
            failed += 1
            continue
        break
    assert failed > parts + 1
    assert dict(stored(state_in(store))) == dict(stored(state))


def test_what_somebody_else_writes_meanwhile_is_left_alone(large, store):
    path, _, size = large
    config = Put(keys.CONFIG, json.dumps({"seed": "ab" * 16}))
    theirs = [
        config,
        Put(keys.service("s1"), '{"name": "s1", "vip": "10.0.0.9", "port": 80}'),
        Put(keys.backend("s1", "b1"), '{"service": "s1", "name": "b1", "address": "10.9.9.9"}'),
    ]
    for put in theirs:
        for moment in (1, 4):  # among the tables, and the backends

            def write(number, put=put, moment=moment):
                if number == moment:
                    store.commit([put])

            with pytest.raises(ConflictError):
                run(Counted(store, size // 4, write), path)
            found = store.get(put.key)
            assert found is not None
            assert found.value == put.value
            store.commit([Delete(item.key) for item in store.read(keys.ROOT).items])


def test_the_rest_of_another_copy_is_not_mixed_with_this_one(large, store):
    path, state, size = large
    at = keys.backend("s0", "b3")
    found = state.backends["s0", "b3"]
    for other in (found.model_copy(update={"weight": 1}), found.model_copy(update={"name": "other"})):
        key = keys.backend("s0", other.name)
        store.commit([Put(key, other.model_dump_json())])
        with pytest.raises(ConflictError, match=f"backend s0/{other.name}") as refused:
            run(Counted(store, size), path)
        assert keys.BACKENDS in refused.value.hint
        assert [item.key for item in store.read(keys.ROOT).items] == [key]
        store.commit([Delete(key)])
    store.commit([Put(at, found.model_dump_json())])
    run(store, path)
    assert dict(stored(state_in(store))) == dict(stored(state))


def test_what_can_not_be_divided_says_what_to_do(large, store):
    path, state, _ = large
    with pytest.raises(CapacityError) as refused:
        run(Counted(store, 300), path)  # less than the three services have
    assert "--max-request-bytes" in refused.value.hint
    assert not is_followed(store, state)
    run(store, path)
    assert dict(stored(state_in(store))) == dict(stored(state))
