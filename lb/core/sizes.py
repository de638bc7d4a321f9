"""Which setting sizes a map, and what is said when it is full. Pure."""

from __future__ import annotations

from collections.abc import Iterable

# The field of lb.settings.Limits, where it isn't called as the map is. A test compares the two.
_SIZED_BY = {
    "ranges": "vips",
    "nat_back": "backends",
    "quic": "backends",
    "totals": "backends",
    "overdue": "backends",
    "bindings": "translations",
}
_FIXED = {"egress": "attach to fewer interfaces: no setting changes its size"}


def setting(name: str) -> str:
    """The setting that sizes this map."""
    return f"limits.{_SIZED_BY.get(name, name)}"


def hint(maps: Iterable[str], node: str = "") -> str:
    """What to do when these maps are full: on the machine that the reader is on, or on that node."""
    maps = [*maps]
    if maps in [[name] for name in _FIXED]:
        return _FIXED[maps[0]]
    wanted = " and ".join(sorted({setting(name) for name in maps}))
    where = f"lb.toml of {node}" if node else "lb.toml"
    return f"raise {wanted} in {where}, then lbd --detach and start lbd again"
