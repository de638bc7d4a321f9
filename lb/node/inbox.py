"""What happened, in order, until lbd's loop takes it."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field

from lb.node.happenings import Happening


@dataclass
class Inbox:
    """Any thread may put something in; one takes it out."""

    _queue: queue.SimpleQueue[Happening] = field(default_factory=queue.SimpleQueue)
    _older: list[Happening] = field(default_factory=list)  # than all that is in the queue

    def put(self, happening: Happening) -> None:
        """Never waits; for signal handlers, too."""
        self._queue.put(happening)

    def next(self, seconds: float) -> Happening | None:
        """The next one that comes within that time; not one that was put off."""
        try:
            return self._queue.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None

    def put_off(self, happening: Happening) -> None:
        """One that next() gave is for everything(): before all that came after it."""
        self._older.append(happening)

    def everything(self, seconds: float) -> list[Happening]:
        """All that is there, as soon as something is, or after that time nothing: bursts become one
        change."""
        found, self._older = self._older, []
        if not found:
            first = self.next(seconds)
            if first is None:
                return []
            found.append(first)
        while True:
            try:
                found.append(self._queue.get_nowait())
            except queue.Empty:
                return found
