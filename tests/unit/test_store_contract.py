"""What every store driver promises, in terms of the abstract interface only.

Each test runs under a key prefix of its own and takes revisions as they come, so that a driver may
run all of them against one server.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from lb.errors import ConflictError, NotFoundError, RevisionCompacted, StoreUnavailable
from lb.lab.etcd import Etcd
from lb.store.base import Batch, Compare, Delete, Event, Put, Store, Unwritten, Watch, iterate
from lb.store.etcd import EtcdStore
from lb.store.etcd_client import Credentials
from lb.store.sqlite import SqliteStore

PATIENCE = 10.0  # a deadline for what should happen at once


@dataclass(frozen=True)
class Driver:
    """How to reach one and the same store, as often as wanted, and its shortest lease."""

    connect: Callable[[], Store]
    shortest_lease: float


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(params=["sqlite", "etcd"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    with ExitStack() as stack:
        if request.param == "sqlite":
            yield Driver(
                connect=lambda: stack.enter_context(SqliteStore(tmp_path / "store.db")),
                shortest_lease=1.5,  # long beside a commit on a busy disk
            )
        else:
            etcd: Etcd = request.getfixturevalue("etcd")
            yield Driver(
                connect=lambda: stack.enter_context(EtcdStore(etcd.endpoints, Credentials())),
                shortest_lease=1.0,
            )


@pytest.fixture
def store(driver: Driver) -> Store:
    return driver.connect()


@pytest.fixture
def other(driver: Driver, store: Store) -> Store:
    """A second client of the same store."""
    del store  # only to be the second
    return driver.connect()


@pytest.fixture
def root() -> str:
    return f"/test/{uuid.uuid4()}/"


def contents(store: Store, prefix: str, revision: int | None = None) -> dict[str, str]:
    return {
        item.key.removeprefix(prefix): item.value for item in store.read(prefix, revision=revision).items
    }


def events_until(watch: Watch, done: Callable[[list[Event]], bool]) -> list[Event]:
    """Events as they come, until `done`; what is left undelivered by the deadline fails."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while not done(events):
        batch = watch.next(timeout=max(0.0, deadline - time.monotonic()))
        assert batch is not None or time.monotonic() < deadline, f"no more after {events}"
        if batch is not None:
            events += batch.events
    return events


def take(watch: Watch, count: int) -> list[Event]:
    events = events_until(watch, lambda events: len(events) >= count)
    assert len(events) == count, events
    return events


# Reading and writing


def test_an_empty_prefix_reads_as_nothing(store: Store, root: str) -> None:
    snapshot = store.read(root)
    assert snapshot.items == ()
    assert snapshot.revision >= 0
    assert store.get(root + "a") is None


def test_what_was_put_is_read_by_every_client(store: Store, other: Store, root: str) -> None:
    first = store.commit([Put(root + "b", "1")])
    second = store.commit([Put(root + "a", "2\n\t{\"ü\": '%_'}"), Put(root + "c", "")])
    assert second == first + 1
    for client in (store, other):
        snapshot = client.read(root)
        assert snapshot.revision == second
        assert [(i.key.removeprefix(root), i.value, i.mod_revision) for i in snapshot.items] == [
            ("a", "2\n\t{\"ü\": '%_'}", second),
            ("b", "1", first),
            ("c", "", second),
        ]
        assert client.get(root + "b") == snapshot.items[1]


def test_put_replaces_and_delete_removes(store: Store, root: str) -> None:
    store.commit([Put(root + "a", "1"), Put(root + "b", "1")])
    revision = store.commit([Put(root + "a", "2"), Delete(root + "b")])
    found = store.get(root + "a")
    assert found is not None
    assert (found.value, found.mod_revision) == ("2", revision)
    assert contents(store, root) == {"a": "2"}


def test_how_old_a_key_is(store: Store, root: str) -> None:
    """It stays with changes, and not with a deletion. The embedded store can't tell."""

    def told() -> list[int]:
        found, snapshot = store.get(root + "a"), store.read(root)
        assert found is not None
        assert snapshot.items == (found,)
        assert snapshot.created == ({found.key: found.create_revision} if found.create_revision else {})
        return [found.create_revision]

    knows = not isinstance(store, SqliteStore)
    first = store.commit([Put(root + "a", "1")])
    store.commit([Put(root + "a", "2")])
    assert told() == [first * knows]
    store.commit([Delete(root + "a")])
    again = store.commit([Put(root + "a", "3")])
    assert told() == [again * knows]


