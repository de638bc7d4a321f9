"""Passive detection: from what the data path sees of clients' connections to who is ejected, and for how
long. Pure.

Theory of operation. The kernel counts per backend what became of connections (lb/model/flows.py); what
counts here is the difference between two readings:

- *failed*: a handshake that was refused or not answered, a request not answered in time, and, unless
  the settings say otherwise, a connection that the server reset.
- *good*: a connection that was established or a request that was answered, whichever are more, less
  those that failed after that.

A backend is a *candidate* when one of two rules says so:

- *in a row*: so many failed, and none was good in any reading since the first of them. (Within a reading
  the order isn't known: one with anything good in it ends the row.)
- *ratio*: of at least `minimum` in the last `window` seconds so large a share failed.

A candidate is ejected while there is room in its pool. The cap has two rules, both exact:

- At most `share` per cent of the pool's backends that people want to take flows, rounded down, but one
  from two backends on: a small pool would otherwise never eject anybody.
- Never the last one that takes flows: who is unhealthy, or ejected, isn't left over.

    backends    1  2  3  4  10      The worst go first: by share of failed, then by how many, then
    share 10 %  0  1  1  1  1       by name. Who is spared stays a candidate, and lbd says so.
    share 50 %  0  1  1  2  5
    share 100 % 0  1  2  3  9

An ejection lasts `base` seconds, the second one twice as long, and so on, up to `maximum`. For each
`base` seconds that a backend is in use again without being ejected, one time is forgotten. What was seen
before or during an ejection doesn't count after it.

Times are Unix seconds, because ejections outlive the process.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from lb.model.flows import FlowTotals
from lb.model.health import Passive


class Outcome(NamedTuple):
    """What became of connections and requests."""

    good: int
    failed: int


class Seen(NamedTuple):
    """An outcome, and when it was read."""

    at: float
    good: int
    failed: int


class Ejection(NamedTuple):
    """The last one of a backend; it may be over."""

    since: float
    until: float
    times: int  # so often in a row, this one included
    words: str  # why

    def is_on(self, now: float) -> bool:
        """Is the backend ejected?"""
        return now < self.until


@dataclass(frozen=True, slots=True)
class Track:
    """What was seen of one backend lately."""

    epoch: str = ""
    totals: FlowTotals | None = None  # of the last reading
    seen: tuple[Seen, ...] = ()
    row: int = 0  # failed since the last reading with anything good

    @property
    def sums(self) -> Outcome:
        """All that was seen."""
        return Outcome(sum(each.good for each in self.seen), sum(each.failed for each in self.seen))


def difference(before: FlowTotals, after: FlowTotals, settings: Passive) -> Outcome | None:
    """What happened between two readings of one epoch; none if the totals went back."""

    def rise(name: str) -> int:
        return int(getattr(after, name)) - int(getattr(before, name))

    served = sum(after.first_byte.values()) - sum(before.first_byte.values())
    established, unserved = rise("established"), rise("unserved")
    refused, unanswered, resets = rise("refused"), rise("unanswered"), rise("resets_by_server")
    if min(served, established, unserved, refused, unanswered, resets) < 0:
        return None
    resets = resets if settings.resets else 0
    good = max(established - unserved, served) - resets
    return Outcome(max(good, 0), refused + unanswered + unserved + resets)


def observe(track: Track, totals: FlowTotals, epoch: str, settings: Passive, now: float) -> Track:
    """The track after one more reading. The first of an epoch is where counting begins."""
    found = None
    if track.totals is not None and track.epoch == epoch:
        found = difference(track.totals, totals, settings)
    if found is None:
        return Track(epoch, totals)
    seen = tuple(each for each in track.seen if now - settings.window < each.at <= now)
    row = 0 if found.good else track.row + found.failed
    if any(found):
        seen = (*seen, Seen(now, *found))
    return Track(epoch, totals, seen, row)


def complaint(track: Track, settings: Passive) -> str | None:
    """Why a backend should be ejected, in words; none: it should not."""
    if settings.failures and track.row >= settings.failures:
        return f"{track.row} connections or requests in a row failed"
    good, failed = track.sums
    if settings.ratio and good + failed >= settings.minimum:
        share = 100 * failed / (good + failed)
        if share >= settings.ratio:
            return (
                f"{failed} of {good + failed} connections and requests failed in {settings.window:g} s"
            )
    return None


def allowed(backends: int, share: float) -> int:
    """How many of a pool of so many may be ejected at once, at `share` per cent."""
    if backends < 2 or not share:
        return 0
    # 29 % of 100 are 29, and not 28.999…
    return min(max(1, math.floor(backends * share / 100 + 1e-9)), backends - 1)


class Judged(NamedTuple):
    """Who of a pool is ejected from now on, and who would be, if there were room: with the words."""

    ejected: Mapping[str, Ejection]
    spared: Mapping[str, str]


def judge(
    pool: Mapping[str, Track],
    held: Mapping[str, Ejection],
    usable: Collection[str],
    settings: Passive,
    now: float,
) -> Judged:
    """Decide for the backends of one pool that people want to take flows: all of them are in `pool`.
    `held`: their last ejections. `usable`: who takes flows, as far as active checks say."""
    out = {name for name, each in held.items() if name in pool and each.is_on(now)}
    left = {name for name in usable if name in pool and name not in out}
    found = {
        name: words
        for name, track in pool.items()
        if name not in out and (words := complaint(track, settings))
    }
    room = allowed(len(pool), settings.share) - len(out)
    ejected: dict[str, Ejection] = {}
    for name in sorted(found, key=lambda each: _badness(pool[each], each)):
        if room < 1 or not left - {name}:
            continue
        ejected[name] = _next(held.get(name), found[name], settings, now)
        left.discard(name)
        room -= 1
    return Judged(ejected, {name: words for name, words in found.items() if name not in ejected})


def _badness(track: Track, name: str) -> tuple[float, int, str]:
    good, failed = track.sums
    return -failed / max(good + failed, 1), -failed, name


def _next(last: Ejection | None, words: str, settings: Passive, now: float) -> Ejection:
    times = 1 + (still_counted(last, settings, now) if last else 0)
    return Ejection(now, now + min(settings.base * times, settings.maximum), times, words)


def still_counted(last: Ejection, settings: Passive, now: float) -> int:
    """How many of the ejections up to this one are not forgotten yet."""
    well = max(0.0, now - last.until)
    return max(0, last.times - math.floor(well / settings.base))


def forget(track: Track) -> Track:
    """What is left of a track when its backend is ejected: nothing but where counting goes on."""
    return replace(track, seen=(), row=0)
