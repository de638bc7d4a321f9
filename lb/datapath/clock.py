"""The clock that data-path programs read for free: jiffies, whose rate the kernel tells nobody."""

from __future__ import annotations

import time
from functools import cached_property

from lb.datapath.bpf import Program, ProgramType

_CALL, _EXIT = 0x85, 0x95
_JIFFIES64 = 118  # bpf_jiffies64
_RATES = (100, 250, 300, 1000)  # what CONFIG_HZ can be
_START = -300  # seconds: INITIAL_JIFFIES


class Clock:
    """Jiffies of this kernel, and how many make a second."""

    @cached_property
    def _program(self) -> Program:
        return Program.assembled(ProgramType.XDP, "lb_clock", (_CALL, _JIFFIES64), (_EXIT, 0))

    def jiffies(self) -> int:
        """The low 32 bits."""
        return self._program.run(bytes(64)).retval

    @cached_property
    def rate(self) -> int:
        """Jiffies per second: the rate at which they would have come to be what they are now since
        the machine started. They and CLOCK_MONOTONIC are of one source, so the right one is off by
        some ticks, and each other by millions."""
        now, seconds = self.jiffies(), time.monotonic() + _START
        return min(_RATES, key=lambda rate: _apart(now, round(seconds * rate)))


def _apart(one: int, other: int) -> int:
    """Between two readings of a clock of 32 bits."""
    return min((one - other) % 2**32, (other - one) % 2**32)
