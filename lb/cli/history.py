"""lbctl history and lbctl rollback: who changed what, and how it was before."""

from __future__ import annotations

from typing import Annotated

import typer

from lb.cli import words
from lb.cli.change import Draft, Edit, perform
from lb.cli.complete import service_names
from lb.cli.options import change, command
from lb.cli.output import Block, Table
from lb.cli.record import records
from lb.cli.session import Session
from lb.errors import NotFoundError, RevisionCompacted, UserError
from lb.model import keys
from lb.model.history import Record
from lb.model.objects import Backend, Service
from lb.store.base import Snapshot, Store

LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the newest first.")]
ServiceOption = Annotated[
    str | None,
    typer.Option(
        "--service", metavar="SERVICE", help="Only this service.", autocompletion=service_names
    ),
]
Revision = Annotated[
    int, typer.Argument(metavar="REV", min=1, help="A revision, as `lbctl history` shows it.")
]

DESIRED = (keys.SERVICES, keys.BACKENDS)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "history")(history)
    change(app, "rollback")(rollback)


def history(session: Session, limit: LimitOption = 20, service: ServiceOption = None) -> None:
    """Show the last changes: when, by whom, with which command. Each revision can be rolled back to."""
    found = [
        (revision, record)
        for revision, record in records(session.snapshot())
        if service is None or any(_is_of(key, service) for key in record.keys)
    ][:limit]
    rows = [
        (str(revision), words.moment(record.when), record.who, record.what, _summary(record))
        for revision, record in found
    ]
    blocks: list[Block] = [
        Table(
            ("REV", "WHEN", "WHO", "COMMAND", "CHANGED"),
            rows,
            right=frozenset({"REV"}),
            empty="no change is recorded",
        )
    ]
    session.emit([{"revision": rev, **record.model_dump()} for rev, record in found], *blocks)


def rollback(session: Session, revision: Revision, service: ServiceOption = None) -> None:
    """Bring services and backends back to what they were at a revision.

    That is a change like any other: checked, recorded, and it can be rolled back. Weights move as few
    slots as they can.
    """
    perform(session, _edit(session.store, revision, service))


def _edit(store: Store, revision: int, service: str | None) -> Edit:
    def edit(draft: Draft) -> None:
        then = documents_at(store, draft.snapshot, revision)
        now = _documents(draft.snapshot)
        if service is not None:
            then, now = (
                {key: text for key, text in each.items() if _is_of(key, service)} for each in (then, now)
            )
            if not then and not now:
                raise words.no_such_service(service, draft.state)
        for key, text in then.items():
            if now.get(key) != text:
                draft.put(_parsed(key, text))
        for key in now.keys() - then.keys():
            if key.startswith(keys.SERVICES):
                draft.remove_service(key.removeprefix(keys.SERVICES))
            else:
                draft.remove(key)

    return edit


def documents_at(store: Store, snapshot: Snapshot, revision: int) -> dict[str, str]:
    """Services and backends, as text, as of a revision: from the store, if it keeps it still, or by
    going back from the present, record by record. Raises NotFoundError, UserError."""
    if revision > snapshot.revision:
        raise NotFoundError(
            f"there is no revision {revision} yet; the newest is {snapshot.revision}",
            hint="`lbctl history` shows those that were changes",
        )
    try:
        return _documents(store.read(keys.ROOT, revision=revision))
    except RevisionCompacted:
        found = records(snapshot)
    # The change that made this revision, or an earlier one, must be on record: only then are all that
    # came after it there, too.
    if not found or found[-1][0] > revision:
        oldest = found[-1][0] if found else snapshot.revision
        raise NotFoundError(
            f"revision {revision} is no longer kept: the oldest is {oldest}",
            hint="`lbctl history` shows what is kept; or `lbctl apply` a manifest of that time",
        )
    documents = _documents(snapshot)
    for at, record in found:
        if at <= revision:
            break
        if record.changes is None:
            raise NotFoundError(
                f"the change at revision {at} was too large to be recorded whole, so there is no way"
                f" back to {revision}",
                hint=f"go back to {at} or later, or `lbctl apply` a manifest of that time",
            )
        for each in record.changes:
            if each.before is None:
                documents.pop(each.key, None)
            else:
                documents[each.key] = each.before
    return documents


def _documents(snapshot: Snapshot) -> dict[str, str]:
    return {item.key: item.value for item in snapshot.items if item.key.startswith(DESIRED)}


def _parsed(key: str, text: str) -> Service | Backend:
    kind: type[Service | Backend] = Service if key.startswith(keys.SERVICES) else Backend
    try:
        return kind.model_validate_json(text)
    except ValueError:
        raise UserError(
            f"{words.label(key)} was not valid then", hint="roll back to another revision"
        ) from None


def _is_of(key: str, service: str) -> bool:
    return key == keys.service(service) or key.startswith(keys.backend(service, ""))


def _summary(record: Record) -> str:
    names = [words.label(key) for key in record.keys]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
