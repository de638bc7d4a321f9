"""lbctl service metrics: what became of a service's connections, as nodes and servers saw it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Annotated

import typer

from lb.cli import words
from lb.cli.options import ServiceName, a_time
from lb.cli.output import Table, note, number
from lb.cli.session import Session
from lb.core import flowtotals, histogram, sight
from lb.core.measures import pooled
from lb.errors import NotFoundError, UserError
from lb.model import keys
from lb.model.flows import FlowReport, FlowTotals, Vantage
from lb.model.objects import Protocol, Service

_SHARES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
_COLUMNS = (
    "POOL", "BACKEND", "OPENED", "REFUSED", "UNANSWERED", "SYN AGAIN", "RESETS", "SENT AGAIN",
    "REQUESTS", "UNSERVED", "5XX", "HANDSHAKE", "FIRST BYTE",
)  # fmt: skip


def _a_second_at_least(over: float | None) -> float | None:
    if over is not None and not 1 <= over < math.inf:  # nodes report once a second
        raise typer.BadParameter("has to be one second at least, and to end")
    return over


def metrics(
    session: Session,
    service: ServiceName,
    over: Annotated[
        float | None,
        typer.Option(
            "--over",
            metavar="TIME",
            parser=a_time,
            callback=_a_second_at_least,
            help="Watch for so long, and show what came meanwhile: 30s.",
        ),
    ] = None,
) -> None:
    """Show what became of its connections: per pool and backend, and what can't be seen in its mode.

    Without --over, since it is observed. RESETS and SENT AGAIN are by the client and by the server,
    HANDSHAKE and FIRST BYTE the median and the 95th percentile. It has to be observed: `lbctl service
    set SERVICE --observe`.
    """
    state = session.state()
    if service not in state.services:
        raise words.no_such_service(service, state)
    document = state.services[service]
    reports, lost = _reports(session, service), set[str]()
    if not reports:
        raise _nothing_yet(document)
    if over is not None:
        before = reports
        time.sleep(over)
        reports, lost = flowtotals.between(before, _reports(session, service))
        for name in sorted(lost):
            note(f"{name} began anew meanwhile, or was not there all the time: it is left out")
    pools = {each.name: each.pool for each in state.backends_of(service)}
    seen = flowtotals.merged(reports.values())
    rows = {
        pool: {name: seen[name] for name in sorted(seen) if pools.get(name) == pool}
        for pool in sorted(set(pools.values()))
    }
    vantages = {each.vantage for each in reports.values()}
    unseen = {vantage.value: _unseen(document, vantage) for vantage in Vantage if vantage in vantages}
    session.emit(
        {
            "service": service,
            "observers": {
                name: {"vantage": each.vantage.value, "epoch": each.epoch, "at": each.at}
                for name, each in sorted(reports.items())
            },
            "lost": sorted(lost),
            "pools": {
                pool: {
                    "totals": _figures(pooled(backends.values())),
                    "backends": {name: _figures(each) for name, each in backends.items()},
                }
                for pool, backends in rows.items()
            },
            "unseen": unseen,
        },
        Table(_COLUMNS, _rows(rows), right=frozenset(_COLUMNS[2:])),
        *(
            f"{_WHERE[vantage]} (mode {document.mode}): {'; '.join(unseen[vantage.value])}"
            for vantage in Vantage
            if unseen.get(vantage.value)
        ),
    )


_WHERE = {
    Vantage.NODE: "not all is seen by nodes",
    Vantage.BACKEND: "not all is seen at the backends",
}


def _rows(pools: Mapping[str, Mapping[str, FlowTotals]]) -> list[tuple[str, ...]]:
    found = []
    for pool, backends in pools.items():
        found += [_cells(pool, name, each) for name, each in backends.items()]
        if len(backends) > 1:
            found.append(_cells(pool, "all", pooled(backends.values())))
    return found


def _reports(session: Session, service: str) -> dict[str, FlowReport]:
    """By observer."""
    found = {}
    for item in session.store.read(keys.observed(service, "")).items:
        report = FlowReport.model_validate_json(item.value)
        found[report.node] = report
    return found


def _nothing_yet(service: Service) -> UserError | NotFoundError:
    if not service.observe:
        return UserError(
            f"service {service.name!r} is not observed",
            hint=f"lbctl service set {service.name} --observe --wait, then ask again in a second",
        )
    return NotFoundError(
        f"nobody has reported of service {service.name!r} yet",
        hint="nodes report once a second: is lbd running (lbctl node list), and has it a backend?",
    )


def _unseen(service: Service, vantage: Vantage) -> list[str]:
    if service.protocol is Protocol.UDP:
        return ["UDP: nothing but what begins (QUIC connections; with tracking `always`, every flow)"]
    return sight.blind(service.mode, vantage)


def _figures(totals: FlowTotals) -> dict[str, object]:
    """With the latencies, in seconds, beside the histograms."""
    return {
        **totals.model_dump(),
        "latency": {
            name: {label: _seconds(getattr(totals, name), share) for label, share in _SHARES}
            for name in ("handshake", "first_byte")
        },
    }


def _seconds(counts: dict[int, int], share: float) -> float | None:
    found = histogram.quantile(counts, share)
    return None if found is None else found / 1e6


def _cells(pool: str, name: str, totals: FlowTotals) -> tuple[str, ...]:
    return (
        pool,
        name,
        number(totals.opened),
        number(totals.refused),
        number(totals.unanswered),
        number(totals.syn_retransmissions),
        f"{totals.resets_by_client:,}/{totals.resets_by_server:,}",
        f"{totals.retransmits_by_client:,}/{totals.retransmits_by_server:,}",
        number(totals.requests),
        number(totals.unserved),
        number(totals.http.get("5xx", 0)),
        _latency(totals.handshake),
        _latency(totals.first_byte),
    )


def _latency(counts: dict[int, int]) -> str:
    half, most = (_seconds(counts, share) for share in (0.5, 0.95))
    return "-" if half is None or most is None else f"{_brief(half)}/{_brief(most)}"


def _brief(seconds: float) -> str:
    """Three digits, in the unit that fits."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
