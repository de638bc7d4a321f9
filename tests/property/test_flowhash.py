"""The flow hash spreads what real clients send.

Pearson's chi-square over buckets of equal probability, or over the shares of a table with weights.
The p-value comes from the Wilson-Hilferty approximation (1931), which is good to the third digit with
this many degrees of freedom. Seeds are fixed, so a verdict is final: no single p may be below 1e-5,
and of all of them together no more may be small or large than chance allows. (That the kernel hashes
alike is proven in tests/datapath.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from ipaddress import ip_address

import numpy as np
import pytest

from lb.core import flowhash, slots
from lb.core.slots import SLOTS, Member
from lb.model.objects import Affinity

SEEDS = [(random.Random(n).getrandbits(64), random.Random(-n - 1).getrandbits(64)) for n in range(6)]
Flows = tuple[np.ndarray, np.ndarray, np.ndarray]  # clients, source ports, destination ports


def p_value(observed: np.ndarray, expected: np.ndarray) -> float:
    """That chance alone is at least so uneven."""
    assert expected.min() >= 5
    degrees = len(observed) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    spread = 2 / (9 * degrees)
    z = ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2)) / 2


def number(text: str) -> int:
    return int(ip_address(text))


def flows(clients: np.ndarray, ports: np.ndarray, vip_port: int = 443) -> Flows:
    return clients, ports, np.full(len(ports), vip_port)


def one_client_sequential_ports() -> Flows:
    ports = np.arange(1024, 65536)
    return flows(np.full(len(ports), number("198.51.100.7"), np.uint64), ports)


def a_slash_24() -> Flows:
    clients = np.repeat(number("198.51.100.0") + np.arange(256, dtype=np.uint64), 1600)
    return flows(clients, np.tile(np.arange(32768, 32768 + 1600), 256), 80)


def clients_behind_nat() -> Flows:
    dice = np.random.default_rng(1)
    clients = np.repeat(number("203.0.113.8") + np.arange(4, dtype=np.uint64), 60000)
    return flows(clients, np.concatenate([1024 + dice.permutation(64512)[:60000] for _ in range(4)]))


def sequential_prefixes() -> Flows:
    prefixes = (number("2001:db8::") >> 64) + np.arange(65536, dtype=np.uint64)
    clients = np.column_stack((prefixes, np.ones(65536, np.uint64)))
    return flows(np.repeat(clients, 6, axis=0), np.tile(np.arange(50000, 50006), 65536))


def one_prefix_sequential_hosts() -> Flows:
    hosts = np.arange(1, 400_001, dtype=np.uint64)
    prefix = np.full(len(hosts), number("2001:db8:0:7::") >> 64, np.uint64)
    return flows(np.column_stack((prefix, hosts)), np.full(len(hosts), 50000))


def one_prefix_random_hosts() -> Flows:
    hosts = np.random.default_rng(2).integers(0, 2**63, 400_000, dtype=np.uint64)
    prefix = np.full(len(hosts), number("2001:db8:0:7::") >> 64, np.uint64)
    return flows(np.column_stack((prefix, hosts)), np.full(len(hosts), 50000))


def sequential_clients() -> Flows:
    clients = number("10.0.0.0") + np.arange(400_000, dtype=np.uint64)
    return flows(clients, np.full(len(clients), 50000))


TRAFFIC: list[tuple[Callable[[], Flows], Affinity]] = [
    (one_client_sequential_ports, Affinity.FLOW),
    (a_slash_24, Affinity.FLOW),
    (clients_behind_nat, Affinity.FLOW),
    (sequential_prefixes, Affinity.FLOW),
    (one_prefix_sequential_hosts, Affinity.FLOW),
    (one_prefix_random_hosts, Affinity.FLOW),
    (sequential_clients, Affinity.FLOW),
    (sequential_clients, Affinity.CLIENT),
    (one_prefix_sequential_hosts, Affinity.CLIENT),
]


def hashed(seed: flowhash.Seed, traffic: Flows, affinity: Affinity) -> np.ndarray:
    return flowhash.slots(seed, *traffic, affinity)


def table() -> np.ndarray:
    """Shares of very different size: 0.05 % to 45 %."""
    weights = [900, 500, 300, 200, 90, 9, 1]
    members = [Member(f"b{i}", "stable", weight) for i, weight in enumerate(weights)]
    return slots.plan(members, {"stable": 100.0}, None).slots


def all_p_values() -> list[tuple[str, float]]:
    found = []
    owners = table()
    shares = np.bincount(owners) / SLOTS
    for make, affinity in TRAFFIC:
        traffic = make()
        count = len(traffic[1])
        for seed in SEEDS:
            at = hashed(seed, traffic, affinity)
            for buckets in (64, 1024, SLOTS):
                if count >= 5 * buckets:
                    observed = np.bincount(at.astype(np.int64) % buckets, minlength=buckets)
                    p = p_value(observed, np.full(buckets, count / buckets))
                    found.append((f"{make.__name__}, {affinity}, {buckets} buckets", p))
            p = p_value(np.bincount(owners[at], minlength=len(shares)), shares * count)
            found.append((f"{make.__name__}, {affinity}, backends", p))
    return found


def test_chi_square() -> None:
    found = all_p_values()
    assert len(found) > 150
    worst = min(found, key=lambda each: each[1])
    assert worst[1] > 1e-5, worst
    # p-values are uniform if the hash is as good as chance: of n, about n/10 are below 0.1.
    values = np.array([p for _, p in found])
    for low, high in ((0.0, 0.1), (0.9, 1.0), (0.0, 0.5)):
        share = ((values >= low) & (values < high)).mean()
        sigma = math.sqrt((high - low) * (1 - high + low) / len(values))
        # Those of one traffic and seed depend on each other: four sigmas.
        assert abs(share - (high - low)) < 4 * sigma, (low, high, share)


def test_the_test_can_fail() -> None:
    """One bucket in a thousand that gets a quarter more than its share is found out."""
    at = hashed(SEEDS[0], sequential_clients(), Affinity.FLOW).astype(np.int64)
    observed = np.bincount(at % 1024, minlength=1024)
    observed[:32] += 98
    assert p_value(observed, np.full(1024, observed.sum() / 1024)) < 1e-5


@pytest.mark.parametrize("affinity", list(Affinity))
def test_another_seed_is_another_hash(affinity: Affinity) -> None:
    traffic = sequential_clients()
    one, other = (hashed(seed, traffic, affinity).astype(np.int64) for seed in SEEDS[:2])
    same = int((one == other).sum())
    expected = len(one) / SLOTS
    assert abs(same - expected) < 6 * math.sqrt(expected)
    pairs = np.bincount((one % 32) * 32 + other % 32, minlength=1024)
    assert p_value(pairs, np.full(1024, len(one) / 1024)) > 1e-5


def test_who_does_not_know_the_seed_can_not_aim() -> None:
    """Flows that all meet in a few slots under one seed are spread evenly under another."""
    dice = np.random.default_rng(3)
    clients = dice.integers(0, 2**32, 2_000_000, dtype=np.uint64)
    traffic = flows(clients, dice.integers(1024, 65536, len(clients)))
    aimed = hashed(SEEDS[0], traffic, Affinity.FLOW) < 256  # a 256th of all slots
    clients, sports, dports = (each[aimed] for each in traffic)
    there = hashed(SEEDS[1], (clients, sports, dports), Affinity.FLOW)
    assert len(there) > 5000
    observed = np.bincount(there.astype(np.int64) % 512, minlength=512)
    assert p_value(observed, np.full(512, len(there) / 512)) > 1e-5
