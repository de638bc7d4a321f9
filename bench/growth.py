"""Suite `growth`: what a packet costs (as in suite `packet`) while there are more and more services, and
backends of each: to one service, and to all of them in turn.

1,000 services of 1,000 backends would be a million backends, more than the maps take by default; the
largest here have 100,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench import frames
from bench.load import FLOWS, XDP_TX, Bench, load
from bench.netns import namespace
from bench.packet import FEW, SOME, Case, Session, measure, pinned
from bench.rows import Options, Row
from lb.errors import DatapathError
from lb.settings import Limits

SUITE = "growth"
SIZES = tuple((s, b) for s in (1, 10, 100, 1000) for b in (10, 100, 1000) if s * b <= 100_000)
BACKENDS = 1 << 17


def label(services: int, backends: int, *, spread: bool) -> str:
    """Of a case."""
    to = "to all of them" if spread else "to one"
    return f"{to}, {services:,} services of {backends:,} backends"


def cases(services: int, backends: int) -> list[Case]:
    """One flow, and 1 k, to one service; 1 k, 10 k and 1 M to all of them."""
    one = Case(
        name=label(services, backends, spread=False),
        frame=frames.tcp(frames.GROWN),
        version=4,
        verdict=XDP_TX,
        service=frames.grown_name(0, backends),
    )
    every = replace(one, name=label(services, backends, spread=True), service="", spread=True)
    return [
        *(replace(one, flows=flows) for flows in (1, FEW)),
        *(replace(every, flows=flows) for flows in (FEW, SOME, FLOWS)),
    ]


def sized(bench: Bench, services: int, backends: int) -> Session:
    """So many services of so many backends each in the kernel, and flows to all of them."""
    first = int(frames.GROWN) & 0xFFFF
    return Session(bench, frames.grown(services, backends), range(first, first + services))


def measured(bench: Bench, options: Options, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Row]:
    """All cases of these sizes: one size after the other, the cases of each interleaved."""
    found: list[Row] = []
    for size in sizes:
        session = sized(bench, *size)
        found += measure(session, cases(*size), options, SUITE)
        if entries := session.entries():
            raise DatapathError(f"bench: {entries} flows were remembered, though nothing moved")
    return found


def run(options: Options) -> list[Row]:
    """The whole suite. Needs root."""
    with pinned(), namespace(), load(Limits(backends=BACKENDS)) as bench:
        return measured(bench, options, SIZES[:4] if options.quick else SIZES)
