import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lb.lab.lab import Lab

sys.path.insert(0, str(Path(__file__).parent))
from helpers import remove_all


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if "tests/lab/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="network namespaces need root"))


# One lab for all modules where it takes minutes to make another (tests/kernels).
@pytest.fixture(scope="session" if os.environ.get("LB_ONE_LAB") else "module")
def lab() -> Iterator[Lab]:
    """A lab for the tests of one module; it can stand beside a `make lab`."""
    with Lab(prefix="lbt-") as lab:
        yield lab


def hook_of(lab: Lab) -> str:
    """The hook of the lbd that runs, or ""."""
    if lab.lbd is None or lab.lbd.poll() is not None:
        return ""
    return lab.lbd_ready_line.partition("hook=")[2].partition(" ")[0]


@pytest.fixture
def node(lab: Lab) -> Iterator[Callable[[str], Lab]]:
    """Has lbd run with a hook and an empty store. It stays up for the next test, which saves
    compiling; whoever changes more than services must leave it as it was."""

    def start(hook: str = "auto") -> Lab:
        present = hook_of(lab)
        if present != hook.replace("auto", "xdp"):
            if present:
                lab.kill_lbd()
            lab.start_lbd(hook)
        return lab

    yield start
    if not hook_of(lab):
        lab.start_lbd()
    remove_all(lab)


@pytest.fixture
def running(node: Callable[[str], Lab]) -> Lab:
    """lbd runs, with the hook that it chose."""
    return node("auto")
