"""What each of the kernel's metrics is made of, and which of them a forwarding mode can see. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lb.model.analysis import Analysis, KernelMetric, Metric
from lb.model.flows import FlowTotals, Vantage
from lb.model.objects import Mode, Protocol


class Kind(StrEnum):
    """How a metric is judged."""

    SHARE = "share"  # of samples, each of which is good or bad
    RATE = "rate"  # events for each sample, which may have several
    LATENCY = "latency"  # a quantile


@dataclass(frozen=True)
class Measure:
    """One metric of the kernel."""

    kind: Kind
    words: str
    samples: str  # what is counted, for people
    bad: Callable[[FlowTotals], int] = lambda _: 0
    total: Callable[[FlowTotals], int] = lambda _: 0
    histogram: Callable[[FlowTotals], Mapping[int, int]] = lambda _: {}
    quantile: float = 0.0
    margin: float = 0.005  # share: a difference; else relative
    relevant: float = 0.0  # seconds; a smaller difference of a latency is not worth an abort
    clusters: float = 1.0  # events come in bunches of about so many

    @property
    def unit(self) -> str:
        """Of its figures."""
        units = {Kind.SHARE: "share", Kind.RATE: f"per {self.samples.rstrip('s')}", Kind.LATENCY: "s"}
        return units[self.kind]

    def counts(self, totals: FlowTotals) -> tuple[int, int]:
        """(bad, samples) of a share or a rate. A connection that was opened in one window may fail in
        the next, so more can be bad than there were: of a share, that is all of them."""
        bad, total = self.bad(totals), self.total(totals)
        return (min(bad, total) if self.kind is Kind.SHARE else bad), total

    def samples_of(self, totals: FlowTotals) -> int:
        """How many samples there are."""
        if self.kind is Kind.LATENCY:
            return sum(self.histogram(totals).values())
        return self.total(totals)


def _responses(totals: FlowTotals) -> int:
    # 1xx are no answers of their own (RFC 9110, 15.2).
    return sum(count for status, count in totals.http.items() if status != "1xx")


def _failed(totals: FlowTotals) -> int:
    return totals.refused + totals.unanswered


def _error_bad(totals: FlowTotals) -> int:
    return _failed(totals) + totals.resets_by_server + totals.unserved + totals.http.get("5xx", 0)


def _error_total(totals: FlowTotals) -> int:
    # What was tried: requests, or connections where nothing else is known of them, and those that
    # never got as far as a request.
    tried = max(totals.requests, _responses(totals), totals.established)
    return _failed(totals) + tried


def _opened(totals: FlowTotals) -> int:
    return totals.opened


def _latency(what: str, share: float) -> Measure:
    of_handshake = what == "handshake"
    what = (
        "connections have their SYN-ACK" if of_handshake else "requests have the first byte of an answer"
    )
    return Measure(
        Kind.LATENCY,
        f"{share:.0%} of {what}",
        "handshakes" if of_handshake else "answers",
        histogram=(lambda t: t.handshake) if of_handshake else (lambda t: t.first_byte),
        quantile=share,
        margin=0.10,
        # Handshakes are the kernel's work; two racks differ by this.
        relevant=0.0002 if of_handshake else 0.0,
    )


MEASURES: Mapping[KernelMetric, Measure] = {
    KernelMetric.ERRORS: Measure(
        Kind.SHARE,
        "requests or connections that failed in any way: refused, unanswered, reset by the server,"
        " unserved, or answered with 5xx",
        "attempts",
        _error_bad,
        _error_total,
    ),
    KernelMetric.FAILED_HANDSHAKES: Measure(
        Kind.SHARE, "connections refused, or not answered in time", "connections", _failed, _opened
    ),
    KernelMetric.RESETS: Measure(
        Kind.SHARE,
        "established connections that the server reset",
        "connections",
        lambda t: t.resets_by_server,
        lambda t: t.established,
    ),
    KernelMetric.CLIENT_RESETS: Measure(
        Kind.SHARE,
        "connections that the client reset",
        "connections",
        lambda t: t.resets_by_client,
        _opened,
    ),
    KernelMetric.UNSERVED: Measure(
        Kind.SHARE,
        "requests without an answer in time",
        "requests",
        lambda t: t.unserved,
        lambda t: t.requests,
    ),
    KernelMetric.HTTP_5XX: Measure(
        Kind.SHARE,
        "HTTP responses that are 5xx",
        "responses",
        lambda t: t.http.get("5xx", 0),
        _responses,
    ),
    KernelMetric.HTTP_4XX: Measure(
        Kind.SHARE,
        "HTTP responses that are 4xx",
        "responses",
        lambda t: t.http.get("4xx", 0),
        _responses,
    ),
    # A SYN that nobody answers is sent again after 1, 3, 7, ... seconds: about three in a window.
    KernelMetric.SYN_RETRANSMISSIONS: Measure(
        Kind.RATE,
        "SYNs sent again, for each connection",
        "connections",
        lambda t: t.syn_retransmissions,
        _opened,
        margin=0.25,
        clusters=3.0,
    ),
    KernelMetric.RETRANSMITS: Measure(
        Kind.RATE,
        "segments that the server sent again, for each connection",
        "connections",
        lambda t: t.retransmits_by_server,
        _opened,
        margin=0.25,
        clusters=10.0,
    ),
    KernelMetric.CLIENT_RETRANSMITS: Measure(
        Kind.RATE,
        "segments that the client sent again, for each connection",
        "connections",
        lambda t: t.retransmits_by_client,
        _opened,
        margin=0.25,
        clusters=10.0,
    ),
    KernelMetric.HANDSHAKE_P50: _latency("handshake", 0.50),
    KernelMetric.HANDSHAKE_P95: _latency("handshake", 0.95),
    KernelMetric.HANDSHAKE_P99: _latency("handshake", 0.99),
    KernelMetric.FIRST_BYTE_P50: _latency("first byte", 0.50),
    KernelMetric.FIRST_BYTE_P95: _latency("first byte", 0.95),
    KernelMetric.FIRST_BYTE_P99: _latency("first byte", 0.99),
}

# What only answers tell. Where they don't pass, the client's acknowledgements say that there was one,
# and when; a refused connection is one that was not answered.
OF_ANSWERS = (
    KernelMetric.RESETS,
    KernelMetric.HTTP_5XX,
    KernelMetric.HTTP_4XX,
    KernelMetric.RETRANSMITS,
)


def sees_answers(mode: Mode, vantage: Vantage) -> bool:
    """Do answers pass there?"""
    return vantage is Vantage.BACKEND or mode in (Mode.NAT, Mode.FULLNAT)


def visible(mode: Mode, protocol: Protocol, vantage: Vantage) -> tuple[KernelMetric, ...]:
    """The metrics that can be seen from there. Of UDP, that has no connections, none."""
    if protocol is Protocol.UDP:
        return ()
    blind = () if sees_answers(mode, vantage) else OF_ANSWERS
    return tuple(each for each in KernelMetric if each not in blind)


JUDGED = (
    KernelMetric.FAILED_HANDSHAKES,
    KernelMetric.RESETS,
    KernelMetric.UNSERVED,
    KernelMetric.HTTP_5XX,
    KernelMetric.HANDSHAKE_P95,
    KernelMetric.FIRST_BYTE_P95,
)
OBSERVED = (KernelMetric.HTTP_4XX, KernelMetric.SYN_RETRANSMISSIONS, KernelMetric.RETRANSMITS)


def default_analysis(
    mode: Mode, protocol: Protocol, vantage: Vantage, seen: FlowTotals | None = None
) -> Analysis | None:
    """What a canary is judged by when nobody says otherwise; None if nothing can be seen.

    `seen` is what the stable pool did before the rollout: metrics of which it has no sample are left out
    (there is no HTTP to be judged in TLS); without it, those of HTTP and of requests are.
    """
    possible = visible(mode, protocol, vantage)
    seen = seen or FlowTotals(opened=1, established=1, handshake={0: 1})
    metrics = [
        Metric(name=each.value, kernel=each, observe=each in OBSERVED)
        for each in (*JUDGED, *OBSERVED)
        if each in possible and MEASURES[each].samples_of(seen)
    ]
    return Analysis(metrics=tuple(metrics)) if metrics else None


def pooled(backends: Iterable[FlowTotals]) -> FlowTotals:
    """The totals of several backends as one."""
    sums: dict[str, Any] = {}
    for totals in backends:
        for name in FlowTotals.model_fields:
            value = getattr(totals, name)
            if isinstance(value, int):
                sums[name] = sums.get(name, 0) + value
            else:
                into = sums.setdefault(name, {})
                for key, count in value.items():
                    into[key] = into.get(key, 0) + count
    return FlowTotals.model_construct(**sums)  # not checked again: it is a sum of what was
