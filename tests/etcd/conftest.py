"""A real etcd, one or three members, for each test that needs its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.lab.etcd import Etcd


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd") as etcd:
        yield etcd


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd", size=3) as cluster:
        yield cluster
