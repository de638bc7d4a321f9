"""What is too large for one commit, in several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from lb.errors import CapacityError
from lb.store.base import Compare, Delete, Put, Store, Unwritten

# etcd takes 1.5 MiB at once, unless it was told otherwise. After 60 changes of weights of 100 backends a
# table is 71 KB, of 4,000 it is 100 KB.
BYTES_A_COMMIT = 512 * 1024

Operation = Put | Delete
Compares = Sequence[Compare | Unwritten]


def portions(operations: Iterable[Operation], most: int) -> Iterator[list[Operation]]:
    """For one commit each, in this order: `most` operations and BYTES_A_COMMIT, unless one alone is
    larger."""
    portion: list[Operation] = []
    size = 0
    for operation in operations:
        more = len(operation.value.encode()) if isinstance(operation, Put) else 0
        if len(portion) == most or (portion and size + more > BYTES_A_COMMIT):
            yield portion
            portion, size = [], 0
        portion.append(operation)
        size += more
    if portion:
        yield portion


def commit_in_portions(
    store: Store, operations: Iterable[Operation], most: int, guard: Callable[[], Compares]
) -> Iterator[int]:
    """Commit them in this order, each portion with what `guard` says just before; yields the revision
    after each. Where a store takes less at once, a portion is halved. Raises CapacityError for one
    operation that is too large by itself, and what Store.commit() does: what was committed before
    stays."""
    for portion in portions(operations, most):
        left = [portion]
        while left:
            part = left.pop(0)
            try:
                revision = store.commit(part, guard())
            except CapacityError:
                if len(part) == 1:
                    raise
                half = len(part) // 2
                left[:0] = [part[:half], part[half:]]
            else:
                yield revision
