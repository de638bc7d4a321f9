"""lbctl status and lbctl doctor: how things are, and what is in the way."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import typer

from lb.cli.kernel import Counter
from lb.cli.options import command
from lb.cli.output import Block, Table, number
from lb.cli.rollout_view import place, under_way
from lb.cli.session import Session, state_of
from lb.cli.strays import strays
from lb.core.state import DesiredState
from lb.errors import DatapathError, ExitCode
from lb.model.reports import NodeStatus, Problem


class Check(Protocol):
    """What lbctl needs of lb.node.doctor.Check."""

    @property
    def name(self) -> str:
        """What was looked at."""

    @property
    def ok(self) -> bool | None:
        """None: could not be found out."""

    @property
    def detail(self) -> str:
        """What was found."""

    @property
    def hint(self) -> str:
        """What to do."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "status")(status)
    command(app, "doctor")(doctor)


def status(
    session: Session,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit code 1 if no node is there, one is lost or behind or has a problem, their tables"
            " differ, or something is quarantined.",
        ),
    ] = False,
) -> None:
    """Show the store, the nodes, their problems, and how packets ended on this node."""
    snapshot = session.snapshot()
    state = state_of(snapshot)
    wanted = state.revision_to_apply
    rollouts = under_way(snapshot)
    outcomes = _outcomes(session, state)
    digests = _digests(state)
    stray = strays(snapshot)
    quarantined = [problem for problem in state.problems if not _reported(problem, state)] + stray
    wrong = _wrong(state, digests, quarantined)
    data = {
        "ok": not wrong,
        "wrong": wrong,
        "store": {"url": session.settings.store, "revision": state.revision},
        "desired_revision": wanted,
        "services": len(state.services),
        "backends": len(state.backends),
        "nodes": [
            {**node.model_dump(mode="json"), "applied": node.revision >= wanted}
            for _, node in sorted(state.nodes.items())
        ],
        "lost": list(state.lost),
        "digests_agree": digests,
        "rollouts": {each.service: place(each) for each in rollouts},
        "quarantined": [problem.model_dump() for problem in (*state.problems, *stray)],
        "outcomes": None
        if outcomes is None
        else {name: {"packets": each.packets, "bytes": each.bytes} for name, each in outcomes.items()},
    }
    head = (
        f"store     {session.settings.store}, revision {state.revision}\n"
        f"desired   {len(state.services)} services, {len(state.backends)} backends, "
        f"last changed at revision {wanted}\n"
        f"tables    {_agreement(state, digests)}"
    )
    for each in rollouts:
        head += f"\nrollout   {each.service} to pool {each.spec.pool}: {place(each)}"
    blocks: list[Block] = [head, _node_table(state, wanted)]
    if state.nodes:
        blocks.append(_link_table(state))
    problems = _problem_table(state, quarantined)
    if problems.rows:
        blocks.append(problems)
    blocks.append(_outcome_table(outcomes))
    if check and wrong:
        blocks.append("\n".join(f"WRONG: {each}" for each in wrong))
    session.emit(data, *blocks)
    if check and wrong:
        raise typer.Exit(ExitCode.DIFFERENT)


def doctor(session: Session) -> None:
    """Check kernel, headers, interfaces, permissions and store. Exit code 1 if something is wrong."""
    # Only here: it imports pyroute2, which takes 0.3 s.
    from lb.node.doctor import run

    checks: list[Check] = list(run(session.settings))
    words = {True: "ok", False: "WRONG", None: "unknown"}
    session.emit(
        [
            {"name": each.name, "ok": each.ok, "detail": each.detail, "hint": each.hint}
            for each in checks
        ],
        Table(("CHECK", "RESULT", "DETAIL"), [(c.name, words[c.ok], c.detail) for c in checks]),
        *(f"{each.name}: {each.hint}" for each in checks if each.ok is not True and each.hint),
    )
    if any(each.ok is False for each in checks):
        raise typer.Exit(ExitCode.DIFFERENT)


def _outcomes(session: Session, state: DesiredState) -> dict[str, Counter] | None:
    try:
        kernel = session.kernel(state)
        return dict(kernel.outcomes()) if kernel else None
    except DatapathError:  # lbd --detach took the maps away meanwhile
        return None


