"""Processes that the lab has started: found again and ended, by pid, also by a later process.

Each is started as the leader of a session, so that what it forks (nginx its workers) is found by
the session's number. A pid alone could be somebody else's by now; a pid and the time of its start
can't.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.lab.shell import LabError, wait_until


@dataclass(frozen=True)
class Started:
    """A session's leader."""

    pid: int
    start: int
    what: str


@dataclass(frozen=True)
class _Stat:
    pid: int
    state: str
    session: int
    start: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the second field is the name in brackets and may hold anything; the fields after it
    # are 3 state … 6 session … 22 starttime, in clock ticks since boot.
    fields = text.rpartition(")")[2].split()
    return _Stat(pid, fields[0], int(fields[3]), int(fields[19]))


def started(pid: int, what: str) -> Started:
    """The record of a process that has just been started."""
    stat = _stat(pid)
    return Started(pid, stat.start if stat else 0, what)


def alive(leader: Started) -> list[int]:
    """The pids of a session that still run."""
    now = _stat(leader.pid)
    if now and now.start != leader.start:
        return []  # the pid is somebody else's now
    stats = [_stat(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    return [
        stat.pid
        for stat in stats
        if stat and stat.session == leader.pid and stat.start >= leader.start and stat.state not in "ZX"
    ]


def _signal_all(leaders: Sequence[Started], number: signal.Signals) -> None:
    for leader in leaders:
        for pid in alive(leader):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # it ended meanwhile


def end(leaders: Sequence[Started], *, grace: float = 5) -> None:
    """End sessions: asked first, killed after `grace` seconds."""

    def gone() -> bool:
        return not any(alive(leader) for leader in leaders)

    _signal_all(leaders, signal.SIGTERM)
    try:
        wait_until("the lab's processes to end", gone, timeout=grace)
    except LabError:
        _signal_all(leaders, signal.SIGKILL)
        wait_until("the lab's killed processes to end", gone)
