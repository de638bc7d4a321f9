"""How new slot tables get into the store, however large they are (lb/node/sharing.py)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from doubles import Small

from lb.core.state import DesiredState
from lb.model import keys
from lb.model.objects import TableDocument
from lb.node import sharing
from lb.node.sharing import Sharing
from lb.store.base import Put, Store
from lb.store.portions import BYTES_A_COMMIT


def table(service: str, runs: int) -> TableDocument:
    return TableDocument(
        service=service,
        backends=("b1", "b2"),
        parts={"stable": 100_000_000},
        runs=tuple((n % 2, 65536 // runs) for n in range(runs)),
    )


class Tables:
    """What nobody has stored yet, of these services."""

    def __init__(self, store: Store, tables: Collection[TableDocument]) -> None:
        self.store, self.tables = store, tables

    def unstored(self, _: DesiredState) -> dict[str, TableDocument]:
        return {t.path: t for t in self.tables if self.store.get(keys.table(t.path)) is None}

    def unneeded(self, _: DesiredState) -> list[str]:
        return []


class Counting(Small):
    """How many changes each commit had."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sizes: list[int] = []

    def commit(self, operations: Any, *compares: Any) -> int:
        self.sizes.append(len(operations))
        return super().commit(operations, *compares)


def share(store: Store, tables: Collection[TableDocument]) -> Tables:
    bases = Tables(store, tables)
    mine = Sharing(store, "n1", bases)  # type: ignore[arg-type]
    mine.plan(DesiredState(), 0.0)
    mine.share_if_due(DesiredState(), 1e9, held=False)
    return bases


def test_tables_are_stored_in_commits_of_a_size_that_etcd_takes(store: Store) -> None:
    tables = [table(f"s{n}", 8192) for n in range(50)]
    size = len(tables[0].model_dump_json())
    assert 50 * size > 1_572_864  # etcd's --max-request-bytes
    counting = Counting(store, 1_572_864)
    assert share(counting, tables).unstored(DesiredState()) == {}  # type: ignore[arg-type]
    assert counting.refused == 0
    assert max(counting.sizes) * size <= BYTES_A_COMMIT


def test_small_tables_are_stored_together(store: Store) -> None:
    counting = Counting(store, 1_572_864)
    share(counting, [table(f"s{n}", 2) for n in range(sharing.TABLES_A_COMMIT + 1)])  # type: ignore[arg-type]
    assert counting.sizes == [sharing.TABLES_A_COMMIT, 1]


def test_what_the_store_refuses_for_its_size_is_stored_in_halves(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """An etcd with a lower limit; and a table that is too large by itself keeps no other back."""
    tables = [table(f"s{n}", 64) for n in range(8)]
    tables[3] = table("s3", 4096)
    limit = 2 * len(tables[0].model_dump_json()) + 10
    small = Small(store, limit)
    mine = Sharing(small, "n1", Tables(store, tables))  # type: ignore[arg-type]
    for _ in range(3):  # as each time that tables are planned
        mine.plan(DesiredState(), 0.0)
        mine.share_if_due(DesiredState(), 1e9, held=False)
    assert set(mine.bases.unstored(DesiredState())) == {"s3"}
    [said] = [each.message for each in caplog.records if "s3" in each.message]
    assert "not stored" in said


def test_a_conflict_keeps_no_other_table_back(store: Store) -> None:
    store.commit([Put(keys.service("s1"), "{}")])  # changed since the state was read
    tables = [table(f"s{n}", 2) for n in range(3)]
    assert set(share(store, tables).unstored(DesiredState())) == {"s1"}
