"""Adding up what several observers saw of a service's connections. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from lb.model.flows import FlowReport, FlowTotals, Vantage


def add(one: FlowTotals, other: FlowTotals) -> FlowTotals:
    """What both saw."""
    return _each(one, other, lambda a, b: a + b)


def less(after: FlowTotals, before: FlowTotals) -> FlowTotals:
    """What came since then, of two looks by one observer in one epoch."""
    return _each(after, before, lambda a, b: a - b)


def _each(one: FlowTotals, other: FlowTotals, of: Callable[[int, int], int]) -> FlowTotals:
    found: dict[str, object] = {}
    for name, a in one:
        b = getattr(other, name)
        if isinstance(a, dict):
            sums = {key: of(a.get(key, 0), b.get(key, 0)) for key in sorted(a.keys() | b.keys())}
            found[name] = {key: count for key, count in sums.items() if count}
        else:
            found[name] = of(a, b)
    return FlowTotals.model_validate(found)


def between(
    before: Mapping[str, FlowReport], after: Mapping[str, FlowReport]
) -> tuple[dict[str, FlowReport], set[str]]:
    """What each observer saw between two looks, by observer; and which of them had to begin anew, or
    were not there all the time: of those nothing is known."""
    found, lost = {}, set(before.keys() ^ after.keys())
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if old.epoch != new.epoch:
            lost.add(name)
            continue
        backends = {
            backend: less(totals, old.backends.get(backend, FlowTotals()))
            for backend, totals in new.backends.items()
        }
        found[name] = new.model_copy(update={"backends": backends})
    return found, lost


def merged(reports: Iterable[FlowReport]) -> dict[str, FlowTotals]:
    """By backend, what all observers together saw. Where a backend observes itself, that counts, and not
    what nodes saw of the same connections."""
    by_vantage: dict[Vantage, dict[str, FlowTotals]] = {vantage: {} for vantage in Vantage}
    for report in reports:
        sums = by_vantage[report.vantage]
        for backend, totals in report.backends.items():
            sums[backend] = add(sums[backend], totals) if backend in sums else totals
    return by_vantage[Vantage.NODE] | by_vantage[Vantage.BACKEND]


def total(several: Iterable[FlowTotals]) -> FlowTotals:
    """All of them together."""
    result = FlowTotals()
    for each in several:
        result = add(result, each)
    return result
