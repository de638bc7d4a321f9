"""Log-linear histograms of latencies, as the kernel fills them. Pure.

A bucket holds times that differ by less than 1/8: 0..15 us have a bucket each, and above that every
power of two is cut into eight (as in HdrHistogram). Mirrored in xdp/include/; a test proves both sides
equal.
"""

from __future__ import annotations

from collections.abc import Mapping

SUB_BITS = 3  # eight buckets for each power of two
SUB = 1 << SUB_BITS
MAX_BITS = 27  # 2^27 us = 134 s: longer ones are in the last bucket
BUCKETS = (MAX_BITS - SUB_BITS + 1) * SUB


def bucket_of(microseconds: int) -> int:
    """The bucket that a time belongs to."""
    if microseconds < 2 * SUB:
        return max(0, microseconds)
    shift = microseconds.bit_length() - 1 - SUB_BITS
    return min(BUCKETS - 1, (shift << SUB_BITS) + (microseconds >> shift))


def bounds(bucket: int) -> tuple[int, int]:
    """The least time of a bucket, and the least of the next, in microseconds."""
    if bucket < 2 * SUB:
        return bucket, bucket + 1
    shift = (bucket >> SUB_BITS) - 1
    low = (SUB + (bucket & (SUB - 1))) << shift
    return low, low + (1 << shift)


def quantile(counts: Mapping[int, float], share: float) -> float | None:
    """The time in microseconds that `share` of all times are below, by linear interpolation within its
    bucket; None of an empty histogram."""
    rest = share * sum(counts.values())
    if not any(counts.values()):
        return None
    for bucket in sorted(counts):
        if counts[bucket] and rest <= counts[bucket]:
            low, high = bounds(bucket)
            return low + (high - low) * max(0.0, rest) / counts[bucket]
        rest -= counts[bucket]
    return float(bounds(max(bucket for bucket in counts if counts[bucket]))[1])
