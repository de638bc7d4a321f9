"""Shell completion of names that are in the store.

It runs at every press of Tab, so it is silent: without a store, or without the right to read it, it
offers nothing; and it never makes a store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from lb.cli.session import Session
from lb.core.state import DesiredState
from lb.model.describe import describe_vip


def service_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Services, with their VIPs as help."""
    state = _state(ctx.params)
    return [
        (name, describe_vip(service))
        for name, service in sorted(state.services.items())
        if name.startswith(incomplete)
    ]


def backend_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Backends of the service that was typed before."""
    state = _state(ctx.params)
    return [
        (backend.name, f"{backend.address} weight {backend.weight} {backend.admin}")
        for backend in state.backends_of(ctx.params.get("service") or "")
        if backend.name.startswith(incomplete)
    ]


def pool_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Pools of the service that was typed before."""
    state = _state(ctx.params)
    pools = {each.pool for each in state.backends_of(ctx.params.get("service") or "")}
    return sorted(each for each in pools if each.startswith(incomplete))


def node_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Nodes, live or lost."""
    state = _state(ctx.params)
    names = sorted(state.nodes.keys() | state.members.keys())
    return [
        (name, "live" if name in state.nodes else "lost")
        for name in names
        if name.startswith(incomplete)
    ]


def _state(params: dict[str, Any]) -> DesiredState:
    config = params.get("config")
    session = Session(config=Path(config) if config else None, store_url=params.get("store"))
    try:
        return session.state()
    except Exception:  # noqa: BLE001 - a traceback in the middle of somebody's command line helps nobody
        return DesiredState()
    finally:
        session.close()
