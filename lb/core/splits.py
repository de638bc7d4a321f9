"""Splits of services: of a rollout's step, whether two are the same, what follows from one. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from lb.model.objects import Service

TOLERANCE = 1e-6  # per cent; what the model allows a split to be off 100


def split_at(before: Mapping[str, float], pool: str, share: float) -> dict[str, float]:
    """The split in which this pool has its share, in per cent, and the others theirs of the rest, as
    they had it before. Those are named with 0, so that the way back is one change."""
    others = {name: each for name, each in before.items() if name != pool}
    whole = sum(others.values()) or 1.0
    left = 100.0 - share
    # To the millionth of a per cent, which is what tables count in; the last one takes what is over.
    found = {name: round(left * each / whole, 6) for name, each in others.items()}
    if found:
        largest = max(found, key=lambda name: (found[name], name))
        found[largest] = round(left - sum(each for n, each in found.items() if n != largest), 6)
    return {**found, pool: share}


def same_split(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Do they give every pool the same share? A pool that isn't named has none."""
    return all(
        abs(one.get(pool, 0.0) - other.get(pool, 0.0)) <= TOLERANCE for pool in one.keys() | other.keys()
    )


def describe(split: Mapping[str, float]) -> str:
    """For people: stable 95 %, canary 5 %."""
    return ", ".join(f"{pool} {share:g} %" for pool, share in split.items())


def with_split(service: Service, split: Mapping[str, float]) -> Service:
    """Its document with this split. A backup that has a share by it can't stay the backup. Raises
    ValueError if it isn't valid all the same."""
    backup = None if backup_ends(service, split) else service.backup
    return Service.model_validate({**service.model_dump(), "split": split, "backup": backup})


def backup_ends(service: Service | None, split: Mapping[str, float]) -> str:
    """That the service's backup can't be one with this split, in words."""
    if service is None or service.backup is None or not split.get(service.backup):
        return ""
    return f"pool {service.backup} has a share again, so it is no longer the backup"
