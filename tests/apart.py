"""Several tests at once: each worker of pytest-xdist gets namespaces for networks and mounts. All labs
have the same names and addresses; so they never meet."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

_CLONE_NEWNS = 0x00020000  # uapi/linux/sched.h
_CLONE_NEWNET = 0x40000000


def move() -> None:
    """Move this thread, and with it all that it starts, into empty namespaces: nothing in there leads
    outside, and /run and /sys/fs/bpf are new. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}")
    for command in (
        "mount --make-rprivate /",
        "mount -t tmpfs tmpfs /run",
        "mount -t bpf bpf /sys/fs/bpf",
        "ip link set lo up",
    ):
        subprocess.run(command.split(), check=True)
    Path("/run/lock").mkdir()
