"""The embedded store against dictionaries: whatever the order of calls, they agree."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lb.errors import ConflictError, RevisionCompacted
from lb.store.base import Compare, Delete, Put
from lb.store.sqlite import SqliteStore
from lb.store.sqlite_file import Clock

KEYS = st.sampled_from(["a", "a/", "a/1", "a/%", "b", "é"])


class AgainstModel(RuleBasedStateMachine):
    """The store does what dictionaries do, whatever the order of calls."""

    HISTORY = 8

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.time = 1000.0
        self.open()
        self.past: list[dict[str, tuple[str, int]]] = [{}]  # by revision
        self.holder: dict[str, int] = {}  # key -> lease
        self.leases: dict[int, float] = {}  # lease -> deadline
        self.ended = [12345]
        self.ttl: dict[int, int] = {}

    @initialize()
    def watch_all(self) -> None:
        self.watch, self.watched = self.store.watch("a", after=0), 0

    def open(self) -> None:
        path = Path(self.directory.name) / "store.db"
        self.store = SqliteStore(path, history=self.HISTORY, clock=Clock("boot", lambda: self.time))

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    @property
    def oldest(self) -> int:
        return max(0, len(self.past) - 1 - self.HISTORY)

    def apply(self, changes: dict[str, str | None]) -> None:
        now = dict(self.past[-1])
        for key, value in changes.items():
            if value is None:
                now.pop(key, None)
            else:
                now[key] = value, len(self.past)
        if any(value is not None or key in self.past[-1] for key, value in changes.items()):
            self.past.append(now)

    def end(self, leases: list[int]) -> None:
        keys = [key for key, lease in self.holder.items() if lease in leases]
        for lease in leases:
            if self.leases.pop(lease, None) is not None:
                self.ended.append(lease)
        for key in keys:
            del self.holder[key]
        self.apply(dict.fromkeys(keys))

    @rule(
        changes=st.dictionaries(KEYS, st.none() | st.text(max_size=3), max_size=3),
        compares=st.lists(st.tuples(KEYS, st.booleans()), max_size=2),
        choice=st.none() | st.integers(0, 20),
    )
    def commit(
        self,
        changes: dict[str, str | None],
        compares: list[tuple[str, bool]],
        choice: int | None,
    ) -> None:
        leases = sorted(self.leases)
        lease = leases[choice % len(leases)] if choice is not None and leases else None
        found = {key: self.past[-1].get(key, ("", 0))[1] for key, _ in compares}
        operations = [
            Delete(key) if value is None else Put(key, value, lease) for key, value in changes.items()
        ]
        conditions = [Compare(key, found[key] + (not holds)) for key, holds in compares]
        if not all(holds for _, holds in compares):
            with pytest.raises(ConflictError):
                self.store.commit(operations, conditions)
            return
        self.apply(changes)
        for key, value in changes.items():
            self.holder.pop(key, None)
            if value is not None and lease is not None:
                self.holder[key] = lease
        assert self.store.commit(operations, conditions) == len(self.past) - 1

    @rule(ttl=st.integers(1, 10))
    def grant(self, ttl: int) -> None:
        lease = self.store.grant(ttl)
        assert lease not in self.leases
        assert lease not in self.ended
        self.leases[lease] = self.time + ttl
        self.ttl[lease] = ttl

    @rule(choice=st.integers(0, 20), revoke=st.booleans())
    def renew_or_revoke(self, choice: int, revoke: bool) -> None:
        every = sorted([*self.leases, *self.ended])
        lease = every[choice % len(every)]
        if revoke:
            self.store.revoke(lease)
            self.end([lease])
            return
        assert self.store.renew(lease) is (lease in self.leases)
        if lease in self.leases:
            self.leases[lease] = self.time + self.ttl[lease]

    @rule(seconds=st.integers(1, 5))
    def let_time_pass(self, seconds: int) -> None:
        self.time += seconds
        self.end([lease for lease, end in self.leases.items() if end <= self.time])

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()
        self.watch = self.store.watch("a", after=self.watched)

    @precondition(lambda self: len(self.past) > 1)
    @rule()
    def follow(self) -> None:
        if self.watched < self.oldest:
            with pytest.raises(RevisionCompacted):
                self.watch.next(timeout=0)
            self.watched = len(self.past) - 1
            self.watch = self.store.watch("a", after=self.watched)
            return
        expected: list[tuple[str, str | None, int]] = []
        for revision in range(self.watched + 1, len(self.past)):
            before, after = self.past[revision - 1], self.past[revision]
            for key in sorted({*before, *after}):
                if key.startswith("a") and before.get(key) != after.get(key):
                    expected.append((key, after[key][0] if key in after else None, revision))
        batch = self.watch.next(timeout=0)
        events = batch.events if batch else ()
        assert sorted((e.revision, e.key) for e in events) == sorted((r, k) for k, _, r in expected)
        assert {(e.key, e.value, e.revision) for e in events} == set(expected)
        self.watched = len(self.past) - 1

    @rule(prefix=st.sampled_from(["", "a", "a/", "a/%", "é", "z"]), back=st.integers(0, 12))
    def read(self, prefix: str, back: int) -> None:
        revision = len(self.past) - 1 - back
        if revision < self.oldest:
            with pytest.raises(RevisionCompacted):
                self.store.read(prefix, revision=revision)
            return
        expected = sorted(
            (key, value, changed)
            for key, (value, changed) in self.past[revision].items()
            if key.startswith(prefix)
        )
        found = self.store.read(prefix, revision=revision)
        assert [(i.key, i.value, i.mod_revision) for i in found.items] == expected

    @invariant()
    def the_present_is_the_model(self) -> None:
        snapshot = self.store.read("")
        assert snapshot.revision == len(self.past) - 1
        assert {i.key: (i.value, i.mod_revision) for i in snapshot.items} == self.past[-1]


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
