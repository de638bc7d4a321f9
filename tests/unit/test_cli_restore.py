"""lbctl restore: an empty store, filled from a node's copy."""

import json

import pytest

from lb.core.state import parse
from lb.model import keys
from lb.node import last_known
from lb.node.last_known import LastKnown, stored
from lb.store.base import Delete


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
