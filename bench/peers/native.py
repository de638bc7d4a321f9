"""native.c, compiled once per process, where there is a C compiler; without one these return None."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SOURCE = Path(__file__).with_name("native.c")


@cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="lb-bench-") as folder:
        target = Path(folder) / "native.so"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", target, _SOURCE, "-lm"], check=True)
        return ctypes.CDLL(str(target))


def available() -> bool:
    """Is there a compiler?"""
    return _library() is not None


def maglev(
    offsets: Sequence[int], skips: Sequence[int], weights: Sequence[int], size: int
) -> NDArray[np.int32] | None:
    """See maglev.fill()."""
    library = _library()
    if library is None:
        return None
    first, step = np.array(offsets, dtype=np.uint64), np.array(skips, dtype=np.uint64)
    share, slots = np.array(weights, dtype=np.int64), np.empty(size, dtype=np.int32)
    count, length = ctypes.c_int64(len(offsets)), ctypes.c_int64(size)
    if library.maglev(*map(_pointer, (first, step, share)), count, length, _pointer(slots)):
        raise MemoryError
    return slots


def rendezvous(keys: NDArray[np.uint64], weights: Sequence[int], size: int) -> NDArray[np.int32] | None:
    """See rendezvous.fill()."""
    library = _library()
    if library is None:
        return None
    share, owners = np.array(weights, dtype=np.int64), np.empty(size, dtype=np.int32)
    count, length = ctypes.c_int64(len(keys)), ctypes.c_int64(size)
    library.rendezvous(_pointer(keys), _pointer(share), count, length, _pointer(owners))
    return owners


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
