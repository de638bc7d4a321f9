"""The `lbctl` command: its tree, and the one place where errors become text and exit codes."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn, get_args

import typer

import lb
from lb.cli import (
    analysis,
    backend,
    backend_node,
    check,
    declarative,
    flows,
    history,
    import_,
    node,
    record,
    replay,
    restore,
    rollout,
    rule,
    service,
    status,
    trace,
)
from lb.cli.options import CHANGE, COMMON, spellings
from lb.cli.output import Format, document, report
from lb.errors import ExitCode, Interrupted, LbError, OutputError
from lb.store.ending import leave

app = typer.Typer(
    name="lbctl",
    help="Steer traffic: services, their backends, and who gets how much.\n\n"
    "Options go behind the command: lbctl status -o json.",
    no_args_is_help=True,
    # Plain help: rich would double the time that --help takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(service.app, name="service")
app.add_typer(backend.app, name="backend")
app.add_typer(rule.app, name="rule")
app.add_typer(rollout.app, name="rollout")
app.add_typer(backend_node.app, name="backend-node")
app.add_typer(flows.app, name="flows")
app.add_typer(analysis.app, name="analysis")
app.add_typer(node.app, name="node")
app.add_typer(import_.app, name="import")
status.register(app)
trace.register(app)
replay.register(app)
check.register(app)
declarative.register(app)
history.register(app)
restore.register(app)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"lbctl {lb.__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Steer traffic: services, their backends, and who gets how much."""


class UsageError(LbError):
    """The command line can't be understood."""

    exit_code = ExitCode.USAGE


class InternalError(LbError):
    """A bug in lb."""


_NO_TEXT = re.compile("[\\0\\ud800-\\udfff]")


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    output = asked_format(arguments)
    record.command.set(shlex.join(["lbctl", *arguments]))
    record.stored.set(0)
    try:
        _refuse_what_is_no_text(arguments)
        return int(app(args=list(arguments), prog_name="lbctl", standalone_mode=False) or 0)
    except LbError as error:
        report(error, output)
        return int(error.exit_code)
    except SystemExit as end:  # Typer's own ends: shell completion, and a closed pipe
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except typer.Abort:  # Ctrl-C: people know what they did
        document(Interrupted(f"interrupted{_stored()}"), output)
        return int(ExitCode.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last resort; LB_DEBUG shows all of it
        return _report_other(error, output)


# What writing to a disk, a pipe or a terminal ends with. A file that we opened ourselves has a name in
# the error, and its own words.
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def _unwritten(error: Exception) -> OutputError | None:
    if not isinstance(error, OSError) or error.filename or error.errno not in _UNWRITTEN:
        return None
    return OutputError(
        f"the output can't be written ({error.strerror}){_stored()}",
        hint="what it goes to is full, or gone; `lbctl history` shows which changes are stored",
    )


def _stored() -> str:
    at = record.stored.get()
    return f"; the change is stored at revision {at}" if at else ""


def _refuse_what_is_no_text(arguments: Sequence[str]) -> None:
    """Bytes that are not UTF-8 come as surrogates, which no document and no output can hold, nor the
    record of a change. (A shell passes no zero byte on, but whoever calls us from Python may.)"""
    for word in arguments:
        if _NO_TEXT.search(word):
            raise UsageError(f"{word!a} is not UTF-8", hint="lbctl takes no other text")


def _report_other(error: Exception, output: Format) -> int:
    usage = _usage_error(error) or _unwritten(error)
    if usage is None and os.environ.get("LB_DEBUG"):
        traceback.print_exception(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{error}\n")
        return int(ExitCode.USAGE)
    found = usage or InternalError(
        f"internal error: {type(error).__name__}: {error}",
        hint="this is a bug in lb: report it with the traceback that LB_DEBUG=1 shows",
    )
    report(found, output)
    return int(found.exit_code)


def _usage_error(error: Exception) -> UsageError | None:
    """What Typer refuses, as one of ours. Its exceptions have no public name; they format
    themselves, and carry the context that they arose in."""
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    message = str(describe()).rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "lbctl"
    # Typer leaves the words of pydantic's validators as they are.
    message = message.replace("Value error, ", "")
    hint = f"see `{path} --help`"
    option = getattr(error, "option_name", "")
    if option in _of_commands() and hasattr(getattr(context, "command", None), "commands"):
        hint = f"put {option} behind the command: {path} COMMAND … {option} …; {hint}"
    return UsageError(message[:1].lower() + message[1:], hint=hint)


def _of_commands() -> set[str]:
    """The options that every command, or every change, has itself."""
    options = [get_args(each.annotation)[1] for each in (*COMMON, *CHANGE)]
    return {name for each in options for word in spellings(each) for name in word.split("/")}


def asked_format(arguments: Sequence[str]) -> Format:
    """The value of -o, read from the bare words: the error may be that they can't be parsed."""
    words = list(arguments)
    found = ""
    for index, word in enumerate(words):
        if word == "--":
            break
        if word in ("-o", "--output"):
            found = "".join(words[index + 1 : index + 2])
        elif word.startswith("--output="):
            found = word.removeprefix("--output=")
        elif word.startswith("-o"):
            found = word.removeprefix("-o").removeprefix("=")
    return Format(found) if found in list(Format) else Format.TABLE


def main() -> NoReturn:
    """What is behind the entry point (lb/cli/entry.py)."""
    _open_streams()
    leave(run(sys.argv[1:]))


def _open_streams() -> None:
    """Closed ones (`lbctl … >&-`) lead nowhere, before a file gets their number; and a character that a
    terminal's encoding lacks must not end a command."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as we live
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # stderr has escapes for them


if __name__ == "__main__":
    main()
