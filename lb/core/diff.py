"""The difference between two maps, as the changes that make one out of the other. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Difference(Generic[K, V]):
    """What to write, and what to delete."""

    put: dict[K, V]
    delete: list[K]

    def __bool__(self) -> bool:
        return bool(self.put or self.delete)


def diff(have: Mapping[K, V], want: Mapping[K, V]) -> Difference[K, V]:
    """The changes that turn `have` into `want`."""
    return Difference(
        put={key: value for key, value in want.items() if have.get(key) != value},
        delete=[key for key in have if key not in want],
    )
