"""lbctl analysis: what a canary would be judged by."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from lb.cli import words
from lb.cli.options import command
from lb.cli.output import Table, percent
from lb.cli.session import Session
from lb.core.spending import Plan
from lb.errors import NotFoundError, UserError
from lb.model import analysis as model
from lb.model.analysis import Analysis

app = typer.Typer(help="Analyses: what a canary is judged by.", no_args_is_help=True)

MAX_STEPS = 100


@command(app, "check")
def check(
    session: Session,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The analysis file; - reads standard input.")
    ],
    steps: Annotated[
        str, typer.Option("--steps", metavar="PERCENT,...", help="The canary's share at each step.")
    ] = "1,5,25,50,100",
    connections: Annotated[
        int,
        typer.Option(
            "--connections",
            metavar="N",
            min=1,
            max=1_000_000,
            help="Connections or requests a step, of both pools together.",
        ),
    ] = 2000,
    looks: Annotated[
        int, typer.Option("--looks", metavar="N", min=1, max=10_000, help="Looks a step.")
    ] = 6,
) -> None:
    """Check an analysis file, say in words what would be judged, and how likely a worse canary is found.

    The chances are for a canary with two points more errors than a stable pool's 1 %, or 30 % slower, by
    the end of each step. Nothing is measured or changed by it.
    """
    from lb.core.power import explain, power  # NumPy: `lbctl --help` has no use for it

    analysis = read_analysis(file)
    plan = Plan(parse_steps(steps), looks)
    found = [(metric, power(metric, analysis, plan, connections)) for metric in analysis.metrics]
    alarms = _alarms(analysis)
    data = {
        "metrics": [
            {
                "metric": metric.name,
                "observe": metric.observe,
                "words": explain(metric),
                "finds": chance.of if chance else None,
                "power": list(chance.by_step) if chance else None,
            }
            for metric, chance in found
        ],
        "false_alarms": None if alarms is None else analysis.false_alarms,
        "steps": list(plan.steps),
        "looks": looks,
        "connections": connections,
    }
    table = Table(
        ("METRIC", "FINDS", *(f"{step:g}%" for step in plan.steps)),
        [
            (metric.name, chance.of, *(f"{each:.1%}" for each in chance.by_step))
            for metric, chance in found
            if chance
        ],
        right=frozenset(f"{step:g}%" for step in plan.steps),
        empty="none of these metrics has a power that is known beforehand",
        title=f"Found by the end of the step, at {connections:,} connections a step:",
    )
    says = "\n".join(f"{metric.name} {explain(metric)}." for metric, _ in found)
    session.emit(data, says, table, alarms or f"An equal canary may be aborted: {_OUTSIDE}.")


_OUTSIDE = "how often by a metric from outside depends on how much it varies, and on its `breaches`"


def _alarms(analysis: Analysis) -> str | None:
    """What `false_alarms` promises, as far as it does; None if no metric is tested."""
    judging = [each for each in analysis.metrics if not each.observe]
    tested = [each for each in judging if each.kernel is not None]
    if judging and not tested:
        return None
    within = " within the limits" if any(each.limit is not None for each in tested) else ""
    share = percent(100 * analysis.false_alarms if tested else 0.0)
    said = f"An equal canary{within} is aborted in at most {share} % of rollouts"
    return f"{said} by the kernel's metrics; {_OUTSIDE}." if len(tested) < len(judging) else f"{said}."


def read_analysis(file: str) -> Analysis:
    """The analysis in a file, - = standard input. Raises NotFoundError, UserError."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{file}: no such file", hint="check the name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise words.unread(file, error, "give a YAML file in UTF-8") from None
    return model.load(text, "standard input" if file == "-" else file)


def parse_steps(text: str) -> tuple[float, ...]:
    """1,5,25,50,100: each larger than the one before. Raises UserError."""
    hint = "for example --steps 1,5,25,50,100"
    try:
        steps = tuple(float(each) for each in text.split(","))
    except ValueError:
        raise UserError(f"--steps: {text!r} is not a list of per cents", hint=hint) from None
    rising = all(one < other for one, other in pairwise(steps))
    if not (rising and steps[0] > 0 and steps[-1] <= 100 and len(steps) <= MAX_STEPS):
        raise UserError(f"--steps: {text!r} must rise, from above 0 to 100 at most", hint=hint)
    return steps
