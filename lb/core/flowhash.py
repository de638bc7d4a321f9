"""The flow hash: which of a service's 65,536 slots a packet belongs to.

Bit-identical to xdp/include/lb_hash.h (tests/datapath proves it), so that `lbctl trace` and the
reference model say what the kernel does.

The hash chains SplitMix64's finaliser over what it absorbs:

    h = seed[0]
    h = mix(h ^ word)          IPv6: for each 64-bit word of the client's address, in network order
    h = mix(h ^ ports)         source port << 16 | destination port, or 0 with affinity `client`;
                               and in IPv4 the client's address << 32
    slot = mix(h ^ seed[1]) & 0xffff

All are numbers, not bytes in memory, so that machines of either byte order agree.

`mix` is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, OOPSLA 2014) with the constants of Stafford's variant 13. It is a bijection that spreads
each input bit over all output bits. The seed's halves stand before the first round and before the
last one: without them neither slots nor collisions can be foretold.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lb.core.slots import SLOTS
from lb.model.objects import Address, Affinity

Seed: TypeAlias = tuple[int, int]  # two 64-bit numbers

_MASK64 = (1 << 64) - 1
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def mix(x: int) -> int:
    """SplitMix64's finaliser, on a 64-bit number."""
    x = (x ^ x >> 30) * _MULTIPLIER_1 & _MASK64
    x = (x ^ x >> 27) * _MULTIPLIER_2 & _MASK64
    return x ^ x >> 31


def slot(seed: Seed, client: Address, sport: int, dport: int, affinity: Affinity) -> int:
    """The slot of a packet from `client`:`sport` to port `dport` of the VIP."""
    last = sport << 16 | dport if affinity is Affinity.FLOW else 0
    h = seed[0]
    if client.version == 4:
        last |= int(client) << 32
    else:
        h = mix(mix(h ^ int(client) >> 64) ^ int(client) & _MASK64)
    h = mix(h ^ last)
    return mix(h ^ seed[1]) % SLOTS


def parse_seed(text: str) -> Seed:
    """The two halves of a seed that is written as 32 hexadecimal digits (ClusterConfig.seed)."""
    return int(text[:16], 16), int(text[16:], 16)


Words: TypeAlias = npt.NDArray[np.uint64]


def mix_words(x: Words) -> Words:
    """`mix` on each element of an array of 64-bit words."""
    # Unsigned arrays wrap around modulo 2**64, which is what the algorithm wants.
    x = (x ^ x >> np.uint64(30)) * np.uint64(_MULTIPLIER_1)
    x = (x ^ x >> np.uint64(27)) * np.uint64(_MULTIPLIER_2)
    return x ^ x >> np.uint64(31)


def slots(
    seed: Seed,
    clients: Words,
    sports: npt.NDArray[np.integer],
    dports: npt.NDArray[np.integer],
    affinity: Affinity,
) -> npt.NDArray[np.uint16]:
    """`slot` of many packets at once.

    `clients` has one row per packet: the IPv4 address as a number (shape `(n,)`), or the upper and
    the lower half of the IPv6 address (shape `(n, 2)`).
    """
    h = np.full(len(clients), seed[0], dtype=np.uint64)
    if clients.ndim == 1:
        h ^= clients.astype(np.uint64) << np.uint64(32)
    else:
        h = mix_words(mix_words(h ^ clients[:, 0].astype(np.uint64)) ^ clients[:, 1].astype(np.uint64))
    if affinity is Affinity.FLOW:
        h ^= sports.astype(np.uint64) << np.uint64(16) | dports.astype(np.uint64)
    h = mix_words(h)
    return mix_words(h ^ np.uint64(seed[1])).astype(np.uint16)
