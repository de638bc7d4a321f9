"""lbctl rule: which clients go to a pool of their own, whatever the split says."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field

from lb.cli import words
from lb.cli.change import Draft, perform
from lb.cli.complete import service_names
from lb.cli.options import ServiceName, change, command
from lb.cli.output import Table
from lb.cli.session import Session
from lb.core.rules import in_order
from lb.core.state import DesiredState
from lb.errors import ConflictError, UserError
from lb.model.objects import Network

app = typer.Typer(
    help="Rules: clients of a source prefix go to a pool, whatever the split says.",
    no_args_is_help=True,
)

Prefix = Annotated[
    str,
    typer.Argument(metavar="PREFIX", help="Clients' addresses: 10.1.0.0/16, 2001:db8::/32, or one."),
]


class RuleRow(BaseModel):
    """A rule."""

    model_config = ConfigDict(frozen=True)

    service: str = Field(description="Service that it is of.")
    prefix: Network = Field(description="Clients' addresses; of several rules the longest counts.")
    pool: str = Field(description="Pool that takes their new flows.")
    backends_up: int = Field(
        description="Backends of that pool that take new flows; 0 = they go by the split."
    )


@change(app, "add")
def add(
    session: Session,
    service: ServiceName,
    prefix: Prefix,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="Pool that takes their new flows.")],
) -> None:
    """Send the clients of a prefix to a pool. Their established flows stay where they are."""
    network = _network(prefix)

    def edit(draft: Draft) -> None:
        document = draft.service(service)
        present = document.rules.get(network)
        if present not in (None, pool):
            raise ConflictError(
                f"service {service!r} sends {network} to pool {present!r} already",
                hint=f"remove that first: lbctl rule rm {service} {network}",
            )
        draft.put(words.rebuild(document, rules={**document.rules, network: pool}))
        if not any(each.pool == pool and each.takes_flows for each in draft.state.backends_of(service)):
            draft.notes.append(
                f"no backend of pool {pool!r} takes new flows yet: until one does, these clients go by"
                " the split"
            )

    perform(session, edit)


@change(app, "rm")
def remove(session: Session, service: ServiceName, prefix: Prefix) -> None:
    """Remove a rule: new flows of these clients go by the split again."""
    network = _network(prefix)

    def edit(draft: Draft) -> None:
        document = draft.service(service)
        if network not in document.rules:
            known = [str(each) for each in document.rules]
            raise words.no_such(
                f"service {service!r} has no rule for {network}",
                str(network),
                known,
                f"`lbctl rule list {service}` shows those that exist",
            )
        left = {each: pool for each, pool in document.rules.items() if each != network}
        draft.put(words.rebuild(document, rules=left))

    perform(session, edit)


@command(app, "list")
def list_rules(
    session: Session,
    service: Annotated[
        str | None,
        typer.Argument(metavar="SERVICE", help="Only this service.", autocompletion=service_names),
    ] = None,
) -> None:
    """List the rules."""
    state = session.state()
    if service is not None and service not in state.services:
        raise words.no_such_service(service, state)
    rows = _rows(state, [service] if service else sorted(state.services))
    session.emit([row.model_dump(mode="json") for row in rows], _table(rows))


def _rows(state: DesiredState, services: list[str]) -> list[RuleRow]:
    found = []
    for name in services:
        rules = state.services[name].rules
        members = state.backends_of(name)
        for prefix in in_order(rules):
            pool = rules[prefix]
            found.append(
                RuleRow(
                    service=name,
                    prefix=prefix,
                    pool=pool,
                    backends_up=sum(each.pool == pool and each.takes_flows for each in members),
                )
            )
    return found


def _table(rows: list[RuleRow]) -> Table:
    return Table(
        ("SERVICE", "PREFIX", "POOL", "UP"),
        [(row.service, str(row.prefix), row.pool, str(row.backends_up)) for row in rows],
        right=frozenset({"UP"}),
        empty="no rules; add one: lbctl rule add SERVICE PREFIX POOL",
    )


def _network(text: str) -> Network:
    """The prefix that was typed, without bits behind its length."""
    try:
        return ip_network(text)
    except ValueError as error:
        hint = "for example 10.1.0.0/16, 2001:db8::/32 or 198.51.100.7"
        if "host bits" in str(error):
            hint = f"did you mean {ip_network(text, strict=False)}?"
        raise UserError(f"PREFIX: {error}", hint=hint) from None
