"""Weighted rendezvous hashing (highest random weight) as a table.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on
Networking 6(1), 1998, is the method; the weights are those of Schindelhauer and Schomaker, "Weighted
distributed hash tables", SPAA 2005 (the logarithmic method): slot s goes to the backend with the least
-ln(u) / weight, where u is a uniform hash of backend and slot. As these are exponential random
variables with rate `weight`, each backend wins with a probability that is exactly its share; and a
change of one backend moves only slots to it or away from it. It is even on average only.

`fill` is NumPy; `table` is the same in C (native.c) where there is a compiler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.peers import native
from lb.core.flowhash import mix_words

U64 = NDArray[np.uint64]


def keys(names: Sequence[str]) -> U64:
    """64 bits for each backend."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)


def fill(backend_keys: U64, weights: Sequence[int], size: int) -> NDArray[np.int32]:
    """The index of the backend of each slot."""
    slots = mix_words(np.arange(1, size + 1, dtype=np.uint64))
    best = np.full(size, np.inf)
    owner = np.zeros(size, dtype=np.int32)
    for i, (key, weight) in enumerate(zip(backend_keys, weights, strict=True)):
        uniform = ((mix_words(slots ^ key) >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
        score = -np.log(uniform) / weight
        better = score < best
        best[better] = score[better]
        owner[better] = i
    return owner


def table(names: Sequence[str], weights: Sequence[int], size: int) -> NDArray[np.int32]:
    """The index of the backend of each slot, shape (size,); weights are positive."""
    found = native.rendezvous(keys(names), weights, size)
    return fill(keys(names), weights, size) if found is None else found
