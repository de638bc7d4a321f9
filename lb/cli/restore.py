"""lbctl restore: a store that was lost, made anew from what a node still serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lb.cli.options import change
from lb.cli.record import recording
from lb.cli.session import Session, state_of
from lb.cli.wait import until_applied
from lb.errors import ConflictError, UserError
from lb.model import keys
from lb.store.base import Compare, Put, Unwritten

CopyArgument = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A node's copy: the file that `last_known` in lb.toml names."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    change(app, "restore")(restore)


def restore(session: Session, file: CopyArgument) -> None:
    """Fill an empty store with what a node served last: services, backends, slot tables, and the seed of
    the flow hash, so that every flow stays where it is.

    Take the copy of the node that has come furthest. `lbctl apply` can't do this: it makes a new seed.
    """
    from lb.node.last_known import read, stored  # only here: it is lbd's

    copy, cluster = read(file)
    if copy.config is None or copy.problems:
        raise UserError(f"{file} is not whole", hint="take the copy of another node")
    snapshot = session.snapshot()
    if any(item.key.startswith((keys.CONFIG, keys.SERVICES, keys.BACKENDS)) for item in snapshot.items):
        raise ConflictError(
            "the store is not empty: nothing was changed",
            hint="`lbctl export` shows what is in it; `lbctl apply` changes what is there",
        )
    documents = dict(stored(copy))
    _, operations = recording(snapshot, documents)
    operations += [Put(key, each.model_dump_json()) for key, each in documents.items()]
    lines = [
        f"{len(copy.services)} services, {len(copy.backends)} backends, as of revision {copy.revision}"
        + (f" of cluster {cluster}" if cluster else "")
    ]
    revision, applied = None, None
    if session.dry_run:
        lines.append("dry run: nothing was written")
    else:
        nobody = [Unwritten(prefix, 0) for prefix in (keys.SERVICES, keys.BACKENDS)]
        revision = session.store.commit(operations, [Compare(keys.CONFIG, 0), *nobody])
        lines.append(f"stored at revision {revision}")
        if session.wait:
            nodes = state_of(snapshot).nodes
            waited = until_applied(session.store, revision, session.timeout, documents, nodes)
            applied = waited.applied
            lines.append(f"applied by {', '.join(applied)}")
    session.emit(
        {
            "services": len(copy.services),
            "backends": len(copy.backends),
            "dry_run": session.dry_run,
            "revision": revision,
            "applied_by": applied,
        },
        *lines,
    )
