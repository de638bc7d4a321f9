import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.lab.fleet import Fleet

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
sys.path.insert(0, str(Path(__file__).parent))
from field import Field


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if "tests/fleet/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="network namespaces need root"))


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """One for all tests of this folder; it can stand beside a `make fleet`."""
    with Fleet(prefix="lbf-") as fleet:
        fleet.start()
        yield fleet


@pytest.fixture
def field(fleet: Fleet) -> Field:
    """As the test before has left it, if all nodes agree; with one service."""
    found = Field(fleet)
    found.prepare()
    found.agree()
    return found
