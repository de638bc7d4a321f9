"""What happens to the servers, and what the store makes of it: all on real etcd processes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lb.errors import CapacityError, ConflictError, RevisionCompacted, StoreUnavailable
from lb.lab import shell
from lb.lab.etcd import Etcd
from lb.lab.shell import wait_until
from lb.store import etcd_watch
from lb.store.base import Compare, Delete, Event, Put, Store, Watch
from lb.store.etcd import EtcdStore
from lb.store.etcd_client import Credentials

PATIENCE = 20.0


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[EtcdStore]:
    """Of `cluster` if the test asks for that, else of `etcd`."""
    name = "cluster" if "cluster" in request.fixturenames else "etcd"
    etcd: Etcd = request.getfixturevalue(name)
    with EtcdStore(etcd.endpoints, Credentials(), timeout=3.0) as store:
        yield store


def patiently(call: Callable[[], object]) -> None:
    """Until the store is there (again)."""

    def done() -> bool:
        try:
            call()
        except StoreUnavailable:
            return False
        return True

    wait_until("the store", done, timeout=PATIENCE)


def follow(watch: Watch, last: str) -> list[Event]:
    """Events until the value `last` comes, whatever happens to the servers meanwhile."""
    events: list[Event] = []
    deadline = time.monotonic() + 2 * PATIENCE * shell.PATIENCE
    while not events or events[-1].value != last:
        assert time.monotonic() < deadline, f"no more after {events[-3:]}"
        try:
            batch = watch.next(timeout=1.0)
        except StoreUnavailable:
            continue
        if batch is not None:
            events += batch.events
    return events


class Writer:
    """Counts up one key, as fast as it can, and remembers what is stored for sure."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._stop = threading.Event()
        self.count = 0

    def run(self) -> int:
        while not self._stop.is_set():
            try:
                self._store.commit([Put(self._key, str(self.count + 1)), Put(self._key + "/copy", "")])
            except StoreUnavailable:
                patiently(self._look)
                continue
            self.count += 1
        return self.count

    def _look(self) -> None:
        found = self._store.get(self._key)
        self.count = int(found.value) if found else 0

    def stop(self) -> None:
        self._stop.set()


# A server that dies, is frozen, or loses touch with the others


def test_a_watch_goes_on_when_its_server_was_killed_and_came_back(etcd: Etcd, store: EtcdStore) -> None:
    before = store.commit([Put("/t/a", "1")])
    with store.watch("/t/", after=before - 1) as watch, ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow, watch, "3")
        wait_until("the watch", lambda: watch._position == before, timeout=PATIENCE)
        etcd.stop()
        with pytest.raises(StoreUnavailable) as caught:
            store.read("/t/")
        assert caught.value.hint
        etcd.start()
        patiently(lambda: store.commit([Put("/t/a", "2")]))
        last = store.commit([Put("/t/a", "3")])
        events = following.result()
    assert [event.value for event in events] == ["1", "2", "3"]
    assert events[-1].revision == last


def test_nothing_is_missed_or_doubled_while_leaders_die(cluster: Etcd, store: EtcdStore) -> None:
    """Written through one client, watched through another, and each leader is killed in turn."""
    writer = Writer(store, "/t/n")
    with (
        EtcdStore(cluster.endpoints, Credentials(), timeout=3.0) as other,
        other.watch("/t/", after=store.read("/t/").revision) as watch,
        ThreadPoolExecutor(2) as pool,
    ):
        following = pool.submit(follow, watch, "end")
        writing = pool.submit(writer.run)
        for _ in range(3):
            victim = cluster.leader()
            count = writer.count
            wait_until("writes", lambda c=count: writer.count >= c + 50, timeout=PATIENCE)
            victim.kill()
            patiently(lambda: other.commit([Put("/t/alive", "")]))
            cluster.start([victim])
        writer.stop()
        count = writing.result()
        patiently(lambda: store.commit([Put("/t/n", "end")]))
        events = following.result()
    values = [event.value for event in events if event.key == "/t/n"]
    assert values == [*(str(n) for n in range(1, count + 1)), "end"]
    assert len([event for event in events if event.key == "/t/n/copy"]) == count
    revisions = [event.revision for event in events]
    assert revisions == sorted(revisions)


def test_calls_go_to_the_next_member_when_one_is_dead_or_frozen(cluster: Etcd, store: EtcdStore) -> None:
    first, second, _ = cluster.members
    assert store.members.current.endpoint == first.endpoint
    store.commit([Put("/t/a", "1")])
    first.kill()
    assert [item.value for item in store.read("/t/").items] == ["1"]
    store.commit([Put("/t/a", "2")])
    cluster.start([first])
    while store.members.current.endpoint != second.endpoint:
        store.members.leave(store.members.current)
    store.get("/t/a")
    second.signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        found = store.get("/t/a")
        assert found is not None
        assert found.value == "2"
        assert time.monotonic() - begin < store.members.timeout
    finally:
        second.signal(signal.SIGCONT)


