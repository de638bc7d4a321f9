"""What is SQLite's own: many processes, sudden death, compaction, clocks.

The promises that every driver keeps are in test_store_contract.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from lb.errors import (
    ConflictError,
    NotFoundError,
    RevisionCompacted,
)
from lb.store import sqlite as sqlite_module
from lb.store.base import Compare, Delete, Event, Put
from lb.store.sqlite import SqliteStore
from lb.store.sqlite_file import Clock

PATIENCE = 20.0


class FakeClock:
    """A boot and its clock, both set by hand."""

    def __init__(self) -> None:
        self.time = 1000.0

    def clock(self, boot: str = "first") -> Clock:
        return Clock(boot, lambda: self.time)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def values(store: SqliteStore, prefix: str = "", revision: int | None = None) -> dict[str, str]:
    return {item.key: item.value for item in store.read(prefix, revision=revision).items}


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def assert_sound(path: Path) -> None:
    """The file is whole, and its revisions are without gaps."""
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    ((compacted,),) = query(path, "SELECT compacted FROM history")
    assert isinstance(compacted, int)
    revisions = [row[0] for row in query(path, "SELECT DISTINCT revision FROM log ORDER BY 1")]
    kept = [revision for revision in revisions if isinstance(revision, int)]
    recent = [revision for revision in kept if revision > compacted]
    assert recent == list(range(compacted + 1, compacted + 1 + len(recent)))
    assert (
        query(
            path,
            "SELECT key, revision FROM live EXCEPT SELECT key, max(revision) FROM log GROUP BY key",
        )
        == []
    )


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process of its own: it has lb's store imported, and `path` in argv[1]."""
    prelude = (
        "import sys, time, json\n"
        "from lb.errors import ConflictError\n"
        "from lb.store.base import Compare, Delete, Put\n"
        "from lb.store.sqlite import SqliteStore\n"
        "store = SqliteStore(sys.argv[1])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", prelude + script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def output(child: subprocess.Popen[str]) -> str:
    text, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    return text


# Many processes

INCREMENT = """
for _ in range(int(sys.argv[2])):
    while True:
        found = store.get("n")
        value, revision = (int(found.value), found.mod_revision) if found else (0, 0)
        try:
            print(store.commit([Put("n", str(value + 1))], [Compare("n", revision)]))
            break
        except ConflictError:
            pass
"""


def test_processes_that_increment_lose_no_update(path: Path) -> None:
    """All of them also open the file at once, when there is none yet."""
    processes, each = 4, 40
    with ExitStack() as stack:
        children = [stack.enter_context(process(INCREMENT, path, each)) for _ in range(processes)]
        revisions = [int(line) for child in children for line in output(child).split()]
    assert sorted(revisions) == list(range(1, processes * each + 1))
    with SqliteStore(path) as store:
        assert values(store) == {"n": str(processes * each)}
    assert_sound(path)


WATCH = """
with store.watch("k/", after=int(sys.argv[2])) as watch:
    print("ready", flush=True)
    done = False
    while not done:
        batch = watch.next(20)
        print(json.dumps([batch.revision, [[e.key, e.value, e.revision] for e in batch.events]]))
        done = any(e.key == "k/end" for e in batch.events)
"""

WRITE = """
for i in range(int(sys.argv[3])):
    revision = store.commit([Put(f"k/{sys.argv[2]}", str(i)), Put(f"k/{i % 5}", sys.argv[2]),
                             Put("other", str(i))])
    print(revision)
"""


def test_watchers_in_other_processes_see_each_change_once(path: Path) -> None:
    writers, each = 2, 100
    with SqliteStore(path) as store, ExitStack() as stack:
        watchers = [stack.enter_context(process(WATCH, path, 0)) for _ in range(2)]
        for watcher in watchers:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "ready\n"
        children = [
            stack.enter_context(process(WRITE, path, f"writer{i}", each)) for i in range(writers)
        ]
        written = [int(line) for child in children for line in output(child).split()]
        end = store.commit([Put("k/end", "")])
        assert sorted(written) == list(range(1, end))
        truth = query(
            path, "SELECT key, value, revision FROM log WHERE key LIKE 'k/%' ORDER BY revision, key"
        )
        assert len(truth) == 2 * writers * each + 1
        for watcher in watchers:
            batches = [json.loads(line) for line in output(watcher).splitlines()]
            events = [tuple(event) for _, events in batches for event in events]
            assert [event[2] for event in events] == [row[2] for row in truth]
            assert sorted(events, key=lambda e: (e[2], e[0])) == truth
            # A commit is in one batch: none begins with the revision that the last one ended with.
            assert len(batches) > 1
            for (revision, before), (_, after) in pairwise(batches):
                assert before[-1][2] <= revision < after[0][2]


WRITE_UNTIL_KILLED = """
start = int(sys.argv[2])
for n in range(start, start + 1_000_000):
    if n % 3:
        store.commit([Put(f"same/{i}", str(n) + "x" * (n % 5000)) for i in range(4)])
    else:
        store.commit([Delete(f"same/{i}") for i in range(4)] + [Put("deleted", str(n))])
    print(n, flush=True)
"""


def test_kill_9_leaves_each_commit_whole_or_absent(path: Path) -> None:
    """And no commit that had returned is lost."""
    random_moment = random.Random(7)
    following, seen = 1, list[int]()
    with SqliteStore(path) as survivor, survivor.watch("", after=0) as watch:
        for _ in range(14):
            with process(WRITE_UNTIL_KILLED, path, following) as child:
                assert child.stdout is not None
                assert int(child.stdout.readline()) == following
                time.sleep(random_moment.uniform(0, 0.03))  # the moment of death, nothing else
                child.send_signal(signal.SIGKILL)
                acknowledged = [following, *map(int, child.stdout.read().split())]
                assert child.wait(PATIENCE) == -signal.SIGKILL
            for store in (survivor, SqliteStore(path)):
                now, revision = values(store), store.read("").revision
                assert revision in (acknowledged[-1], acknowledged[-1] + 1)
                same = {value for key, value in now.items() if key.startswith("same/")}
                if revision % 3:
                    assert same == {str(revision) + "x" * (revision % 5000)}
                    assert len([key for key in now if key.startswith("same/")]) == 4
                else:
                    assert not same
                    assert now["deleted"] == str(revision)
                if store is not survivor:
                    store.close()
            # After each of them: of 14 a fast disk takes more revisions than are kept.
            while not seen or seen[-1] < revision:
                batch = watch.next(PATIENCE)
                assert batch is not None
                seen += [event.revision for event in batch.events]
            following = revision + 1
        assert sorted(set(seen)) == list(range(1, revision + 1))
        assert seen == sorted(seen)
    assert_sound(path)


def test_a_process_killed_in_a_transaction_blocks_nobody(path: Path) -> None:
    script = 'with store._writing() as db: print("in it", flush=True); time.sleep(60)'
    with SqliteStore(path) as store, process(script, path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in it\n"
        child.kill()
        assert store.commit([Put("a", "1")]) == 1


# Noticing


def test_a_watch_hears_of_commits_without_polling(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "POLL_SECONDS", 1000.0)
    script = """for i in range(20): store.commit([Put("a", str(i))]); time.sleep(0.01)"""
    with SqliteStore(path) as store, store.watch("a", after=0) as watch:
        assert watch.next(timeout=0) is None
        begin = time.monotonic()
        with process(script, path) as child:
            seen: list[str | None] = []
            while len(seen) < 20:
                batch = watch.next(PATIENCE)
                assert batch is not None
                seen += [event.value for event in batch.events]
            output(child)
    assert seen == [str(i) for i in range(20)]
    assert time.monotonic() - begin < PATIENCE  # at the end of its patience, next() looks anyway


def test_a_commit_between_looking_and_waiting_is_not_missed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteStore(path) as store, store.watch("a", after=0) as watch:

        def commit_then_wait_long() -> float:  # called after looking, before waiting
            store.commit([Put("a", "1")])
            return 1000.0

        monkeypatch.setattr(store, "_pause", commit_then_wait_long)
        monkeypatch.setattr(sqlite_module, "ring", lambda _: None)
        begin = time.monotonic()
        assert watch.next(PATIENCE) is not None
        assert time.monotonic() - begin < PATIENCE


def test_a_watch_that_hears_nothing_still_looks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No inotify here, or the writer died between its commit and the bell."""

    def fail(*_: object) -> None:
        raise OSError("too many inotify instances")

    monkeypatch.setattr(sqlite_module, "Bell", fail)
    monkeypatch.setattr(sqlite_module, "ring", fail)
    with SqliteStore(path) as store, store.watch("a", after=0) as watch, SqliteStore(path) as other:
        for i in range(5):
            assert watch.next(timeout=0) is None
            other.commit([Put("a", str(i))])
            batch = watch.next(PATIENCE)
            assert batch is not None
            assert [event.value for event in batch.events] == [str(i)]


def test_progress_outside_the_prefix_is_told_only_at_the_timeout(path: Path) -> None:
    with SqliteStore(path) as store, store.watch("in/", after=0) as watch:
        revision = [store.commit([Put("out", str(i))]) for i in range(3)][-1]
        batch = watch.next(timeout=0)
        assert batch is not None
        assert (batch.revision, batch.events) == (revision, ())
        assert watch.next(timeout=0) is None


def test_a_long_backlog_comes_in_several_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "BATCH_REVISIONS", 10)
    with SqliteStore(path) as store, store.watch("a", after=0) as watch:
        for i in range(55):
            store.commit([Put("a" if i % 20 < 5 else "b", str(i))])
        batches = []
        while batch := watch.next(timeout=0):
            batches.append(batch)
    events = [event for batch in batches for event in batch.events]
    assert [event.revision for event in events] == [i + 1 for i in range(55) if i % 20 < 5]
    assert [batch.revision for batch in batches] == [10, 30, 50, 55]


# Compaction


def test_compaction_keeps_recent_history_and_every_latest_value(path: Path) -> None:
    with SqliteStore(path, history=10) as store:
        store.commit([Put("old", "stays"), Put("gone", "1")])
        store.commit([Delete("gone")])
        past = {}
        for i in range(100):
            revision = store.commit([Put(f"k{i // 2 % 3}", str(i))])
            past[revision] = values(store)
            oldest = max(3, revision - 10)
            assert values(store, revision=oldest) == past[oldest]
        newest = store.read("").revision
        assert newest == 102
        for revision in range(newest - 10, newest + 1):
            assert values(store, revision=revision) == past[revision]
        with pytest.raises(RevisionCompacted) as caught:
            store.read("", revision=newest - 11)
        assert caught.value.hint
        with store.watch("", after=newest - 10) as watch:
            batch = watch.next(timeout=0)
            assert batch is not None
            assert [event.revision for event in batch.events] == [*range(newest - 9, newest + 1)]
        with store.watch("", after=newest - 11) as watch, pytest.raises(RevisionCompacted):
            watch.next(timeout=0)
    # 10 revisions, and what the 4 keys were when they began.
    assert query(path, "SELECT count(*) FROM log") == [(14,)]
    assert_sound(path)


def test_a_watch_that_falls_behind_is_told(path: Path) -> None:
    with SqliteStore(path, history=10) as store, store.watch("", after=0) as watch:
        for i in range(20):
            store.commit([Put("a", str(i))])
        with pytest.raises(RevisionCompacted):
            watch.next(timeout=0)


def test_the_file_stops_growing(path: Path) -> None:
    def pages() -> object:
        return query(path, "PRAGMA page_count")

    with SqliteStore(path, history=50) as store:
        for i in range(300):
            store.commit([Put(f"k{i % 5}", "x" * 3000)])
        before = pages()
        for i in range(300):
            store.commit([Put(f"k{i % 5}", "x" * 3000)])
        assert pages() == before
    assert query(path, "SELECT count(*) FROM log")[0] < (60,)


# Reopening and leases


def test_everything_survives_reopening(path: Path) -> None:
    fake = FakeClock()
    with SqliteStore(path, clock=fake.clock()) as store:
        lease = store.grant(10)
        store.commit([Put("a", "1"), Put("leased", "1", lease)])
        store.commit([Put("a", "2")])
    fake.time += 9
    with SqliteStore(path, clock=fake.clock()) as store:
        assert values(store, revision=1) == {"a": "1", "leased": "1"}
        assert values(store) == {"a": "2", "leased": "1"}
        assert store.renew(lease)
        fake.time += 9
        assert store.commit([Put("b", "1")]) == 3
        assert values(store) == {"a": "2", "b": "1", "leased": "1"}
        fake.time += 1
        assert values(store) == {"a": "2", "b": "1"}


def test_a_reboot_ends_all_leases(path: Path) -> None:
    fake = FakeClock()
    with SqliteStore(path, clock=fake.clock()) as store:
        lease = store.grant(1000)
        store.commit([Put("a", "1", lease), Put("b", "1")])
    fake.time = 5.0  # the clock of the new boot has only just begun
    with SqliteStore(path, clock=fake.clock("second")) as store:
        assert values(store) == {"b": "1"}
        assert not store.renew(lease)


def test_setting_the_date_neither_ends_nor_extends_a_lease(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteStore(path) as store:
        store.commit([Put("a", "1", store.grant(60)), Put("b", "1")])
        short = store.commit([Put("short", "1", store.grant(0.5))])
        real, date = time.clock_gettime, time.time()
        for jump in (1e9, -1e9):

            def jumped(clock: int, jump: float = jump) -> float:
                return real(clock) + (0 if clock == time.CLOCK_BOOTTIME else jump)

            monkeypatch.setattr(time, "clock_gettime", jumped)
            monkeypatch.setattr(time, "time", lambda jump=jump: date + jump)
            assert values(store, "a") == {"a": "1"}
        with store.watch("short", after=short) as watch:
            assert watch.next(PATIENCE) is not None
        assert values(store) == {"a": "1", "b": "1"}


def test_an_expired_lease_ends_before_the_next_commit_is_judged(path: Path) -> None:
    fake = FakeClock()
    with SqliteStore(path, clock=fake.clock()) as store, store.watch("", after=0) as watch:
        lease = store.grant(10)
        held = store.commit([Put("lock", "mine", lease)])
        fake.time += 9.99
        with pytest.raises(ConflictError):
            store.commit([Put("lock", "yours")], [Compare("lock", 0)])
        fake.time += 0.01
        with pytest.raises(ConflictError):
            store.commit([Put("lock", "still mine")], [Compare("lock", held)])
        with pytest.raises(NotFoundError):
            store.commit([Put("x", "1", lease)])
        assert store.commit([Put("lock", "yours")], [Compare("lock", 0)]) == held + 2
        batch = watch.next(timeout=0)
        assert batch is not None
        assert batch.events == (
            Event("lock", "mine", held),
            Event("lock", None, held + 1),
            Event("lock", "yours", held + 2),
        )


def test_ids_of_ended_leases_do_not_come_back(path: Path) -> None:
    seen = set()
    for _ in range(3):
        with SqliteStore(path) as store:
            for _ in range(3):
                seen.add(lease := store.grant(60))
                store.revoke(lease)
    assert len(seen) == 9
