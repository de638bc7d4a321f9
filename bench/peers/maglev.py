"""Maglev's table: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
NSDI 2016, section 3.4.

Backend i prefers the slots permutation[i][j] = (offset + j * skip) mod M, for a prime M, with

    offset = h1(name[i]) mod M        skip = h2(name[i]) mod (M - 1) + 1

and the backends take turns, each filling the slot that it prefers most of those still empty.

With equal weights each round is one turn for everybody: the paper's version. For others the paper
says only that they "can be achieved by altering the relative frequency of the backends' turns". We do
what Katran does (katran/lib/MaglevHashV2.cpp; Envoy's maglev_lb.cc is alike): in each round a backend
earns its weight, and takes a turn, for the price of the greatest weight, when it can pay it.

`fill` is written to be read, and is what the tests are about; `table` is the same in C (native.c),
which is what is timed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.peers import native

SMALL, LARGE = 65537, 655373  # the paper's table sizes (section 5.3)


def preferences(names: Sequence[str], size: int) -> tuple[list[int], list[int]]:
    """Offset and skip of each backend. The paper leaves the two hash functions open; these are the
    halves of BLAKE2b-128."""
    offsets, skips = [], []
    for name in names:
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        offsets.append(int.from_bytes(digest[:8], "big") % size)
        skips.append(int.from_bytes(digest[8:], "big") % (size - 1) + 1)
    return offsets, skips


def fill(
    offsets: Sequence[int], skips: Sequence[int], size: int, weights: Sequence[int] | None = None
) -> list[int]:
    """The backend of each slot. `weights` None = everybody takes a turn in each round."""
    count = len(offsets)
    weights = weights or [1] * count
    price = max(weights)
    earned, following = [0] * count, [0] * count
    slots, filled = [-1] * size, 0
    while True:
        for i in range(count):
            earned[i] += weights[i]
            if earned[i] < price:
                continue
            earned[i] -= price
            slot = (offsets[i] + following[i] * skips[i]) % size
            while slots[slot] >= 0:
                following[i] += 1
                slot = (offsets[i] + following[i] * skips[i]) % size
            slots[slot] = i
            following[i] += 1
            filled += 1
            if filled == size:
                return slots


def table(names: Sequence[str], weights: Sequence[int], size: int) -> NDArray[np.int32]:
    """The index of the backend of each slot, shape (size,); weights are positive."""
    offsets, skips = preferences(names, size)
    found = native.maglev(offsets, skips, weights, size)
    return np.array(fill(offsets, skips, size, weights), dtype=np.int32) if found is None else found
