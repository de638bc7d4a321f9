"""The slots that the kernel holds, read fast enough to say when they changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lb.cli.session import Session
from lb.datapath.view import KernelView
from lb.lab.lab import Lab
from lb.lab.shell import PATIENCE


class Slots:
    """Of one service in the lab's kernel."""

    def __init__(self, lab: Lab, service: str = "web", config: Path | None = None) -> None:
        """`config`: of another node than the lab's own."""
        self.service = service
        session = Session(config=config or lab.config)
        state = session.state()
        session.close()
        self._none = {each.name: 0 for each in state.backends_of(service)}
        self._view = KernelView.open(session.settings.pin_dir, state)

    def __call__(self) -> dict[str, int]:
        return self._none | (self._view.slot_counts(self.service) or {})

    def of(self, backend: str) -> int:
        return self().get(backend, 0)

    def until(self, condition: Callable[[dict[str, int]], bool], timeout: float = 10.0) -> float:
        """Wait for it, `timeout` seconds (times PATIENCE); returns when it was so (monotonic clock)."""
        deadline = time.monotonic() + timeout * PATIENCE
        while not condition(found := self()):
            assert time.monotonic() < deadline, found
            time.sleep(0.001)
        return time.monotonic()
