"""lbctl restore: a store that was lost, made anew from what a node still serves.

All of it may be more than etcd takes at once: a slot table has some 26 KB, and there may be thousands of
backends. So it goes in portions, in an order that leaves nothing in force before everything is there:

    slot tables -> backends, where they don't fit into the last -> configuration, services, backends

As long as neither configuration nor services are stored, nodes that serve something hold it (the store
is empty: lb/node/last_known.py), and new ones have nothing to do. Each portion compares that it is still
so, and that nobody else has written any of it. Whatever ends it half-way, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from lb.cli import words
from lb.cli.options import change
from lb.cli.output import note
from lb.cli.record import recording
from lb.cli.session import Session, state_of
from lb.cli.wait import telling, until_applied
from lb.errors import CapacityError, ConflictError, LbError, UserError
from lb.model import keys
from lb.model.objects import Document
from lb.store.base import Compare, Put, Snapshot, Store, Unwritten
from lb.store.portions import Operation, commit_in_portions

PUTS_A_COMMIT = 1000  # etcd's limit of 128 is met by nesting: lb/store/etcd_requests.py

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
    All comes into force at once; if it is ended half-way, give the same command again.
    """
    from lb.node.last_known import read, stored  # only here: it is lbd's

    copy, cluster = read(file)
    if copy.config is None or copy.problems:
        raise UserError(f"{file} is not whole", hint="take the copy of another node")
    documents = dict(stored(copy))
    snapshot = session.snapshot()
    _check_empty(snapshot, documents)
    lines = [
        f"{len(copy.services)} services, {len(copy.backends)} backends, as of revision {copy.revision}"
        + (f" of cluster {cluster}" if cluster else "")
    ]
    done: dict[str, object] = {
        "services": len(copy.services),
        "backends": len(copy.backends),
        "dry_run": session.dry_run,
        "revision": None,
        "applied_by": None,
    }
    if session.dry_run:
        lines.append("dry run: nothing was written")
    else:
        revision = _Filling(session.store, snapshot, documents).run()
        done["revision"] = revision
        lines.append(f"stored at revision {revision}")
        if session.wait:
            session.say(*lines)
            with telling(done):
                nodes = state_of(snapshot).nodes
                waited = until_applied(session.store, revision, session.timeout, documents, nodes)
            lines = [f"applied by {', '.join(waited.applied)}"]
            done["applied_by"] = waited.applied
    session.emit(done, *lines)


def _check_empty(snapshot: Snapshot, documents: Mapping[str, Document]) -> None:
    """Nothing may be there but what an earlier try has written of the same copy."""
    if any(item.key.startswith((keys.CONFIG, keys.SERVICES)) for item in snapshot.items):
        raise ConflictError(
            "the store is not empty: nothing was changed",
            hint="`lbctl export` shows what is in it; `lbctl apply` changes what is there",
        )
    for item in snapshot.items:
        if item.key.startswith(keys.BACKENDS):
            ours = documents.get(item.key)
            if ours is None or ours.model_dump_json() != item.value:
                raise ConflictError(
                    f"the store is not empty: it has {words.label(item.key)}, and not as the copy does;"
                    " nothing was changed",
                    hint="if a restore has ended half-way, give the same copy again; else remove what is"
                    f" there: etcdctl del --prefix {keys.BACKENDS}",
                )


@dataclass
class _Filling:
    """One run. Raises ConflictError if somebody else writes meanwhile, CapacityError for what etcd takes
    in no portion, StoreUnavailable."""

    store: Store
    snapshot: Snapshot
    documents: Mapping[str, Document]
    revision: int = field(init=False)  # after what we have written

    def __post_init__(self) -> None:
        self.revision = self.snapshot.revision

    def run(self) -> int:
        """Returns the revision that has everything."""
        tables, backends = self._puts(keys.TABLES), self._puts(keys.BACKENDS)
        _, record = recording(self.snapshot, self.documents)
        rest: list[Operation] = [*self._puts(keys.CONFIG), *self._puts(keys.SERVICES), *record]
        try:
            self._write(tables)
            with suppress(CapacityError):
                return self.store.commit([*rest, *backends], self._guard())
            self._write(backends)
            return self.store.commit(rest, self._guard())
        except LbError as error:
            if self.revision > self.snapshot.revision:
                note(
                    "a part is stored. Unless `lbctl service list` shows services, none of it is in"
                    " force, and the same command goes on"
                )
            if not isinstance(error, CapacityError):
                raise
            raise CapacityError(
                f"what can't be divided any more is more than the store takes: {error.message}",
                hint="start the etcd servers with larger --max-request-bytes and --max-txn-ops for now,"
                " and run the same command again; nodes hold what they serve until then",
            ) from error

    def _puts(self, prefix: str) -> list[Operation]:
        return [
            Put(key, each.model_dump_json())
            for key, each in self.documents.items()
            if key.startswith(prefix)
        ]

    def _write(self, operations: list[Operation]) -> None:
        for revision in commit_in_portions(self.store, operations, PUTS_A_COMMIT, self._guard):
            self.revision = revision

    def _guard(self) -> list[Compare | Unwritten]:
        ours = (keys.SERVICES, keys.BACKENDS, keys.TABLES)
        return [Compare(keys.CONFIG, 0), *(Unwritten(prefix, self.revision) for prefix in ours)]
