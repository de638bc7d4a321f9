"""The clock that data-path programs read for free: jiffies, whose rate the kernel tells nobody."""

from __future__ import annotations

import time
from functools import cached_property

from lb.datapath.bpf import Program, ProgramType

_CALL, _EXIT = 0x85, 0x95
_JIFFIES64 = 118  # bpf_jiffies64


class Clock:
    """Jiffies of this kernel, and how many make a second."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    @cached_property
    def _program(self) -> Program:
        return Program.assembled(ProgramType.XDP, "lb_clock", (_CALL, _JIFFIES64), (_EXIT, 0))

    def jiffies(self) -> int:
        """The low 32 bits."""
        return self._program.run(bytes(64)).retval

    def rate(self) -> float:
        """Jiffies per second, as measured since the first call; 0.0 for as long as a second has not
        passed since."""
        now = self.jiffies(), time.monotonic()
        self._first = self._first or now
        elapsed = now[1] - self._first[1]
        return (now[0] - self._first[0]) % 2**32 / elapsed if elapsed >= 1.0 else 0.0
