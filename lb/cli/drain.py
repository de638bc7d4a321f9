"""lbctl backend drain: how long it may take, and who is still there."""

from __future__ import annotations

import time

from lb.cli.output import number
from lb.core.flows import Filter, Kind
from lb.core.state import DesiredState
from lb.errors import LbError
from lb.settings import Settings

LIVELY_SECONDS = 60.0  # a flow that was silent for longer may be over: the kernel can't tell
MOST = 10_000  # flows that are looked at


def flows_left(settings: Settings, state: DesiredState, service: str, backend: str) -> int | None:
    """Remembered flows of a backend that sent something within the last minute, on this node; at most
    MOST. None if they can't be seen here."""
    try:
        from lb.datapath.clock import Clock
        from lb.datapath.flows import FlowTable
        from lb.datapath.maps import Maps

        table = FlowTable(Maps.open(settings.pin_dir), state)
    except LbError:
        return None
    clock = Clock()
    only = Filter(service, backend, None, None)
    flows = table.listed(only, MOST, clock.jiffies(), clock.rate)
    return sum(each.kind is not Kind.BEGUN and each.idle < LIVELY_SECONDS for each in flows)


def remark(left: int | None, until: float | None) -> str:
    """In a line, for people."""
    said = "flows left: not visible here" if left is None else f"flows left: {number(left)}"
    if until is None:
        return f"{said} (sent something within a minute); the drain has no deadline"
    seconds = max(0.0, until - time.time())
    return f"{said} (sent something within a minute); down in {seconds:.0f} s"