def test_putting_the_same_value_is_a_change(store: Store, root: str) -> None:
    before = store.commit([Put(root + "a", "1")])
    assert store.commit([Put(root + "a", "1")]) == before + 1


ODD_KEYS = [
    *("a", "A", "a%", "a_", "ab", "aB", "a%b", "a_b", "a*", "a?", "a[b]", "a\\", "a'b", 'a"', "b"),
    *("a b", "a\nb", "a\x00", "a\x00b", "a\x7f", "ä", "a\u0308", "a\ud7ff", "a\ue000", "a\uffff"),
    *("a\U00010000", "a\U0010ffff", "a\U0010ffff\U0010ffffz", "\U0010ffff", "日本/語", "🐝/1", "🐝"),
]


def test_keys_and_prefixes_are_literal(store: Store, root: str) -> None:
    store.commit([Put(root + key, f"value of {key}") for key in ODD_KEYS])
    for prefix in ["", *ODD_KEYS]:
        expected = sorted(key for key in ODD_KEYS if key.startswith(prefix))
        found = [item.key.removeprefix(root) for item in store.read(root + prefix).items]
        assert found == expected, repr(prefix)
    for key in ODD_KEYS:
        item = store.get(root + key)
        assert item is not None
        assert item.value == f"value of {key}"
    assert store.get(root) is None


def test_a_watch_takes_its_prefix_literally(store: Store, root: str) -> None:
    before = store.read(root).revision
    store.commit([Put(root + key, "") for key in ODD_KEYS])
    for prefix in ODD_KEYS:
        with store.watch(root + prefix, after=before) as watch:
            batch = watch.next(PATIENCE)
            assert batch is not None
            found = sorted(event.key.removeprefix(root) for event in batch.events)
            assert found == sorted(key for key in ODD_KEYS if key.startswith(prefix))


def test_the_past_can_be_read(store: Store, root: str) -> None:
    model: dict[str, str] = {}
    past = {store.read(root).revision: dict(model)}
    for step in range(30):
        key = f"k{step % 7}"
        if step % 3 == 2:
            model.pop(f"k{(step + 3) % 7}", None)
            model[key] = str(step)
            operations: list[Put | Delete] = [Delete(f"{root}k{(step + 3) % 7}")]
            operations.append(Put(root + key, str(step)))
        else:
            model[key] = str(step)
            operations = [Put(root + key, str(step))]
        past[store.commit(operations)] = dict(model)
    assert len(past) == 31
    for revision, expected in past.items():
        assert store.read(root, revision=revision).revision == revision
        assert contents(store, root, revision) == expected


def test_a_revision_that_the_store_never_had_is_refused(store: Store, root: str) -> None:
    newest = store.commit([Put(root + "a", "1")])
    with pytest.raises(RevisionCompacted):
        store.read(root, revision=newest + 1)
    with store.watch(root, after=newest + 1) as watch, pytest.raises(RevisionCompacted):
        watch.next(PATIENCE)


# Commits


def test_a_commit_that_changes_nothing_makes_no_revision(store: Store, root: str) -> None:
    before = store.commit([Put(root + "a", "1")])
    assert store.commit([]) == before
    assert store.commit([Delete(root + "none")]) == before
    assert store.commit([], [Compare(root + "a", before)]) == before
    assert store.read(root).revision == before
    with pytest.raises(ConflictError):
        store.commit([], [Compare(root + "a", 0)])


def test_deleting_what_is_absent_beside_a_change_is_no_event(store: Store, root: str) -> None:
    before = store.read(root).revision
    revision = store.commit([Delete(root + "none"), Put(root + "a", "1")])
    with store.watch(root, after=before) as watch:
        assert watch.next(PATIENCE) == Batch(revision, (Event(root + "a", "1", revision),))


def test_compares_that_hold(store: Store, root: str) -> None:
    a = store.commit([Put(root + "a", "1")], [Compare(root + "a", 0)])
    b = store.commit([Put(root + "b", "1")], [Compare(root + "a", a), Compare(root + "b", 0)])
    gone = store.commit([Delete(root + "a")], [Compare(root + "a", a), Compare(root + "b", b)])
    store.commit([Put(root + "a", "2")], [Compare(root + "a", 0)])
    assert contents(store, root, gone) == {"b": "1"}
    assert contents(store, root) == {"a": "2", "b": "1"}


