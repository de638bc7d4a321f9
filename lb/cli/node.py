"""lbctl node: who serves, how far each has come, who is lost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lb.cli import words
from lb.cli.complete import node_names
from lb.cli.options import command
from lb.cli.output import Block, Table, number
from lb.cli.session import Session
from lb.core.state import DesiredState
from lb.errors import UserError
from lb.model import keys
from lb.model.reports import NodeStatus
from lb.store.base import Compare, Delete

app = typer.Typer(help="Machines that run lbd.", no_args_is_help=True)

NodeName = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the node.", autocompletion=node_names)
]


@command(app, "list")
def list_nodes(session: Session) -> None:
    """List the nodes: live, behind with the last change, or lost."""
    state = session.state()
    nodes = [_describe(state, name) for name in sorted(state.nodes.keys() | state.members.keys())]
    rows = [
        (
            each["node"],
            each["state"],
            each["version"] or "-",
            "-" if each["revision"] is None else number(each["revision"]),
            ", ".join(each["hooks"]) or "-",
            words.moment(each["since"]),
            number(each["problems"]),
        )
        for each in nodes
    ]
    columns = ("NODE", "STATE", "VERSION", "APPLIED", "HOOK", "SINCE", "PROBLEMS")
    table = Table(
        columns,
        rows,
        right=frozenset({"APPLIED", "PROBLEMS"}),
        empty="no node is running; start one: systemctl start lbd",
    )
    blocks: list[Block] = [table]
    if state.lost:
        blocks.append(
            "lost: reports no more, and may go on forwarding by what it knew; `lbctl node forget NAME` "
            "if it is gone for good"
        )
    session.emit(nodes, *blocks)


@command(app, "forget")
def forget(session: Session, name: NodeName) -> None:
    """Take a lost node off the list. One that comes back is on it again."""
    state = session.state()
    if name in state.nodes:
        raise UserError(f"node {name!r} is alive", hint="stop it: systemctl stop lbd")
    if name not in state.members:
        known = sorted(state.nodes.keys() | state.members.keys())
        raise words.no_such(f"no node {name!r}", name, known, "`lbctl node list` names those there are")
    key = keys.member(name)
    session.store.commit([Delete(key)], [Compare(key, state.versions[key]), Compare(keys.node(name), 0)])
    session.emit({"node": name, "forgotten": True}, f"node {name} is forgotten")


def _describe(state: DesiredState, name: str) -> dict[str, Any]:
    status: NodeStatus | None = state.nodes.get(name)
    member = state.members.get(name)
    if status is None:
        assert member is not None
        return {
            **{"node": name, "state": "lost", "version": None, "revision": None},
            **{"hooks": [], "since": member.since, "problems": 0},
        }
    return {
        "node": name,
        "state": "live" if status.revision >= state.revision_to_apply else "behind",
        "version": status.version,
        "revision": status.revision,
        "hooks": sorted({link.hook for link in status.links}),
        "since": status.started,
        "problems": len(status.problems),
    }
