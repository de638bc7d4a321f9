"""lbctl service slots: what the slot table of a service says, and what a change would make of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lb.cli import kernel, words
from lb.cli.change import propose
from lb.cli.declarative import edit_of, read_manifest
from lb.cli.moves import SLOTS, moves, tables
from lb.cli.options import ServiceName
from lb.cli.output import Block, Table, number, percent
from lb.cli.rehash import rehashes
from lb.cli.rows import planned_shares
from lb.cli.session import Session
from lb.errors import DatapathError, NotFoundError, UserError

if TYPE_CHECKING:
    from lb.cli.kernel import Moving
    from lb.core.state import DesiredState

_NOBODY = "(nobody)"
_FIGURES = ("SLOTS", "HELD%", "SHARE%", "MOVED HERE", "MOVED AWAY")


def slots(
    session: Session,
    service: ServiceName,
    planned: Annotated[
        bool, typer.Option("--planned", help="What the planner wants, instead of what the kernel holds.")
    ] = False,
    changes: Annotated[
        str | None,
        typer.Option(
            "--changes",
            metavar="FILE",
            help="What applying this manifest would move; - reads standard input.",
        ),
    ] = None,
) -> None:
    """Show which backend each of the 65,536 slots names, and which slots moved lately.

    HELD% is the share of the slots, SHARE% the exact one that was asked for. With `-o json` there is one
    entry for each slot, in order. What the kernel of this node holds differs from what is planned where
    a backend can't be used at the moment.
    """
    if planned and changes is not None:
        raise UserError("--planned and --changes are two questions", hint="ask one at a time")
    state = session.state()
    if service not in state.services:
        raise words.no_such_service(service, state)
    if changes is not None:
        _show_changes(session, service, changes)
    elif planned:
        _show(session, state, service, *_planned(state, service), source="planned")
    else:
        _show(session, state, service, *_held(session, state, service), source="kernel")


def _held(
    session: Session, state: DesiredState, service: str
) -> tuple[Sequence[str | None], Sequence[Moving]]:
    try:
        view = kernel.open_kernel(session.settings, state)
    except DatapathError as error:
        raise DatapathError(
            error.message, hint=f"{error.hint}; or see what is planned, with --planned"
        ) from None
    held, moving = view.slots(service), view.moving(service)
    if held is None or moving is None:
        raise DatapathError(
            f"the kernel of this node has no service {service!r} yet",
            hint="is lbd running? See lbctl status; `--planned` shows what it will get",
        )
    return held, moving


def _planned(state: DesiredState, service: str) -> tuple[Sequence[str | None], Sequence[Moving]]:
    from lb.datapath.view import Moving  # NumPy takes 0.2 s to import: only where slots are looked at

    table, _ = tables(state, state, service)
    now = time.time()
    return table.names().tolist(), [
        Moving(first, length, table.backends[origin] if origin >= 0 else None, closes)
        for first, length, origin, closes in table.moves
        if closes > now
    ]


def _show(
    session: Session,
    state: DesiredState,
    service: str,
    held: Sequence[str | None],
    moving: Sequence[Moving],
    *,
    source: str,
) -> None:
    backends = state.backends_of(service)
    digest = _digest(held, [each.name for each in backends])
    shares = planned_shares(state.services[service], backends)
    data = {
        "service": service,
        "source": source,
        "slots": list(held),
        "moving": [
            {
                "first": run.first,
                "length": run.length,
                "origin": run.origin,
                "closes": run.closes,
            }
            for run in moving
        ],
        "digest": digest,
    }
    session.emit(data, *_summary(held, moving, shares), f"digest {digest}")


def _digest(held: Sequence[str | None], backends: Iterable[str]) -> str:
    """As a node makes it of the table that it plans, but of what is there."""
    import numpy as np

    from lb.core.slots import EMPTY, Table

    names = sorted({*backends, *filter(None, held)})
    index: dict[str | None, int] = {None: EMPTY} | {name: at for at, name in enumerate(names)}
    return Table(tuple(names), np.array([index[name] for name in held], dtype=np.int32)).digest


def _summary(
    held: Sequence[str | None], moving: Sequence[Moving], shares: Mapping[str, float]
) -> list[Block]:
    counts, arrived, left = (dict.fromkeys({*held, *shares}, 0) for _ in range(3))
    for name in held:
        counts[name] += 1
    for run in moving:
        left[run.origin] = left.get(run.origin, 0) + run.length
        for name in held[run.first : run.first + run.length]:
            arrived[name] += 1
    names = sorted({*counts, *left}, key=lambda name: (name is None, name or ""))
    rows = [
        (
            name or _NOBODY,
            number(counts.get(name, 0)),
            percent(100 * counts.get(name, 0) / SLOTS),
            percent(shares[name]) if name is not None and name in shares else "-",
            number(arrived.get(name, 0)),
            number(left.get(name, 0)),
        )
        for name in names
    ]
    table = Table(
        ("BACKEND", *_FIGURES),
        rows,
        right=frozenset(_FIGURES),
    )
    if not moving:
        return [table, "no slot moved lately"]
    seconds = max(run.closes for run in moving) - time.time()
    return [
        table,
        f"{sum(run.length for run in moving):,} slots are moving; the last window closes in"
        f" {max(seconds, 0):.0f} s",
    ]


def _show_changes(session: Session, service: str, file: str) -> None:
    proposal = propose(session, edit_of(read_manifest(file), prune=False))
    if service not in proposal.after.services:
        raise NotFoundError(f"{file} leaves no service {service!r}", hint="check the names in it")
    before, after = (
        table.names().tolist() for table in tables(proposal.before, proposal.after, service)
    )
    runs: list[dict[str, Any]] = []
    pairs: dict[tuple[str | None, str | None], int] = {}
    for slot, pair in enumerate(zip(before, after, strict=True)):
        if pair[0] == pair[1]:
            continue
        pairs[pair] = pairs.get(pair, 0) + 1
        last = runs[-1] if runs else None
        if last and last["first"] + last["length"] == slot and (last["from"], last["to"]) == pair:
            last["length"] += 1
        else:
            runs.append({"first": slot, "length": 1, "from": pair[0], "to": pair[1]})
    rehashed = [each for each in rehashes(proposal.before, proposal.after) if each.service == service]
    said = [move for move in moves(proposal.before, proposal.after) if move.service == service]
    data = {
        **(said[0].as_dict() if said else {"service": service, "moved": 0, "of": SLOTS}),
        "pairs": [{"from": old, "to": new, "slots": n} for (old, new), n in pairs.items()],
        "runs": runs,
        "rehashed": [each.as_dict() for each in rehashed],
    }
    rows = [
        (old or _NOBODY, new or _NOBODY, number(count))
        for (old, new), count in sorted(pairs.items(), key=lambda each: -each[1])
    ]
    session.emit(
        data,
        said[0].text if said else f"service {service}: no slot moves",
        *(each.text for each in rehashed),
        *([Table(("FROM", "TO", "SLOTS"), rows, right=frozenset({"SLOTS"}))] if rows else []),
    )