def test_a_compare_that_fails_changes_nothing_and_names_the_key(store: Store, root: str) -> None:
    old = store.commit([Put(root + "a", "1"), Put(root + "gone", "1")])
    before = store.commit([Put(root + "a", "2"), Delete(root + "gone")])
    failing = {
        "a": Compare(root + "a", old),  # changed since
        "gone": Compare(root + "gone", old),  # deleted since
        "never": Compare(root + "never", old),
    }
    failing_absent = Compare(root + "a", 0)  # exists
    for compare in [*failing.values(), failing_absent]:
        holds = Compare(root + "a", before)
        with pytest.raises(ConflictError, match=compare.key) as caught:
            store.commit([Put(root + "b", "1"), Delete(root + "a")], [holds, compare])
        assert caught.value.hint
    assert contents(store, root) == {"a": "2"}
    assert store.read(root).revision == before


def test_a_prefix_that_nobody_has_written_to(store: Store, root: str) -> None:
    store.commit([Put(root + "in/a", "1"), Put(root + "in", "1")])
    seen = store.commit([Put(root + "in/b", "1")])
    store.commit([Put(root + "out", "1"), Put(root + "in0", "1")])
    compares = [Unwritten(root + "in/", seen), Unwritten(root + "none/", 0)]
    after = store.commit([Put(root + "x", "1")], compares)
    store.commit([Put(root + "in/a", "1")])
    for compares in (
        [Unwritten(root + "in/", seen)],
        [Compare(root + "x", after), Unwritten(root + "in/", after)],
        [Unwritten(root + "in/", 0), Compare(root + "x", after)],
    ):
        with pytest.raises(ConflictError, match="in/") as caught:
            store.commit([Put(root + "x", "2")], compares)
        assert caught.value.hint
    assert store.commit([Put(root + "x", "3")], [Unwritten(root + "in/", after + 1)]) == after + 2


@pytest.mark.parametrize(
    "keys", [["a", "a"], [""], ["b", ""]], ids=["twice", "empty", "one of them empty"]
)
def test_a_key_is_not_empty_and_comes_once(store: Store, root: str, keys: list[str]) -> None:
    before = store.read(root).revision
    with pytest.raises(ValueError, match="key"):
        store.commit([Put(root + key if key else "", "1") for key in keys])
    assert store.read(root).revision == before


def test_threads_that_share_a_client_lose_no_update(store: Store, root: str) -> None:
    def increment(_: int) -> int:
        while True:
            found = store.get(root + "n")
            value, revision = (int(found.value), found.mod_revision) if found else (0, 0)
            try:
                return store.commit([Put(root + "n", str(value + 1))], [Compare(root + "n", revision)])
            except ConflictError:
                continue

    with ThreadPoolExecutor(6) as pool:
        revisions = list(pool.map(increment, range(60)))
    assert contents(store, root) == {"n": "60"}
    assert len(set(revisions)) == 60


# Watches


def test_a_watch_resumes_from_any_revision(store: Store, root: str) -> None:
    start = store.read(root).revision
    revisions = [store.commit([Put(f"{root}k{i % 3}", str(i))]) for i in range(10)]
    for position, after in enumerate([start, *revisions]):
        with store.watch(root, after=after) as watch:
            store_events = take(watch, 10 - position)
            assert [int(event.value or "") for event in store_events] == list(range(position, 10))
            assert [event.revision for event in store_events] == revisions[position:]
            assert watch.next(timeout=0) is None


@pytest.mark.parametrize("timeout", [float("inf"), 1e10])
def test_a_watch_waits_as_long_as_it_is_told(store: Store, root: str, timeout: float) -> None:
    """Longer than a lock of Python's can."""
    with store.watch(root, after=store.read(root).revision) as watch:
        revision = store.commit([Put(root + "a", "1")])
        assert watch.next(timeout) == Batch(revision, (Event(root + "a", "1", revision),))


def test_a_watch_sees_what_others_commit_while_it_waits(store: Store, other: Store, root: str) -> None:
    for writer in (store, other):
        with store.watch(root, after=store.read(root).revision) as watch:
            assert watch.next(timeout=0.01) is None
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(watch.next, PATIENCE)
                revision = writer.commit([Put(root + "a", "1")])
                assert waiting.result() == Batch(revision, (Event(root + "a", "1", revision),))


