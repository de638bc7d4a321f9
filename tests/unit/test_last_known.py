"""The copy of what a node served, and what it makes of a store that does not go on from there."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from lb.core.state import DesiredState
from lb.model import keys, manifest
from lb.model.objects import Backend, ClusterConfig, Document, Service
from lb.node import last_known
from lb.node.last_known import LastKnown, stored
from lb.store.base import KeyValue, Snapshot

CONFIG = ClusterConfig(seed="0" * 32)
OTHER = ClusterConfig(seed="1" * 32)
WEB = Service.model_validate({"name": "web", "vip": "198.51.100.1", "port": 80})
DNS = Service.model_validate({"name": "dns", "vip": "198.51.100.2", "port": 53})
B1 = Backend.model_validate({"service": "web", "name": "b1", "address": "203.0.113.1"})


def snapshot(revision: int, *documents: Document, cluster: str = "a") -> Snapshot:
    keyed = []
    for each in documents:
        if isinstance(each, ClusterConfig):
            key = keys.CONFIG
        elif isinstance(each, Service):
            key = keys.service(each.name)
        else:
            assert isinstance(each, Backend)
            key = keys.backend(each.service, each.name)
        keyed.append(KeyValue(key, each.model_dump_json(), revision))
    return Snapshot(revision, tuple(keyed), cluster)


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LastKnown:
    monkeypatch.setattr(last_known, "SAVE_SECONDS", 0.0)
    return LastKnown("n1", tmp_path / "lb" / "last.json")


def save(known: LastKnown, state: DesiredState) -> None:
    known.changed()
    known.save_if_due(state)


def served(known: LastKnown, *documents: Document, revision: int = 50) -> DesiredState:
    state = known.follow(snapshot(revision, *documents), DesiredState())
    assert state is not None
    save(known, state)
    return state


def test_a_copy_is_what_was_served(known: LastKnown) -> None:
    state = served(known, CONFIG, WEB, B1)
    assert known.path is not None
    assert stat.S_IMODE(known.path.stat().st_mode) == 0o600  # the seed is in it
    again = LastKnown("n1", known.path)
    loaded = again.load()
    assert dict(stored(loaded)) == dict(stored(state))
    assert (loaded.revision, again.cluster) == (50, "a")
    again.serve(loaded)
    assert "booted without the store" in again.problems()[0].message
    assert " to " not in again.problems()[0].message
    after = again.follow(snapshot(51, CONFIG, WEB, B1), loaded)
    assert after is not None
    assert " to " in again.problems()[0].message
    assert after.versions[keys.CONFIG] == 51


def test_a_document_that_is_quarantined_is_so_again_after_a_boot(known: LastKnown) -> None:
    """Its last good version is in force, and in the copy; but the store has something else."""
    state = served(known, CONFIG, WEB)
    bad = KeyValue(keys.service("web"), "{}", 51)
    broken = Snapshot(51, (snapshot(51, CONFIG).items[0], bad), "a")
    state = known.follow(broken, state)  # type: ignore[assignment]
    save(known, state)
    again = LastKnown("n1", known.path)
    after = again.follow(broken, again.load())
    assert after is not None
    assert after.services == {"web": WEB}
    assert [problem.where for problem in after.problems] == [keys.service("web")]


def test_nothing_new_is_not_written_again(known: LastKnown) -> None:
    state = served(known, CONFIG, WEB)
    assert known.path is not None
    before = known.path.stat().st_ino
    save(known, state)
    assert known.path.stat().st_ino == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_copy_that_makes_no_sense_is_none(known: LastKnown, text: str) -> None:
    assert known.path is not None
    known.path.parent.mkdir()
    known.path.write_text(text)
    assert known.load() == DesiredState()


def test_without_a_path_nothing_is_kept(tmp_path: Path) -> None:
    known = LastKnown("n1", None)
    state = known.follow(snapshot(5, CONFIG, WEB, cluster=""), known.load())
    assert state is not None
    save(known, state)
    assert list(tmp_path.iterdir()) == []
    assert known.problems() == ()


def test_a_store_that_went_back_is_followed_and_said(known: LastKnown) -> None:
    state = served(known, CONFIG, WEB, DNS, B1)
    after = known.follow(snapshot(20, CONFIG, WEB), state)
    assert after is not None
    assert (after.revision, set(after.services)) == (20, {"web"})
    (problem,) = known.problems()
    assert known.restored is not None
    assert str(known.restored) in problem.message
    kept = manifest.load(known.restored.read_text(), "the file")  # what `lbctl diff -f` reads
    assert {entry.service.name for entry in kept.services} == {"web", "dns"}
    known.restored.unlink()
    assert known.problems() == ()
    assert known.follow(snapshot(21, CONFIG, WEB, DNS), after) is not None
    assert known.problems() == ()


def test_a_store_that_went_back_and_has_come_further_is_noticed_by_its_past(known: LastKnown) -> None:
    """Same cluster, higher revision: but b1's last change is not the one that was followed."""
    before = served(known, CONFIG, WEB, B1)
    heavier = B1.model_copy(update={"weight": 7})
    items = (
        KeyValue(keys.CONFIG, CONFIG.model_dump_json(), 50),
        KeyValue(keys.service("web"), WEB.model_dump_json(), 50),
        KeyValue(keys.backend("web", "b1"), heavier.model_dump_json(), 40),
    )
    after = known.follow(Snapshot(90, items, "a"), before)
    assert after is not None
    assert after.backends["web", "b1"] == heavier
    assert "went back" in known.problems()[0].message
    assert known.restored is not None
    assert known.restored.exists()


