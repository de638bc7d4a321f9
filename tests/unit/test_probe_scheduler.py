"""When checks are done: on time, on their own clocks, and without waiting for each other."""

from __future__ import annotations

import asyncio
import itertools
import selectors
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from probing import target

from lb.core.health import Result
from lb.probe import ask as asking
from lb.probe import scheduler as scheduling
from lb.probe.base import Failed, Inconclusive, Target
from lb.probe.prober import Prober
from lb.probe.scheduler import Key, Probed, Scheduler

ONE = ("web", "b1")
TWO = ("web", "b2")
POLL_SECONDS = 0.002


class _Hasty(selectors.DefaultSelector):
    """Waits for nobody, and notes how long it would have waited."""

    waited = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing will ever happen"
            self.waited += max(0.0, timeout)
        return found


class Simulated(asyncio.SelectorEventLoop):
    """Its time is the sum of what it would have waited: the machine's own pace doesn't count."""

    def __init__(self) -> None:
        self._hasty = _Hasty()
        super().__init__(self._hasty)

    def time(self) -> float:
        return self._hasty.waited


class Asked:
    """Takes the place of the TCP check: remembers when it was asked, and answers as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times: dict[int, list[float]] = {}
        self.slow: dict[int, float] = {}
        self.bad: set[int] = set()
        monkeypatch.setitem(asking.ASK, "tcp", self)

    async def __call__(self, target: Target, _: Any) -> str:
        loop = asyncio.get_running_loop()
        self.times.setdefault(target.port, []).append(loop.time())
        await asyncio.sleep(self.slow.get(target.port, 0))
        if target.port in self.bad:
            raise Failed("bad")
        return "good"

    def gaps(self, port: int) -> list[float]:
        return [two - one for one, two in itertools.pairwise(self.times[port])]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def tcp(port: int, **more: Any) -> Target:
    return target({"kind": "tcp", "port": port}, **more)


def serve(use: Callable[[Scheduler, list[Probed]], Awaitable[None]]) -> list[Probed]:
    came: list[Probed] = []

    async def run() -> None:
        scheduler = Scheduler(came.extend)
        try:
            await use(scheduler, came)
        finally:
            scheduler.close()

    with asyncio.Runner(loop_factory=Simulated) as runner:
        runner.run(run())
    return came


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(POLL_SECONDS)


def test_checks_keep_their_interval_and_do_not_drift(asked: Asked) -> None:
    """A check that takes long, but less than its interval, moves none of the later ones."""
    asked.slow[1] = 0.03

    async def use(scheduler: Scheduler, _: list[Probed]) -> None:
        scheduler.update({ONE: (tcp(1, jitter=0), 0.1)})
        await until(lambda: len(asked.times.get(1, [])) == 11)

    serve(use)
    times = asked.times[1]
    assert times[10] - times[0] == pytest.approx(1.0)


def test_jitter_only_shortens(asked: Asked) -> None:
    async def use(scheduler: Scheduler, _: list[Probed]) -> None:
        scheduler.update({ONE: (tcp(1, jitter=0.5), 0.1)})
        await until(lambda: len(asked.times.get(1, [])) == 16)

    serve(use)
    gaps = asked.gaps(1)
    assert max(gaps) < 0.1
    assert min(gaps) > 0.05
    assert max(gaps) - min(gaps) > 0.01


def test_a_slow_check_delays_no_other(asked: Asked) -> None:
    asked.slow[1] = 1.5

    async def use(scheduler: Scheduler, _: list[Probed]) -> None:
        scheduler.update({ONE: (tcp(1), 0.1), TWO: (tcp(2, jitter=0), 0.1)})
        await until(lambda: len(asked.times.get(2, [])) == 8)
        assert scheduler.lateness.percentile(100) == 0

    serve(use)
    assert len(asked.times[1]) == 1
    assert asked.gaps(2) == [pytest.approx(0.1)] * 7


def test_what_takes_longer_than_its_interval_is_never_done_twice_at_once(asked: Asked) -> None:
    asked.slow[1] = 0.12

    async def use(scheduler: Scheduler, _: list[Probed]) -> None:
        scheduler.update({ONE: (tcp(1, jitter=0), 0.05)})
        await until(lambda: len(asked.times.get(1, [])) == 5)

    serve(use)
    assert asked.gaps(1) == [pytest.approx(0.12)] * 4


def test_a_change_of_pace_counts_from_the_last_check(asked: Asked) -> None:
    async def use(scheduler: Scheduler, came: list[Probed]) -> None:
        scheduler.update({ONE: (tcp(1, jitter=0), 30.0)})
        await until(lambda: len(came) == 1)
        scheduler.pace(ONE, 0.1)
        await until(lambda: len(asked.times[1]) == 3)
        scheduler.pace(ONE, 30.0)
        scheduler.pace(("web", "gone"), 1.0)

    serve(use)
    assert asked.gaps(1) == [pytest.approx(0.1)] * 2


def test_news_are_told_at_once_and_the_rest_soon(asked: Asked) -> None:
    async def use(scheduler: Scheduler, came: list[Probed]) -> None:
        loop = asyncio.get_running_loop()
        scheduler.update({ONE: (tcp(1, jitter=0), 0.5)})
        await until(lambda: len(came) == 2)
        assert loop.time() - asked.times[1][1] == pytest.approx(
            scheduling.DELIVER_SECONDS, abs=POLL_SECONDS
        )
        asked.bad.add(1)
        await until(lambda: len(came) == 3)
        assert loop.time() - asked.times[1][2] <= POLL_SECONDS

    came = serve(use)
    assert [each.result.passed for each in came] == [True, True, False]
    assert came[2].result.words == "bad"


def test_targets_come_change_and_go(asked: Asked) -> None:
    async def use(scheduler: Scheduler, came: list[Probed]) -> None:
        scheduler.update({ONE: (tcp(1), 0.05)})
        await until(lambda: len(came) >= 2)
        # An answer to the old question is no answer to the new one.
        asked.slow[1] = 0.3
        already = len(asked.times[1])
        await until(lambda: len(asked.times[1]) > already)
        scheduler.update({ONE: (tcp(2), 0.05)})
        before = len(came)
        await until(lambda: len(came) >= before + 3)
        assert {each.target.port for each in came[before:]} == {2}
        scheduler.update({})
        count = len(asked.times[2])
        await asyncio.sleep(0.15)  # three intervals in which nothing may happen
        assert len(asked.times[2]) == count

    serve(use)


def test_the_first_checks_of_many_are_spread(asked: Asked) -> None:
    async def use(scheduler: Scheduler, came: list[Probed]) -> None:
        scheduler.update({("web", f"b{n}"): (tcp(n), 30.0) for n in range(1, 301)})
        await until(lambda: len(came) == 300)

    serve(use)
    times = sorted(each[0] for each in asked.times.values())
    assert times[-1] - times[0] == pytest.approx(0.3, abs=0.02)
    assert max(sum(0 <= other - each < 0.03 for other in times) for each in times) < 60


def test_what_is_not_the_backends_fault_is_no_result(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = itertools.chain([Inconclusive("too busy"), KeyError("bug")], itertools.repeat(None))

    async def troubled(target: Target, attempt: Any) -> str:
        if error := next(errors):
            raise error
        return await asked(target, attempt)

    monkeypatch.setitem(asking.ASK, "tcp", troubled)

    async def use(scheduler: Scheduler, came: list[Probed]) -> None:
        scheduler.update({ONE: (tcp(1), 0.02)})
        await until(lambda: len(came) >= 1)

    came = serve(use)
    assert came[0].result == Result(True, "good", came[0].result.latency)
    assert "not checked: too busy" in caplog.text


def test_programs_are_run_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0

    async def program(_: Target, __: Any) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.1)  # all of them come within 60 ms
        running -= 1
        return "good"

    monkeypatch.setitem(asking.ASK, "exec", program)
    check = target({"kind": "exec", "argv": ["/x"]}, exec_dir=tmp_path)
    keys: list[Key] = [("web", f"b{n}") for n in range(60)]

    async def use(scheduler: Scheduler, came: list[Probed]) -> None:
        scheduler.update(dict.fromkeys(keys, (check, 30.0)))
        await until(lambda: len(came) == 60)
        scheduler.update(dict.fromkeys(keys[:20], (check, 30.0)))

    assert {each.key for each in serve(use)} == set(keys)
    assert most == scheduling.MAX_PROGRAMS


@pytest.mark.usefixtures("asked")
def test_a_thread_of_its_own() -> None:
    came: list[Probed] = []
    enough = threading.Event()
    threads = set()

    def deliver(results: Sequence[Probed]) -> None:
        threads.add(threading.current_thread().name)
        came.extend(results)
        if len(came) >= 3:
            enough.set()

    prober = Prober(deliver, lambda error: pytest.fail(repr(error)))
    prober.update({})
    assert prober.lateness(99) == 0
    prober.update({ONE: (tcp(1), 0.05)})
    prober.pace(ONE, 0.02)
    assert enough.wait(60)
    prober.update({})
    assert threads == {"checks"}
    assert 0 < prober.lateness(99) < 60


def test_real_checks_of_a_real_server() -> None:
    """No part is replaced: from the thread's first second to a server that goes away."""
    came: list[Probed] = []
    passed, refused = threading.Event(), threading.Event()

    def deliver(results: Sequence[Probed]) -> None:
        came.extend(results)
        if came[-1].result.passed:
            passed.set()
        elif passed.is_set():
            refused.set()

    prober = Prober(deliver, lambda error: pytest.fail(repr(error)))

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def run() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        prober.update({ONE: (tcp(port, jitter=0), 0.1)})
        assert await asyncio.to_thread(passed.wait, 60)
        server.close()
        assert await asyncio.to_thread(refused.wait, 60)

    asyncio.run(run())
    prober.update({})
    assert came[-1].result.words == "connection refused"
