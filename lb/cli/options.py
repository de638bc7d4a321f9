"""The options that commands share, added to a command by the decorators here.

A command is written as `def show(session: Session, name: ServiceName)`; Typer sees it with the
options of `COMMON` (and `CHANGE`) behind its own parameters.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import OptionInfo

from lb.cli.complete import backend_names, service_names
from lb.cli.output import Format
from lb.cli.session import Session
from lb.model.health import seconds

SIGPIPE_EXIT = 141  # what a shell reports for a program that SIGPIPE ended: 128 + 13

Command = Callable[..., None]
Register = Callable[[Command], Command]

ServiceName = Annotated[
    str,
    typer.Argument(metavar="SERVICE", help="Name of the service.", autocompletion=service_names),
]
BackendName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of the backend.", autocompletion=backend_names),
]
BackendNames = Annotated[
    list[str],
    typer.Argument(metavar="NAME", help="Names of the backends.", autocompletion=backend_names),
]

OutputOption = Annotated[
    Format,
    typer.Option("--output", "-o", help="A table for people, JSON or YAML for programs."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="PATH", help="Settings file [/etc/lb/lb.toml, LB_CONFIG]."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", help="Store to use instead of the settings' one; a file must be there."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check and show what would change; write nothing.")
]
WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Return when every node has applied the change.")
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Also a split that a rollout is changing, which ends the rollout, or one of pools without a"
        " backend; --prune of what is quarantined, too.",
    ),
]


def a_time(text: str | float) -> float:
    """What Typer has options read with that are times; and defaults. Seconds; `inf` is for ever."""
    if text in ("inf", math.inf):
        return math.inf
    try:
        return float(str(seconds(text)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="TIME",
        parser=a_time,
        help="How long --wait waits: 30s, 2m; inf = for ever.",
    ),
]


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


COMMON = (
    _option("output", OutputOption, Format.TABLE),
    _option("config", ConfigOption, None),
    _option("store", StoreOption, None),
)
CHANGE = (
    _option("dry_run", DryRunOption, False),
    _option("wait", WaitOption, False),
    _option("timeout", TimeoutOption, 10.0),
    _option("force", ForceOption, False),
)


def spellings(option: OptionInfo) -> list[str]:
    """How an option can be typed: --wait/--no-wait, or --output and -o."""
    given = (option.default, *(option.param_decls or ()))
    return [each for each in given if isinstance(each, str) and each.startswith("-")]


def command(app: typer.Typer, name: str, **settings: Any) -> Register:
    """Register a command that only looks."""
    return _register(app, name, COMMON, settings)


def change(app: typer.Typer, name: str, **settings: Any) -> Register:
    """Register a command that changes desired state."""
    return _register(app, name, (*CHANGE, *COMMON), settings)


def _register(
    app: typer.Typer, name: str, shared: tuple[inspect.Parameter, ...], settings: dict[str, Any]
) -> Register:
    def register(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True)
        own = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in list(signature.parameters.values())[1:]
        ]
        # A command may have one of them in a way of its own.
        added = [each for each in shared if each.name not in {mine.name for mine in own}]

        def run(**values: Any) -> None:
            given = {each.name: values.pop(each.name) for each in added}
            session = Session(
                output=given.get("output", Format.TABLE),
                config=given["config"],
                store_url=given["store"],
                dry_run=given.get("dry_run", False),
                wait=given.get("wait", False),
                timeout=given.get("timeout", 0.0),
                force=given.get("force", False),
                changes=shared is not COMMON,
            )
            try:
                try:
                    function(session, **values)
                except typer.Exit:
                    sys.stdout.flush()
                    raise
                sys.stdout.flush()  # here, where a closed pipe can still be answered quietly
            except BrokenPipeError:
                _quiet_stdout()
                raise typer.Exit(SIGPIPE_EXIT) from None
            except KeyboardInterrupt:
                raise typer.Abort from None  # before Typer makes an exit code of it, and nothing else
            finally:
                session.close()

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        # Typer reads the parameters from here; `run` itself takes them all by name.
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *added], return_annotation=None
        )
        run.__annotations__ = {each.name: each.annotation for each in (*own, *added)}
        app.command(name, **settings)(run)
        return function

    return register


def _quiet_stdout() -> None:
    """Python flushes stdout once more when it exits; let that go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
