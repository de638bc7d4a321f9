import os
from collections.abc import Iterator

import pytest

from lb.lab.lab import Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if "tests/lab/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="network namespaces need root"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab for the tests of one module; it can stand beside a `make lab`."""
    with Lab(prefix="lbt-") as lab:
        yield lab
