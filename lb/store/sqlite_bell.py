"""How a process that waits hears of commits of other processes, at no cost while there are none.

Whoever commits touches the file; the kernel tells those who listen (inotify, attribute changes).
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

_IN_ATTRIB = 0x4  # <sys/inotify.h>


def ring(path: Path) -> None:
    """Wake all who listen."""
    os.utime(path)


class Bell:
    """Calls `heard` from a thread of its own, at each ring, until it is closed."""

    def __init__(self, path: Path, heard: Callable[[], None]) -> None:
        """Raises OSError when the kernel gives no inotify (fs.inotify.max_user_instances)."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._inotify < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        try:
            if libc.inotify_add_watch(self._inotify, os.fsencode(path), _IN_ATTRIB) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch")
            self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError:
            os.close(self._inotify)
            raise
        self._heard = heard
        self._thread = threading.Thread(target=self._listen, name="lb-store-bell", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; to be called once."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)
        os.close(self._inotify)

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._inotify, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while all(descriptor != self._stop for descriptor, _ in poll.poll()):
            os.read(self._inotify, 65536)  # many rings in a row are one
            self._heard()