def test_changes_deletions_and_records_are_no_other_past(known: LastKnown) -> None:
    before = served(known, CONFIG, WEB, DNS, B1)
    items = (
        KeyValue(keys.CONFIG, CONFIG.model_dump_json(), 50),
        KeyValue(keys.service("web"), WEB.model_dump_json(), 60),
        KeyValue(keys.backend("web", "b1"), B1.model_dump_json(), 50),
        KeyValue(keys.record("r"), "{}", 49),
        KeyValue(keys.node("n2"), "{}", 48),
    )
    assert known.follow(Snapshot(90, items, "a"), before) is not None
    assert known.problems() == ()
    # A copy has no versions: nothing can be said of the past then.
    assert known.path is not None
    again = LastKnown("n1", known.path)
    save(known, before)
    loaded = again.load()
    again.follow(Snapshot(90, items, "a"), loaded)
    assert again.problems() == ()


def test_a_store_that_was_lost_and_has_everything_back_is_no_news(known: LastKnown) -> None:
    state = served(known, CONFIG, WEB, B1)
    after = known.follow(snapshot(2, CONFIG, WEB, B1, cluster="b"), state)
    assert after is not None
    assert after.revision == 2
    assert known.problems() == ()
    assert known.cluster == "b"


def test_the_first_of_two_restores_is_what_people_need(known: LastKnown) -> None:
    state = served(known, CONFIG, WEB, DNS)
    state = known.follow(snapshot(20, CONFIG, WEB), state)  # type: ignore[assignment]
    known.follow(snapshot(10, CONFIG, WEB), state)
    assert known.restored is not None
    kept = manifest.load(known.restored.read_text(), "the file")
    assert {entry.service.name for entry in kept.services} == {"web", "dns"}


def test_versions_of_another_history_are_not_believed(known: LastKnown) -> None:
    """The same revision, and another document."""
    state = served(known, CONFIG, WEB)
    other = WEB.model_copy(update={"window": 60})
    after = known.follow(snapshot(50, CONFIG, other, cluster="b"), state)
    assert after is not None
    assert after.services["web"].window == 60


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (snapshot(20, cluster="b"), "empty"),
        (snapshot(60), "empty"),  # its own history: somebody deleted everything
        (snapshot(20, OTHER, WEB, cluster="b"), "seed"),
        (snapshot(60, OTHER, WEB, cluster="b"), "seed"),
        (snapshot(20, CONFIG), "no services"),
        (snapshot(20, WEB), "no configuration"),
        (Snapshot(20, (KeyValue(keys.CONFIG, "{", 1), *snapshot(20, WEB).items), "a"), "read"),
    ],
)
def test_a_store_that_is_foreign_or_lost_is_not_followed(
    known: LastKnown, found: Snapshot, words: str
) -> None:
    state = served(known, CONFIG, WEB)
    assert known.path is not None
    copy = known.path.read_text()
    assert known.follow(found, state) is None
    assert known.held
    (problem,) = known.problems()
    assert words in problem.message
    assert str(known.path) in problem.hint
    save(known, state)
    assert known.path.read_text() == copy
    # Also after a restart, with the copy as the only memory; and no longer without it.
    again = LastKnown("n1", known.path)
    assert again.follow(found, again.load()) is None
    known.path.unlink()
    assert LastKnown("n1", known.path).follow(found, DesiredState()) is not None
    # The right store comes back.
    assert known.follow(snapshot(61, CONFIG, WEB), state) is not None
    assert known.problems() == ()


def test_the_last_service_can_be_removed(known: LastKnown) -> None:
    state = served(known, CONFIG, WEB)
    after = known.follow(snapshot(51, CONFIG), state)
    assert after is not None
    assert after.services == {}


def test_the_copy_is_readable_for_people(known: LastKnown) -> None:
    served(known, CONFIG, WEB)
    assert known.path is not None
    copy = json.loads(known.path.read_text())
    assert copy["documents"][keys.service("web")]["port"] == 80
