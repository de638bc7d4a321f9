"""lbctl apply, diff, export, schema: the whole desired state as one file."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lb.cli import words
from lb.cli.change import Draft, Edit, perform, propose
from lb.cli.options import change, command
from lb.cli.output import Format, note, structured
from lb.cli.rows import by_service
from lb.cli.session import Session
from lb.core.state import DesiredState
from lb.errors import ExitCode, NotFoundError, UserError
from lb.model import analysis, keys, manifest
from lb.model.flows import FlowReport
from lb.model.health import Ballot
from lb.model.history import Record
from lb.model.manifest import Manifest
from lb.model.objects import (
    Backend,
    ClusterConfig,
    Document,
    Service,
    TableDocument,
)
from lb.model.reports import Member, NodeStatus
from lb.model.rollout import Rollout, RolloutEvidence, RolloutLock

DOCUMENTS: dict[str, type[Document]] = {
    "service": Service,
    "backend": Backend,
    "config": ClusterConfig,
    "table": TableDocument,
    "node": NodeStatus,
    "votes": Ballot,
    "member": Member,
    "flows": FlowReport,
    "record": Record,
    "rollout": Rollout,
    "evidence": RolloutEvidence,
    "lock": RolloutLock,
}

FileOption = Annotated[
    str, typer.Option("--file", "-f", metavar="FILE", help="The manifest; - reads standard input.")
]
PruneOption = Annotated[
    bool, typer.Option("--prune", help="Remove the services and backends that it doesn't name.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    change(app, "apply")(apply)
    command(app, "diff")(diff)
    command(app, "export")(export)
    command(app, "schema")(schema)


def apply(session: Session, file: FileOption, prune: PruneOption = False) -> None:
    """Make the desired state what a manifest says, in one step.

    A manifest owns the settings that it writes down: what it leaves out has its default in a new
    service or backend, and stays as it is in one that exists.
    """
    perform(session, edit_of(read_manifest(file), prune, session.force))


def diff(session: Session, file: FileOption, prune: PruneOption = False) -> None:
    """Show what `apply` would change. Exit code 1 if anything."""
    proposal = propose(session, edit_of(read_manifest(file), prune))
    before, after = (
        structured(Format.YAML, _exported(state)).splitlines()
        for state in (proposal.before, proposal.after)
    )
    text = "\n".join(
        difflib.unified_diff(before, after, "in force", file, lineterm="", n=6)
    ) or "\n".join(each.text for each in proposal.differences)
    session.emit([each.as_dict() for each in proposal.differences], text or "no differences")
    if proposal.differences:
        raise typer.Exit(ExitCode.DIFFERENT)


def export(session: Session) -> None:
    """Print everything as a manifest, YAML unless `-o json`; `apply` of it changes nothing.

    What is quarantined can't be in it: it is listed on standard error, and the exit code is 1.
    """
    state = session.state()
    data = _exported(state)
    session.emit(data, structured(Format.YAML, data))
    missing = sorted(state.not_understood)
    for key in missing:
        reasons = [each.message for each in state.problems if each.where == key]
        note(f"{words.label(key)} is left out, because it is quarantined: {'; '.join(reasons)}")
    if missing:
        raise typer.Exit(ExitCode.DIFFERENT)


def schema(
    session: Session,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help=f"manifest, analysis, or a document of the store: {', '.join(DOCUMENTS)}.",
            autocompletion=lambda: [*DOCUMENTS, "manifest", "analysis"],
        ),
    ] = None,
) -> None:
    """Print a JSON Schema; without WHAT, that of all documents and files, by name."""
    known: dict[str, Any] = {
        "manifest": manifest.schema(),
        **{name: kind.model_json_schema() for name, kind in DOCUMENTS.items()},
        "analysis": analysis.schema(),
    }
    if what is not None and what not in known:
        raise UserError(f"no schema {what!r}", hint=f"there are: {', '.join(known)}")
    data = known if what is None else known[what]
    session.emit(data, structured(Format.JSON, data))


def read_manifest(file: str) -> Manifest:
    """The manifest in a file, - = standard input. Raises NotFoundError, UserError."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{file}: no such file", hint="check the name behind -f") from None
    except (OSError, UnicodeDecodeError) as error:
        raise words.unread(file, error, "give a YAML file in UTF-8") from None
    return manifest.load(text, "standard input" if file == "-" else file)


def edit_of(wanted: Manifest, prune: bool, force: bool = False) -> Edit:
    """What `apply` does."""

    def edit(draft: Draft) -> None:
        named: set[str] = set()
        for entry in wanted.services:
            name = entry.service.name
            named.add(keys.service(name))
            _warn(draft, keys.service(name))
            draft.put(manifest.merged(draft.state.services.get(name), entry.service))
            for backend in entry.backends:
                named.add(keys.backend(name, backend.name))
                _warn(draft, keys.backend(name, backend.name))
                current = draft.state.backends.get((name, backend.name))
                draft.put(manifest.merged(current, backend))
        if prune:
            _prune(draft, named, force)

    return edit


def _warn(draft: Draft, key: str) -> None:
    """Of a quarantined document no setting can stay as it is: none is known here."""
    if key in draft.state.quarantined:
        draft.notes.append(
            f"{words.label(key)} is quarantined: it is written anew, and what the manifest leaves out"
            " has its default"
        )


def _prune(draft: Draft, named: set[str], force: bool) -> None:
    """What isn't understood here may be in force at nodes, and an export has left it out: it stays."""
    kept = set() if force else draft.state.not_understood - named
    for key in sorted(kept):
        draft.notes.append(f"{words.label(key)} is quarantined, and stays; --force removes it, too")
    # A service stays with what is quarantined of it: without it nobody could put that right.
    for key in draft.keys_under(keys.SERVICES):
        name = key.removeprefix(keys.SERVICES)
        of_it = set(draft.keys_under(keys.backend(name, "")))
        if key not in named and key not in kept and kept & of_it:
            draft.notes.append(f"service {name} stays with it")
            kept.add(key)
    for key in draft.keys_under(keys.BACKENDS):
        if key not in named and key not in kept:
            draft.remove(key)
    for key in draft.keys_under(keys.SERVICES):
        if key not in named and key not in kept:
            draft.remove_service(key.removeprefix(keys.SERVICES))


def _exported(state: DesiredState) -> dict[str, Any]:
    grouped = by_service(state)
    return manifest.export((service, grouped[name]) for name, service in sorted(state.services.items()))
