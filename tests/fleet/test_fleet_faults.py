"""What can happen to a fleet, with traffic flowing: no request may fail. `make check-fleet` does the
same, for longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from field import Field

from lb.lab.fleet_topology import OTHER_VIP4
from lb.lab.steady import Requests
from lb.lab.topology import VIP4, Address


@pytest.fixture
def requests(field: Field) -> Iterator[Requests]:
    """Flowing during the test; none may have failed at its end."""
    yield from _flowing(field, VIP4)


@pytest.fixture
def still_requests(field: Field) -> Iterator[Requests]:
    """The same, to a service whose slots have not moved."""
    field.add_still()
    yield from _flowing(field, OTHER_VIP4)


def _flowing(field: Field, address: Address) -> Iterator[Requests]:
    with field.traffic(address) as found:
        yield found
    assert found.failed == 0, found.failures
    assert found.total > 10


under_way = pytest.mark.usefixtures("requests")
still_under_way = pytest.mark.usefixtures("still_requests")


@under_way
def test_the_leader_of_etcd_is_killed(field: Field) -> None:
    faults.leader_killed(field)


@under_way
def test_etcd_loses_its_majority_and_finds_it_again(field: Field) -> None:
    faults.quorum_lost(field, 6)


@under_way
def test_all_of_etcd_is_frozen(field: Field) -> None:
    faults.etcd_frozen(field, 6)


@under_way
def test_one_member_is_frozen(field: Field) -> None:
    faults.member_frozen(field, 3)


@under_way
def test_lbd_of_one_node_is_killed_and_comes_back(field: Field) -> None:
    faults.lbd_killed(field)


@under_way
def test_wait_does_not_return_before_a_node_that_hangs(field: Field) -> None:
    faults.lbd_frozen(field)


@under_way
def test_a_node_loses_touch_with_etcd_and_learns_later_what_was_deleted(field: Field) -> None:
    faults.partitioned(field, 0)


@under_way
def test_a_node_that_was_cut_off_during_a_compaction_learns_it_too(field: Field) -> None:
    faults.compacted_while_cut_off(field)


@still_under_way
def test_a_node_is_withdrawn_and_its_connections_go_on_by_the_others(field: Field) -> None:
    faults.node_withdrawn(field, 200)


@still_under_way
def test_a_node_is_withdrawn_just_after_a_change(field: Field) -> None:
    """What a node alone knows is lost with it: the connections that began in a slot that had just moved.
    About a tenth of the slots moves here, and a third of the connections or more changes its node."""
    older, younger = faults.node_withdrawn_after_a_change(field, 400)
    assert older == 200  # they are where their slot was before: all nodes know that
    assert 140 < younger < 200


@still_under_way
def test_a_node_is_lost_with_all_that_runs_on_it(field: Field) -> None:
    faults.node_lost(field, 200)


@under_way
def test_three_writers_at_once_lose_no_update(field: Field) -> None:
    faults.many_writers(field, 150, 3)


@under_way
def test_rubbish_at_100_keys_a_second(field: Field) -> None:
    faults.rubbish_written(field, 4)


@under_way
def test_etcd_is_restored_from_a_backup(field: Field, tmp_path: Path) -> None:
    faults.restored_from_backup(field, tmp_path)


@under_way
def test_all_of_etcd_is_lost(field: Field) -> None:
    faults.all_lost(field)


@under_way
def test_the_clock_of_a_node_jumps(field: Field, tmp_path: Path) -> None:
    faults.clock_jumped(field, tmp_path)
