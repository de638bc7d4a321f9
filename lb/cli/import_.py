"""lbctl import: what another load balancer has, as a manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lb.cli import words
from lb.cli.options import command
from lb.cli.output import Format, note, structured
from lb.cli.session import Session
from lb.core.ipvs import read
from lb.errors import ExitCode, NotFoundError

app = typer.Typer(help="Manifests out of what other load balancers have.", no_args_is_help=True)


@command(app, "ipvs")
def ipvs(
    session: Session,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="What `ipvsadm -S -n` printed; - reads standard input.")
    ],
) -> None:
    """Print the manifest of IPVS rules, YAML unless `-o json`, for `lbctl apply`.

    What a manifest can't say is listed on standard error, line by line. Exit code 1 if a service or a
    server had to be left out. Nothing is changed, here or in IPVS.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{file}: no such file", hint="save the rules: ipvsadm -S -n") from None
    except (OSError, UnicodeDecodeError) as error:
        raise words.unread(file, error, "save the rules: ipvsadm -S -n") from None
    imported = read(text)
    session.emit(imported.manifest, structured(Format.YAML, imported.manifest))
    for remark in imported.remarks:
        note(f"line {remark.line}: {remark.text}")
    if any(remark.lost for remark in imported.remarks):
        raise typer.Exit(ExitCode.DIFFERENT)
