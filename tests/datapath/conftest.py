"""Both programs, compiled once, in a network namespace of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from . import harness, netns

EGRESS = frozenset({netns.LO, netns.A, netns.B, netns.C})


@pytest.fixture(scope="session")
def namespace() -> Iterator[netns.Namespace]:
    if os.geteuid():
        pytest.skip("needs root: programs are loaded into the kernel")
    space = netns.Namespace()
    with space:
        harness.allow_xdp_runs([netns.A])
    yield space
    space.close()


@pytest.fixture(autouse=True)
def _inside(namespace: netns.Namespace) -> Iterator[None]:
    with namespace:
        yield


@pytest.fixture(scope="session")
def kernels(namespace: netns.Namespace) -> Iterator[dict[str, harness.Kernel]]:
    """The XDP and the tc program, each with maps of its own."""
    with namespace, ExitStack() as stack:
        loaded = {h: stack.enter_context(harness.load(h, EGRESS)) for h in ("xdp", "tc")}
        yield loaded