def test_a_commit_comes_in_one_batch_and_deletions_without_value(store: Store, root: str) -> None:
    with store.watch(root, after=store.read(root).revision) as watch:
        first = store.commit([Put(f"{root}{i}", str(i)) for i in range(50)])
        batch = watch.next(PATIENCE)
        assert batch is not None
        assert batch.revision == first
        assert {(e.key.removeprefix(root), e.value, e.revision) for e in batch.events} == {
            (str(i), str(i), first) for i in range(50)
        }
        second = store.commit([Delete(root + "0"), Delete(root + "1"), Put(root + "2", "x")])
        batch = watch.next(PATIENCE)
        assert batch is not None
        assert {(e.key.removeprefix(root), e.value, e.revision) for e in batch.events} == {
            ("0", None, second),
            ("1", None, second),
            ("2", "x", second),
        }


def test_changes_outside_the_prefix_are_not_seen_but_counted(store: Store, root: str) -> None:
    with store.watch(root + "in/", after=store.read(root).revision) as watch:
        store.commit([Put(root + "in", "1"), Put(root + "in0", "1")])
        inside = store.commit([Put(root + "in/a", "1"), Put(root + "out", "1")])
        assert take(watch, 1) == [Event(root + "in/a", "1", inside)]
        outside = store.commit([Put(root + "out", "2")])
        batch = watch.next(timeout=0.01)
        assert batch is None or batch == Batch(outside, ())  # a driver may tell, or not
        last = store.commit([Put(root + "in/b", "1")])
        assert take(watch, 1) == [Event(root + "in/b", "1", last)]


def test_no_gap_and_no_duplicate_under_load(store: Store, other: Store, root: str) -> None:
    """Several watches, begun at different times, while two clients write from four threads."""
    start = store.read(root).revision
    writers, each = 4, 40

    def write(writer: int) -> None:
        client = (store, other)[writer % 2]
        for i in range(each):
            client.commit([Put(f"{root}{writer}", str(i)), Put(f"{root}{writer}/copy", str(i))])

    total = 2 * writers * each
    with ThreadPoolExecutor(writers + 3) as pool, ExitStack() as stack:
        clients = (store, other, store)
        watches = [stack.enter_context(c.watch(root, after=start)) for c in clients]
        seen = [pool.submit(take, watch, total) for watch in watches]
        for done in [pool.submit(write, writer) for writer in range(writers)]:
            done.result()
        histories = [future.result() for future in seen]
        assert all(watch.next(timeout=0.05) is None for watch in watches)
    for history in histories:
        revisions = [event.revision for event in history]
        assert revisions == sorted(revisions)
        assert len(set(revisions)) == writers * each
        for writer in range(writers):
            for key in (f"{root}{writer}", f"{root}{writer}/copy"):
                values = [event.value for event in history if event.key == key]
                assert values == [str(i) for i in range(each)]


def test_a_snapshot_and_a_watch_after_it_leave_no_gap(store: Store, other: Store, root: str) -> None:
    stop = threading.Event()

    def write() -> int:
        count = 0
        while not stop.is_set():
            other.commit([Put(root + "n", str(count := count + 1))])
        return count

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(10):
                snapshot = store.read(root)
                known = int(snapshot.items[0].value) if snapshot.items else 0
                with store.watch(root, after=snapshot.revision) as watch:
                    batch = watch.next(PATIENCE)
                assert batch is not None
                assert batch.events[0].value == str(known + 1)
        finally:
            stop.set()
        assert writing.result() >= 10


def test_next_returns_none_in_time_when_nothing_comes(store: Store, root: str) -> None:
    with store.watch(root, after=store.read(root).revision) as watch:
        begin = time.monotonic()
        assert watch.next(timeout=0) is None
        assert watch.next(timeout=0.1) is None
        assert 0.1 <= time.monotonic() - begin < PATIENCE


def test_close_ends_a_waiting_watch(store: Store, root: str) -> None:
    store.commit([Put(root + "a", "1")])
    watch = store.watch(root, after=store.read(root).revision - 1)
    seen: list[Batch] = []
    first = threading.Event()

    def follow() -> None:
        for batch in iterate(watch):
            seen.append(batch)
            first.set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert first.wait(PATIENCE)
    watch.close()
    watch.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert len(seen) == 1
    store.commit([Put(root + "a", "2")])
    assert watch.next(timeout=0) is None


