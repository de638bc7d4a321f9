"""The Internet checksum: computed (RFC 1071), and brought up to date (RFC 1624)."""

from __future__ import annotations

from lb.model.objects import Address


def words(data: bytes) -> list[int]:
    """The 16-bit words of some bytes, padded with a zero byte to an even number (RFC 1071)."""
    data += bytes(len(data) % 2)
    return [data[i] << 8 | data[i + 1] for i in range(0, len(data), 2)]


def fold(total: int) -> int:
    """Sum of words in one's-complement arithmetic: carries come in again at the other end.

    Zero comes out only of zero: 0xffff stays 0xffff, the other zero of that arithmetic.
    """
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    """Checksum of data in which the checksum field itself is zero."""
    return ~fold(sum(words(data))) & 0xFFFF


def update(check: int, old: bytes, new: bytes) -> int:
    """The checksum after `old` was replaced by `new`: ~(~check + ~old + new), RFC 1624, equation 3.

    A checksum that was wrong stays wrong, so that the receiver can tell.
    """
    total = ~check & 0xFFFF
    total += sum(~word & 0xFFFF for word in words(old))
    total += sum(words(new))
    return ~fold(total) & 0xFFFF


def pseudo_header(source: Address, destination: Address, proto: int, length: int) -> bytes:
    """What TCP, UDP and ICMPv6 checksums cover beside the segment.

    RFC 9293, 3.1 (the order of the fields doesn't matter to a sum); RFC 8200, 8.1.
    """
    return source.packed + destination.packed + length.to_bytes(4) + proto.to_bytes(4)
