"""The thread in which all checks run. What others ask of it is handed over to its event loop."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Callable, Mapping, Sequence

from lb.probe.base import Target
from lb.probe.scheduler import Key, Probed, Scheduler

# Each check that runs has a socket. Debian gives a service 1,024 files, and lets it take more.
MAX_FILES = 65536


class Prober:
    """Starts with the first target; `deliver` and `crashed` are called in its thread."""

    def __init__(
        self,
        deliver: Callable[[Sequence[Probed]], None],
        crashed: Callable[[BaseException], None],
        mark: Callable[[Key], int] = lambda _key: 0,
    ) -> None:
        """`mark`: see lb.probe.scheduler.Scheduler."""
        self._deliver = deliver
        self._mark = mark
        self._crashed = crashed
        self._scheduler: Scheduler | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def update(self, targets: Mapping[Key, tuple[Target, float]]) -> None:
        """See Scheduler.update()."""
        if self._loop is None:
            if not targets:
                return
            self._start()
        given = dict(targets)
        self._call(lambda scheduler: scheduler.update(given))

    def pace(self, key: Key, period: float) -> None:
        """See Scheduler.pace()."""
        self._call(lambda scheduler: scheduler.pace(key, period))

    def lateness(self, percent: float) -> float:
        """Seconds by which so many per cent of the last checks began late, at most."""
        return self._scheduler.lateness.percentile(percent) if self._scheduler else 0.0

    def _call(self, do: Callable[[Scheduler], None]) -> None:
        assert self._loop
        assert self._scheduler
        self._loop.call_soon_threadsafe(do, self._scheduler)

    def _start(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < MAX_FILES:
            most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), name="checks", daemon=True).start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._scheduler = Scheduler(self._deliver, mark=self._mark)
            ready.set()
            await asyncio.Event().wait()

        try:
            asyncio.run(serve())
        except BaseException as error:
            self._crashed(error)
            raise