def test_closing_the_store_ends_its_watches(store: Store, other: Store, root: str) -> None:
    watch = store.watch(root, after=store.read(root).revision)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watch.next)
        store.close()
        assert waiting.result(PATIENCE) is None
    store.close()
    for use in (
        lambda: store.read(root),
        lambda: store.get(root),
        lambda: store.commit([Put(root, "1")]),
        lambda: store.grant(1.0),
    ):
        with pytest.raises(StoreUnavailable):
            use()
    assert other.read(root).items == ()


# Leases


def test_a_lease_that_is_not_renewed_ends_and_takes_its_keys_along(
    driver: Driver, store: Store, other: Store, root: str
) -> None:
    lease = store.grant(driver.shortest_lease)
    assert lease > 0
    revision = store.commit(
        [Put(root + "a", "1", lease), Put(root + "b", "1", lease), Put(root + "c", "1")]
    )
    with other.watch(root, after=revision) as watch:
        events = take(watch, 2)
    assert {(e.key.removeprefix(root), e.value) for e in events} == {("a", None), ("b", None)}
    assert contents(store, root) == {"c": "1"}
    assert store.renew(lease) is False
    with pytest.raises(NotFoundError, match=str(lease)):
        store.commit([Put(root + "d", "1", lease)])
    assert contents(store, root) == {"c": "1"}


def test_a_lease_ends_without_anybody_watching(driver: Driver, store: Store, root: str) -> None:
    store.commit([Put(root + "a", "1", store.grant(driver.shortest_lease))])
    deadline = time.monotonic() + PATIENCE
    while store.get(root + "a") is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert contents(store, root) == {}


def test_a_lease_lives_while_it_is_renewed(driver: Driver, store: Store, root: str) -> None:
    lease = store.grant(2 * driver.shortest_lease)
    kept = store.commit([Put(root + "a", "1", lease)])
    end = time.monotonic() + 3 * driver.shortest_lease
    with store.watch(root, after=kept) as watch:
        while time.monotonic() < end:
            assert store.renew(lease) is True
            assert watch.next(timeout=driver.shortest_lease / 4) is None
        assert take(watch, 1)[0].value is None  # and no longer


def test_a_lease_outlives_the_client_that_got_it(
    driver: Driver, store: Store, other: Store, root: str
) -> None:
    lease = store.grant(60 * driver.shortest_lease)
    store.commit([Put(root + "a", "1", lease)])
    store.close()
    assert other.renew(lease) is True
    assert contents(other, root) == {"a": "1"}
    other.revoke(lease)


def test_revoke_deletes_the_keys_at_once(store: Store, other: Store, root: str) -> None:
    lease, another = store.grant(60), store.grant(60)
    assert lease != another
    revision = store.commit([Put(root + "a", "1", lease), Put(root + "b", "1", another)])
    store.revoke(lease)
    assert contents(other, root) == {"b": "1"}
    with other.watch(root, after=revision) as watch:
        assert [(e.key, e.value) for e in take(watch, 1)] == [(root + "a", None)]
    assert store.renew(lease) is False
    store.revoke(lease)
    assert store.renew(another) is True
    store.revoke(another)


def test_the_last_put_says_which_lease_a_key_has(store: Store, root: str) -> None:
    first, second = store.grant(60), store.grant(60)
    store.commit([Put(root + name, "1", first) for name in ("free", "moved", "stays")])
    store.commit([Put(root + "free", "2"), Put(root + "moved", "2", second)])
    store.revoke(first)
    assert contents(store, root) == {"free": "2", "moved": "2"}
    store.revoke(second)
    assert contents(store, root) == {"free": "2"}


def test_a_key_that_was_deleted_and_put_again_has_left_its_lease(store: Store, root: str) -> None:
    lease = store.grant(60)
    store.commit([Put(root + "a", "1", lease)])
    store.commit([Delete(root + "a")])
    before = store.commit([Put(root + "a", "2")])
    store.revoke(lease)
    assert contents(store, root) == {"a": "2"}
    assert store.read(root).revision == before


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan")])
def test_a_lease_needs_time(store: Store, ttl: float) -> None:
    with pytest.raises(ValueError, match="lease"):
        store.grant(ttl)
