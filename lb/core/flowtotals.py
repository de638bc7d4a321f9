"""What several observers of a service saw together, for people. Pure. (For verdicts, which are stricter:
lb/core/evidence.py.)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lb.core.evidence import difference
from lb.core.measures import pooled
from lb.model.flows import FlowReport, FlowTotals, Vantage


def between(
    before: Mapping[str, FlowReport], after: Mapping[str, FlowReport]
) -> tuple[dict[str, FlowReport], set[str]]:
    """What each observer saw between two looks, by observer; and which of them had to begin anew, or
    were not there all the time: of those nothing is known."""
    found, lost = {}, set(before.keys() ^ after.keys())
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        backends = {
            backend: difference(old.backends.get(backend, FlowTotals()), totals)
            for backend, totals in new.backends.items()
        }
        known = {backend: each for backend, each in backends.items() if each is not None}
        if old.epoch != new.epoch or known.keys() != backends.keys():
            lost.add(name)
        else:
            found[name] = new.model_copy(update={"backends": known})
    return found, lost


def merged(reports: Iterable[FlowReport]) -> dict[str, FlowTotals]:
    """By backend, what all observers together saw. Where a backend observes itself, that counts, and not
    what nodes saw of the same connections."""
    by_vantage: dict[Vantage, dict[str, list[FlowTotals]]] = {vantage: {} for vantage in Vantage}
    for report in reports:
        for backend, totals in report.backends.items():
            by_vantage[report.vantage].setdefault(backend, []).append(totals)
    chosen = by_vantage[Vantage.NODE] | by_vantage[Vantage.BACKEND]
    return {backend: pooled(several) for backend, several in chosen.items()}
