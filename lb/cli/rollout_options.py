"""From what is typed for a rollout to values; what is wrong is said by the option's name."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from lb.cli import words
from lb.errors import UserError
from lb.model.rollout import RolloutSpec

WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="Return when it is over, or waits for a person; the exit code says how it ended.",
    ),
]
WaitTimeoutOption = Annotated[
    str | None,
    typer.Option("--timeout", metavar="TIME", help="How long --wait waits; none = as long as it takes."),
]
TimeoutOption = Annotated[
    str | None,
    typer.Option("--timeout", metavar="TIME", help="How long to wait; none = as long as it takes."),
]


def spec_of(**fields: Any) -> RolloutSpec:
    """What is asked for. Raises UserError."""
    try:
        return RolloutSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "steps"
        option = {"pool": "--to"}.get(name, f"--{name}")
        given = f", not {first['input']!r}" if len(first["loc"]) else ""
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "string_pattern_mismatch" and name == "pool":
            what = "must be 1 to 63 of a-z, 0-9 and '-'"
        elif first["type"] == "string_pattern_mismatch":
            what = "must begin with http:// or https://"
        raise UserError(
            f"{option}: {what[:1].lower()}{what[1:]}{given}", hint="see `lbctl rollout start --help`"
        ) from None


def steps_of(text: str) -> tuple[float, ...]:
    """Per cents. Raises UserError."""
    try:
        return tuple(float(each.strip().removesuffix("%")) for each in text.split(","))
    except ValueError:
        raise UserError(
            f"--steps: {text!r} is not a list of per cents", hint="for example 1,5,25,50,100"
        ) from None


def limit_of(text: str | None, waits: bool) -> float | None:
    """Of --timeout, in seconds; `waits`: there is something that it limits. Raises UserError."""
    if text is not None and not waits:
        raise UserError("--timeout is how long --wait waits", hint="add --wait, or leave --timeout out")
    return None if text is None or text == "inf" else words.duration(text, "--timeout")
