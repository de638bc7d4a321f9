"""All suites, each in a process of its own: what one leaves in memory isn't measured by the next."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from bench import checks, control, daemon, fleet, growth, live, packet, requests, slots
from bench.rows import Options, Row
from lb.errors import DatapathError, LbError

SUITES: dict[str, Callable[[Options], list[Row]]] = {
    "slots": slots.run,
    "packet": packet.run,
    "growth": growth.run,
    "live": live.run,
    "requests": requests.run,
    "control": control.run,
    "daemon": daemon.run,
    "checks": checks.run,
    "fleet": fleet.run,
}
NEED_ROOT = {"packet", "growth", "live", "requests", "control", "daemon", "fleet"}


def measured(suite: str, options: Options) -> list[Row]:
    """Run a suite. Raises DatapathError with the words of whatever error of ours ended it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        outcome = pool.submit(_outcome, suite, options).result()
    if isinstance(outcome, Failure):
        raise DatapathError(outcome.message, hint=outcome.hint)
    return outcome


@dataclass(frozen=True)
class Failure:
    """An error of ours, as values that get from process to process."""

    message: str
    hint: str


def _outcome(suite: str, options: Options) -> list[Row] | Failure:
    try:
        return SUITES[suite](options)
    except LbError as error:
        return Failure(error.message, error.hint)