def _digests(state: DesiredState) -> dict[str, bool | None]:
    """Per service, whether the nodes hold the same table, and the same ones for pools that rules send
    clients to; None while no node holds one.

    Only nodes at the newest revision that any has are compared: one that is behind is behind, and
    that is shown with it. Nor is one that found a backend full: it counts its own connections.
    """
    newest = max((node.revision for node in state.nodes.values()), default=0)
    found: dict[str, bool | None] = {}
    for name in sorted(state.services):
        holders = [
            node for node in state.nodes.values() if name in node.digests and node.revision == newest
        ]
        digests = {
            frozenset(
                (path, digest) for path, digest in node.digests.items() if path.partition("/")[0] == name
            )
            for node in holders
            if not any(path.partition("/")[0] == name for path in node.full)
        }
        found[name] = None if not holders else len(digests) <= 1
    return found


def _agreement(state: DesiredState, digests: dict[str, bool | None]) -> str:
    differing = [name for name, agree in digests.items() if agree is False]
    if differing:
        return f"nodes DISAGREE on the slot tables of {', '.join(differing)}"
    if not any(digests.values()):
        return "no node holds any"
    return f"{len(state.nodes)} nodes agree" if len(state.nodes) > 1 else "held by one node"


def _wrong(
    state: DesiredState, digests: dict[str, bool | None], quarantined: list[Problem]
) -> list[str]:
    """What somebody should look at, one line each. Warnings are none."""
    wanted = state.revision_to_apply
    found = [] if state.nodes else ["no node is running"]
    found += [f"node {name} is lost" for name in state.lost]
    for name, node in sorted(state.nodes.items()):
        if node.revision < wanted:
            found.append(f"node {name} is behind: at revision {node.revision}, not {wanted}")
        found += [f"node {name}: {p.where}: {p.message}" for p in node.problems if not p.warning]
    found += [f"nodes disagree on the slot table of {n}" for n, same in digests.items() if same is False]
    return found + [f"{each.where}: {each.message}" for each in quarantined]


def _reported(problem: Problem, state: DesiredState) -> bool:
    """Whether a node reports the same object: it knows better what is in force there."""
    return any(each.where == problem.where for n in state.nodes.values() for each in n.problems)


def _node_table(state: DesiredState, wanted: int) -> Table:
    def applied(node: NodeStatus) -> str:
        return str(node.revision) if node.revision >= wanted else f"{node.revision}, BEHIND"

    return Table(
        ("NODE", "VERSION", "APPLIED", "INTERFACES", "PROBLEMS", "UNRESOLVED"),
        [
            (
                node.node,
                node.version,
                applied(node),
                ", ".join(link.interface for link in node.links) or "none",
                number(len(node.problems)),
                ", ".join(node.unresolved) or "none",
            )
            for _, node in sorted(state.nodes.items())
        ]
        + [(name, "-", "LOST", "-", "-", "-") for name in state.lost],
        right=frozenset({"PROBLEMS"}),
        empty="no node is running; start one: systemctl start lbd",
    )


def _link_table(state: DesiredState) -> Table:
    return Table(
        ("NODE", "INTERFACE", "HOOK", "WHY"),
        [
            (name, link.interface, link.hook, link.why)
            for name, node in sorted(state.nodes.items())
            for link in node.links
        ],
        empty="no interface is attached",
    )


def _problem_table(state: DesiredState, quarantined: list[Problem]) -> Table:
    rows: list[tuple[str, Problem]] = [("-", problem) for problem in quarantined]
    rows += [(name, each) for name, node in sorted(state.nodes.items()) for each in node.problems]
    return Table(
        ("NODE", "OBJECT", "PROBLEM", "NEXT STEP"),
        [(node, each.where, each.message, each.hint) for node, each in rows],
    )


def _outcome_table(outcomes: dict[str, Any] | None) -> Table:
    why = "no packet yet"
    if outcomes is None:
        why = "packet counters: not visible here (lbd runs on another machine, or this isn't root)"
    return Table(
        ("OUTCOME", "PACKETS", "BYTES"),
        [
            (name, number(each.packets), number(each.bytes))
            for name, each in (outcomes or {}).items()
            if each.packets
        ],
        right=frozenset({"PACKETS", "BYTES"}),
        empty=why,
    )
