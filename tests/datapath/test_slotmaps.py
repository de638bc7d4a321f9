"""Slot tables as somebody reads them while lbd swaps them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lb.core import moves
from lb.datapath import consts, slotmaps
from lb.datapath.bpf import Map
from lb.datapath.maps import Maps
from lb.datapath.slotmaps import Slots
from lb.errors import DatapathError
from lb.settings import Limits

SERVICE = 1


def all_to(backend: int) -> slotmaps.Encoded:
    backends = np.full(consts.SLOTS, backend, dtype=np.uint32)
    return slotmaps.encode(Slots(backends, moves.none(backends)))


def test_a_table_that_is_swapped_while_it_is_looked_for_is_read_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = Maps.create(Limits(services=8, backends=8)).tables
    slotmaps.swap(tables, {SERVICE: all_to(1)})
    by_id = Map.by_id
    looked_for: list[int] = []

    def swapped_before(number: int) -> Map:
        looked_for.append(number)
        if len(looked_for) == 1:
            slotmaps.swap(tables, {SERVICE: all_to(2)})
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:  # the kernel lets go of it some time later
                try:
                    by_id(number)
                except DatapathError:
                    break
        return by_id(number)

    monkeypatch.setattr(Map, "by_id", swapped_before)
    assert slotmaps.read_raw(tables, SERVICE) == all_to(2)
    assert len(set(looked_for)) == 2


def test_a_service_without_a_table_has_none() -> None:
    assert slotmaps.read_raw(Maps.create(Limits(services=8, backends=8)).tables, SERVICE) is None
