"""Ranges of ports as prefixes, as a map that goes by the longest prefix wants them. Pure."""

from __future__ import annotations

from collections.abc import Iterator


def prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest prefixes that together cover the ports from first to last, both within: the first port
    of each, and how many of its low bits are free."""
    while first <= last:
        # As large as its alignment, and the ports that are left, allow.
        aligned = (first & -first).bit_length() - 1 if first else 16
        free = min(aligned, (last - first + 1).bit_length() - 1)
        yield first, free
        first += 1 << free
