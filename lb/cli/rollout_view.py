"""Rollouts as they are printed: one line a transition, a table of nodes, one document for programs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lb.cli import words
from lb.cli.output import Block, Table, percent
from lb.core import rollout as core
from lb.core.canary import awaits, late_nodes
from lb.core.splits import describe, same_split
from lb.core.state import DesiredState
from lb.errors import ConflictError, UserError
from lb.model import keys
from lb.model.objects import Document, Service
from lb.model.rollout import Phase, Rollout, Transition
from lb.store import rollouts as stored
from lb.store.base import Snapshot
from lb.store.rollouts import Sight


def refuse_if_under_way(
    snapshot: Snapshot, state: DesiredState, wanted: Mapping[str, Document | None]
) -> None:
    """A split that a rollout is changing belongs to it, and so does the way back. Raises
    ConflictError."""
    for rollout in under_way(snapshot):
        key = keys.service(rollout.service)
        if key not in wanted:
            continue
        before, after = state.services.get(rollout.service), wanted[key]
        if not (isinstance(after, Service) and before and same_split(before.split, after.split)):
            raise ConflictError(
                f"a rollout to pool {rollout.spec.pool!r} is changing the split of service"
                f" {rollout.service!r} ({place(rollout)})",
                hint=f"end it: lbctl rollout abort {rollout.service}; or --force: it ends, and leaves"
                " what you write",
            )
        share = (rollout.status.before or {}).get(after.backup or "")
        if share and after.backup != before.backup:
            raise ConflictError(
                f"pool {after.backup!r} can't be the backup of service {rollout.service!r} now: it gets"
                f" {share:g} % of the new flows again if the rollout to pool {rollout.spec.pool!r} is"
                f" aborted ({place(rollout)})",
                hint=f"wait for its end: lbctl rollout wait {rollout.service}; or --force: then an abort"
                " takes the backup away again",
            )


def under_way(snapshot: Snapshot) -> list[Rollout]:
    """The rollouts that are not over. What can't be read is left out."""
    found = []
    for item in snapshot.items:
        if item.key.startswith(keys.ROLLOUTS):
            with suppress(UserError):
                found.append(stored.parse(item).rollout)
    return [each for each in found if not each.is_over]


def place(rollout: Rollout) -> str:
    """Where it is: step 2 of 5, baking."""
    status = rollout.status
    said = status.phase.value
    if status.phase is Phase.ABORTED:
        return f"{said}: {status.ending}" if status.ending else said
    if status.step and not rollout.is_over:
        said = f"step {status.step} of {len(rollout.spec.steps)}, {said}"
    return said


def line(rollout: Rollout, transition: Transition) -> str:
    """A transition, for a log."""
    moment = time.strftime("%H:%M:%S", time.localtime(transition.at))
    said = f"{moment}  {transition.phase:<10}"
    if transition.step:
        said += f"  step {transition.step}/{len(rollout.spec.steps)}"
    if transition.split is not None:
        said += f"  {describe(transition.split)}"
    return f"{said}  {transition.words}"


def data(rollout: Rollout, seen: Sight | None = None) -> dict[str, Any]:
    """For programs."""
    found: dict[str, Any] = rollout.model_dump(mode="json")
    if seen is not None:
        found["awaits"] = awaits(rollout, seen.view)
        found["nodes"] = _nodes(rollout, seen)
    return found


def _nodes(rollout: Rollout, seen: Sight) -> list[dict[str, Any]]:
    late = late_nodes(seen.view)
    live = [
        {
            "node": name,
            "state": "behind" if name in late else "applied",
            "share": status.shares.get(rollout.service, {}).get(rollout.spec.pool, 0.0),
        }
        for name, status in sorted(seen.view.nodes.items())
    ]
    return live + [{"node": name, "state": "lost", "share": None} for name in seen.view.lost]


def blocks(rollout: Rollout, seen: Sight | None = None) -> list[Block]:
    """For people."""
    spec, status = rollout.spec, rollout.status
    steps = ", ".join(f"{each:g}" for each in spec.steps)
    found: list[Block] = [
        f"{rollout.service}: {place(rollout)}",
        f"rollout {rollout.id} to pool {spec.pool}, steps {steps} %, every {spec.every:g} s"
        + (", a person agrees to each" if spec.gate else "")
        + (f", deadline after {spec.deadline:g} s" if spec.deadline else "")
        + (f"; asked by {spec.who}" if spec.who else ""),
    ]
    if status.words:
        found.append(f"because: {status.words}")
    elif status.judged is not None:
        found.append(f"analysis: {status.judged}: {status.reason}")
    if not core.is_analysed(rollout):
        found.append("not judged: steps go by time, and by health checks")
    if status.ask is not None:
        found.append(f"asked, and not acted on yet: {status.ask.command} by {status.ask.who}")
    if seen is not None and not rollout.is_over and (waits := awaits(rollout, seen.view)):
        found.append(f"waits for {waits}")
    if seen is not None:
        rows = [
            (each["node"], each["state"], "-" if each["share"] is None else percent(each["share"]))
            for each in _nodes(rollout, seen)
        ]
        heading = f"{spec.pool.upper()} SHARE%"
        found.append(
            Table(("NODE", "SPLIT", heading), rows, right=frozenset({heading}), empty="no node")
        )
    if status.verdicts:
        found.append(verdicts(rollout))
    found.append(history(rollout))
    return found


def verdicts(rollout: Rollout) -> Table:
    """What each metric said last of each step."""
    rows = [
        (
            f"{each.step}/{len(rollout.spec.steps)}",
            each.verdict.metric + (" (observed)" if each.verdict.observe else ""),
            each.verdict.outcome.value,
            figure(each.verdict.canary, each.verdict.unit),
            figure(each.verdict.stable, each.verdict.unit),
            figure(each.verdict.limit, each.verdict.unit),
            f"{each.verdict.canary_samples:,} / {each.verdict.stable_samples:,}",
        )
        for each in rollout.status.verdicts
    ]
    columns = ("STEP", "METRIC", "VERDICT", "CANARY", "STABLE", "LIMIT", "SAMPLES")
    return Table(columns, rows, right=frozenset(columns[3:]))


def figure(value: float | None, unit: str) -> str:
    """A metric's figure for people: a share in per cent, a time in ms."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g}" + (f" {unit}" if unit else "")


def history(rollout: Rollout) -> Table:
    """Its transitions."""
    rows = [
        (
            words.moment(each.at),
            each.phase.value,
            f"{each.step}/{len(rollout.spec.steps)}",
            describe(each.split) if each.split else "-",
            each.words,
            each.by,
        )
        for each in rollout.status.history
    ]
    columns = ("WHEN", "PHASE", "STEP", "SPLIT WRITTEN", "BECAUSE", "BY")
    return Table(columns, rows, empty="nothing has happened yet")
