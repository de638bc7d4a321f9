"""A figure from a program of this node; run as programs of health checks are."""

from __future__ import annotations

import asyncio

from lb.analysis.context import MAX_ANSWER, Context, NotMeasured, read_answer
from lb.model.analysis import Command
from lb.model.evidence import Measurement
from lb.probe import program
from lb.probe.base import Failed, excerpt


def ask(source: Command, context: Context, metric: str) -> Measurement:
    """Raises NotMeasured."""
    return read_answer(asyncio.run(_run(source, context, metric)))


async def _run(source: Command, context: Context, metric: str) -> bytes:
    name = source.argv[0]
    environment = {
        "PATH": program.PATH,
        "LB_METRIC": metric,
        "LB_SERVICE": context.service,
        "LB_STABLE": context.stable,
        "LB_CANARY": context.canary,
        "LB_STEP": str(context.step),
        "LB_SHARE": f"{context.share:g}",
        "LB_SECONDS": f"{context.seconds:g}",
    }
    try:
        path = program.allowed(name, context.exec_dir)
        async with asyncio.timeout(source.timeout):
            status, output, errors = await program.run(
                (path, *source.argv[1:]),
                environment,
                given=context.document(metric).encode(),
                most=MAX_ANSWER + 1,
            )
    except TimeoutError:
        raise NotMeasured(f"{name}: no end within {source.timeout:g} s") from None
    except Failed as error:
        raise NotMeasured(str(error)) from None
    if status:
        said = errors or output
        raise NotMeasured(
            f"{name}: {program.describe_status(status)}" + (f": {excerpt(said)}" if said else "")
        )
    return output
