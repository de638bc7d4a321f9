"""When each backend is asked: every check on its own clock, none waiting for another.

The times of a check follow from its own earlier times, not from when it was really done, so being late
once makes no later one late. Jitter only shortens an interval: so what fails is found within
`fall` intervals, whatever the dice say, and checks that began together drift apart.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lb.core.health import Result
from lb.probe.ask import ask
from lb.probe.base import Inconclusive, Target

log = logging.getLogger("lbd")

Key = tuple[str, str]  # service, backend

DELIVER_SECONDS = 0.2  # results that change nothing may wait so long for others
FIRST_SPREAD = 0.001  # seconds a backend by which the first checks of many are spread
MAX_PROGRAMS = 16  # exec checks at once: each is a process
WARN_SECONDS = 60.0
SAMPLES = 20_000


@dataclass(frozen=True)
class Probed:
    """The result of one check."""

    key: Key
    target: Target
    result: Result


@dataclass(eq=False, slots=True)
class _Entry:
    key: Key
    target: Target
    period: float
    due: float
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    passed: bool | None = None


@dataclass
class Lateness:
    """By how much checks began later than they should, over the last of them."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    def percentile(self, percent: float) -> float:
        """In seconds; 0 while there was none."""
        ordered = sorted(self.samples.copy())  # in one step: another thread may ask
        return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] if ordered else 0.0


class Scheduler:
    """Asks all targets, each at its own pace, in the running event loop."""

    def __init__(
        self,
        deliver: Callable[[Sequence[Probed]], None],
        dice: random.Random | None = None,
        mark: Callable[[Key], int] = lambda _key: 0,
    ) -> None:
        """`deliver` is given results, one or several at a time. `mark` says which mark the sockets of a
        check `via: vip` need; 0 = not known yet."""
        self.lateness = Lateness()
        self._deliver = deliver
        self._mark = mark
        self._dice = dice or random.Random()
        self._loop = asyncio.get_running_loop()
        self._entries: dict[Key, _Entry] = {}
        self._results: list[Probed] = []
        self._delivery: asyncio.TimerHandle | None = None
        self._programs = 0
        self._waiting: deque[_Entry] = deque()
        self._warned = -WARN_SECONDS

    def update(self, targets: Mapping[Key, tuple[Target, float]]) -> None:
        """Ask these, and nobody else: each target with the seconds between its checks. Whose target
        is the same keeps its times."""
        for key in self._entries.keys() - targets.keys():
            self._drop(self._entries.pop(key))
        fresh = [key for key in targets if key not in self._entries]
        for key, (target, period) in targets.items():
            entry = self._entries.get(key)
            if entry is None:
                # Over a whole interval, or they would come in bursts ever after.
                spread = min(target.health.interval, FIRST_SPREAD * len(fresh))
                entry = _Entry(key, target, period, self._loop.time() + self._dice.random() * spread)
                self._entries[key] = entry
                self._set_timer(entry)
            elif entry.target != target:
                # Asked anew at once: an answer to the old question is no answer.
                self._drop(entry)
                self._entries[key] = entry = _Entry(key, target, period, self._loop.time())
                self._set_timer(entry)
            else:
                self.pace(key, period)

    def pace(self, key: Key, period: float) -> None:
        """From now on so many seconds between checks, counted from the last one."""
        entry = self._entries.get(key)
        if entry is None or entry.period == period:
            return
        if entry.timer is not None:
            entry.due = max(entry.due + period - entry.period, self._loop.time())
            self._set_timer(entry)
        entry.period = period

    def close(self) -> None:
        """Ask nobody any more."""
        self.update({})

    def _drop(self, entry: _Entry) -> None:
        for each in (entry.timer, entry.task):
            if each is not None:
                each.cancel()

    def _set_timer(self, entry: _Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        entry.timer = self._loop.call_at(entry.due, self._begin, entry)

    def _begin(self, entry: _Entry) -> None:
        entry.timer = None
        if entry.target.health.check.kind == "exec":
            if self._programs >= MAX_PROGRAMS:
                self._waiting.append(entry)
                return
            self._programs += 1
        self.lateness.samples.append(max(0.0, self._loop.time() - entry.due))
        entry.task = self._loop.create_task(self._probe(entry))
        entry.task.add_done_callback(lambda _task: self._ended(entry))

    def _ended(self, entry: _Entry) -> None:
        entry.task = None
        if entry.target.health.check.kind == "exec":
            self._programs -= 1
            while self._waiting:
                following = self._waiting.popleft()
                if self._is_current(following):
                    self._begin(following)
                    break
        if self._is_current(entry):
            shorter = 1 - entry.target.health.jitter * self._dice.random()
            # What took longer than its interval begins again at once, and leaves out what it missed.
            entry.due = max(entry.due + entry.period * shorter, self._loop.time())
            self._set_timer(entry)

    def _is_current(self, entry: _Entry) -> bool:
        return self._entries.get(entry.key) is entry

    async def _probe(self, entry: _Entry) -> None:
        try:
            result = await ask(entry.target, self._mark(entry.key))
        except Inconclusive as why:
            self._warn("not checked: %s", why)
            return
        except Exception as error:  # noqa: BLE001 - a bug in one kind must not stop the others
            self._warn("not checked: this is a bug in lb: %r", error)
            return
        if not self._is_current(entry):
            return
        self._results.append(Probed(entry.key, entry.target, result))
        news = result.passed != entry.passed
        entry.passed = result.passed
        if news:
            self._flush()
        elif self._delivery is None:
            self._delivery = self._loop.call_later(DELIVER_SECONDS, self._flush)

    def _flush(self) -> None:
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        results, self._results = self._results, []
        self._deliver(results)

    def _warn(self, message: str, why: Exception) -> None:
        now = self._loop.time()
        if now - self._warned >= WARN_SECONDS:
            self._warned = now
            log.warning(message, why)