def test_a_commit_is_not_lost_in_a_frozen_member(cluster: Etcd, store: EtcdStore) -> None:
    first = cluster.members[0]
    revision = store.commit([Put("/t/a", "1")])
    first.signal(signal.SIGSTOP)
    try:
        # Long enough ago for the member to be asked first: so there is no doubt what was done.
        store.members.connections[0].heard -= 10
        patiently(lambda: store.commit([Put("/t/a", "2")], [Compare("/t/a", revision)]))
    finally:
        first.signal(signal.SIGCONT)
    found = store.get("/t/a")
    assert found is not None
    assert found.value == "2"


def test_a_watch_leaves_a_frozen_member(cluster: Etcd, store: EtcdStore) -> None:
    first = cluster.members[0]
    before = store.commit([Put("/t/a", "1")])
    with (
        store.watch("/t/", after=before - 1) as watch,
        EtcdStore(cluster.endpoints[1:], Credentials()) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        following = pool.submit(follow, watch, "2")
        wait_until("the watch", lambda: watch._position == before, timeout=PATIENCE)
        assert watch._member is store.members.connections[0]
        first.signal(signal.SIGSTOP)
        try:
            frozen = time.monotonic()
            other.commit([Put("/t/a", "2")])
            events = following.result()
            waited = time.monotonic() - frozen
        finally:
            first.signal(signal.SIGCONT)
    assert [event.value for event in events] == ["1", "2"]
    assert waited < etcd_watch.PULSE_SECONDS + 2 * store.members.one_try() + 1


def test_a_frozen_server_is_noticed_and_returned_to(etcd: Etcd, store: EtcdStore) -> None:
    revision = store.commit([Put("/t/a", "1")])
    with store.watch("/t/", after=revision) as watch:
        assert watch.next(timeout=0.1) is None
        etcd.members[0].signal(signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(StoreUnavailable):
            watch.next()
        assert time.monotonic() - begin < etcd_watch.PULSE_SECONDS + 3 * store.members.timeout
        begin = time.monotonic()
        with pytest.raises(StoreUnavailable):  # and whoever else asks is told soon
            store.read("/t/")
        assert time.monotonic() - begin < store.members.timeout / 2
        etcd.members[0].signal(signal.SIGCONT)
        patiently(lambda: store.commit([Put("/t/a", "2")]))
        assert [event.value for event in follow(watch, "2")] == ["2"]


def test_a_member_without_the_majority_says_nothing(cluster: Etcd, store: EtcdStore) -> None:
    """Neither an old value as the present one, nor silence as if all were well."""
    store.commit([Put("/t/a", "1")])
    with store.watch("/t/", after=store.read("/t/").revision) as watch:
        assert watch.next(timeout=0.1) is None
        for member in cluster.members[1:]:
            member.kill()
        with pytest.raises(StoreUnavailable):
            store.read("/t/")
        with pytest.raises(StoreUnavailable):
            watch.next()
        with pytest.raises(StoreUnavailable):
            store.commit([Put("/t/a", "2")])
        cluster.start(cluster.members[1:])
        patiently(lambda: store.commit([Put("/t/a", "3")]))
        assert follow(watch, "3")[-1].value == "3"


def test_a_stream_that_has_stalled_is_begun_anew(
    store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that lives and brings nothing, while its server answers everything else."""
    monkeypatch.setattr(etcd_watch, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(etcd_watch, "PULSE_SECONDS", 0.1)
    revision = store.commit([Put("/t/a", "1")])
    with store.watch("/t/", after=revision) as watch:
        assert watch.next(timeout=0.05) is None
        stalled = watch._stream
        assert stalled is not None
        monkeypatch.setattr(stalled, "take", lambda timeout: time.sleep(max(0.0, timeout)))
        store.commit([Put("/t/a", "2")])
        assert [event.value for event in follow(watch, "2")] == ["2"]
        assert watch._stream is not stalled


# History


def test_what_was_compacted_can_not_be_read_or_watched(etcd: Etcd, store: EtcdStore) -> None:
    revisions = [store.commit([Put("/t/a", str(n))]) for n in range(10)]
    etcd.ctl("compact", str(revisions[5]))
    with pytest.raises(RevisionCompacted) as caught:
        store.read("/t/", revision=revisions[3])
    assert caught.value.hint
    assert store.read("/t/", revision=revisions[5]).items[0].value == "5"
    with store.watch("/t/", after=revisions[2]) as watch, pytest.raises(RevisionCompacted) as caught:
        watch.next(PATIENCE)
    assert caught.value.hint
    with store.watch("/t/", after=revisions[5]) as watch:
        assert [event.value for event in follow(watch, "9")] == ["6", "7", "8", "9"]


def test_compaction_while_the_server_is_away_is_said(etcd: Etcd, store: EtcdStore) -> None:
    revision = store.commit([Put("/t/a", "1")])
    with store.watch("/t/", after=revision) as watch:
        assert watch.next(timeout=0.1) is None
        etcd.members[0].signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable):
            watch.next()
        etcd.members[0].signal(signal.SIGCONT)
        with EtcdStore(etcd.endpoints, Credentials()) as other:
            for n in range(5):
                last = other.commit([Put("/t/a", str(n))])
            etcd.ctl("compact", str(last))
            with pytest.raises(RevisionCompacted):
                follow(watch, "never")


def test_a_cluster_that_was_restored_from_a_backup_is_told_from_the_one_before(
    etcd: Etcd, store: EtcdStore, tmp_path: Path
) -> None:
    store.commit([Put("/t/a", "old")])
    backup = tmp_path / "backup.db"
    etcd.ctl("snapshot", "save", str(backup))
    for n in range(5):
        store.commit([Put("/t/a", str(n))])
    before = store.read("/t/")
    with store.watch("/t/", after=before.revision) as watch:
        assert watch.next(timeout=0.1) is None
        etcd.stop()
        etcd.restore(backup)
        patiently(lambda: store.read("/t/"))
        after = store.read("/t/")
        assert after.items[0].value == "old"
        # etcd makes a cluster's id from names and addresses: after this restore it is the same.
        assert (after.cluster, after.revision < before.revision) == (before.cluster, True)
        with pytest.raises(RevisionCompacted):
            watch.next(PATIENCE)


def test_another_cluster_at_the_same_address_is_noticed(
    etcd: Etcd, store: EtcdStore, tmp_path: Path
) -> None:
    revision = store.commit([Put("/t/a", "1")])
    before = store.read("/t/")
    with store.watch("/t/", after=revision) as watch, Etcd(tmp_path / "another") as another:
        assert watch.next(timeout=0.1) is None
        with EtcdStore(another.endpoints, Credentials()) as stranger:
            for n in range(20):
                stranger.commit([Put("/t/a", str(n))])
        etcd.stop()
        another.stop()
        another.members[0].client_port = etcd.members[0].client_port
        another.start()
        patiently(lambda: store.read("/t/"))
        after = store.read("/t/")
        assert after.cluster != before.cluster
        assert after.revision > before.revision
        with pytest.raises(RevisionCompacted, match="another"):
            watch.next(PATIENCE)


# What is too much for one transaction


def test_a_commit_of_thousands_is_one_revision(store: EtcdStore) -> None:
    lock = store.commit([Put("/t/lock", "1")])
    puts = [Put(f"/t/k/{n:04}", str(n)) for n in range(4000)]
    with store.watch("/t/k/", after=lock) as watch:
        revision = store.commit(puts, [Compare("/t/lock", lock)])
        batch = watch.next(PATIENCE)
    assert batch is not None
    assert {event.revision for event in batch.events} == {revision}
    assert len(batch.events) == 4000
    assert len(store.read("/t/k/").items) == 4000
    changed = store.commit([Put("/t/lock", "2")])
    with pytest.raises(ConflictError, match="/t/lock"):
        store.commit([Delete(put.key) for put in puts], [Compare("/t/lock", lock)])
    assert len(store.read("/t/k/").items) == 4000
    assert store.commit([Delete(put.key) for put in puts]) == changed + 1
    assert store.read("/t/k/").items == ()


@pytest.mark.parametrize("operations", [1, 300])
def test_more_compares_than_etcd_takes_are_refused_and_nothing_is_changed(
    store: EtcdStore, operations: int
) -> None:
    before = store.read("/t/").revision
    compares = [Compare(f"/t/{n}", 0) for n in range(129)]
    with pytest.raises(CapacityError) as caught:
        store.commit([Put(f"/t/{n}", "") for n in range(operations)], compares)
    assert "--max-txn-ops" in caught.value.hint
    assert store.read("/t/").revision == before


def test_a_value_that_is_too_large_is_refused(store: EtcdStore) -> None:
    for size in (1_600_000, 5_000_000):  # etcd's own limit, and that of its gRPC server
        with pytest.raises(CapacityError) as caught:
            store.commit([Put("/t/a", "x" * size)])
        assert "--max-request-bytes" in caught.value.hint
    assert store.read("/t/").items == ()


def test_what_others_write_need_not_be_text(store: EtcdStore) -> None:
    from lb.store.etcd_package import rpc

    request = rpc.PutRequest(key=b"/t/\xff\xfe", value=b"\x80\x00\xff")
    store.members.connections[0]._client.kvstub.Put(request)
    (item,) = store.read("/t/").items
    assert (item.key, item.value) == ("/t/\ufffd\ufffd", "\ufffd\x00\ufffd")


def test_a_large_state_is_read_whole(store: EtcdStore) -> None:
    """More than the 4 MB that a gRPC client takes unless told otherwise."""
    for part in range(8):
        store.commit([Put(f"/t/{part}/{n}", "x" * 100_000) for n in range(10)])
    assert sum(len(item.value) for item in store.read("/t/").items) == 8_000_000


def test_a_slow_reader_holds_up_nobody(store: EtcdStore) -> None:
    """etcd3 calls all its watchers back on one thread; ours are apart."""
    revision = store.read("/t/").revision
    with store.watch("/t/", after=revision) as slow, store.watch("/t/", after=revision) as fast:
        assert slow.next(timeout=0.1) is None
        for n in range(100):
            store.commit([Put("/t/a", str(n))])
            assert follow(fast, str(n))[-1].value == str(n)
        assert len(follow(slow, "99")) == 100
