"""The few calls of libbpf that lb needs, and a map as Python sees it: bytes in, bytes out.

libbpf.so.1 comes with BCC (Debian: libbpf1). BCC itself is used to compile and load programs
(compile.py), in a child process: it brings LLVM along, and lbd should stay small.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

from lb.core import sizes
from lb.errors import CapacityError, DatapathError

_NO_PREVIOUS_KEY = None
_BATCH = 8192  # entries that one system call reads


class MapType(IntEnum):
    """enum bpf_map_type, as far as it is used."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    DEVMAP_HASH = 25


class ProgramType(IntEnum):
    """enum bpf_prog_type, as far as it is used."""

    SCHED_CLS = 3
    XDP = 6


class _MapCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _TestRunOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info (uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class _ProgramInfo(ctypes.Structure):
    """The head of struct bpf_prog_info (uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    )


@cache
def _libbpf() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise DatapathError(
            "libbpf.so.1 is not installed", hint="apt-get install python3-bpfcc (it brings libbpf1)"
        ) from None
    # Without a print function libbpf writes its own warnings to stderr; ours say more.
    library.libbpf_set_print(None)
    return library


def _check(result: int, what: str) -> int:
    """libbpf 1.x returns -errno, older calls -1 with errno set."""
    if result >= 0:
        return result
    number = -result if result < -1 else ctypes.get_errno() or errno.EPERM
    raise _failure(number, what)


def _failure(number: int, what: str) -> DatapathError:
    hints = {
        errno.EPERM: "run it as root (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)",
        errno.EACCES: "run it as root (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)",
        errno.ENOENT: "is lbd running on this machine? See lbctl doctor",
        errno.ENOMEM: "free memory, or lower the limits in lb.toml",
    }
    return DatapathError(f"{what}: {os.strerror(number)}", hint=hints.get(number, ""))


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map returns for a key."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.rpartition("-")[2]) + 1


@dataclass(frozen=True)
class RunResult:
    """What BPF_PROG_TEST_RUN gave back. `duration` is in ns per run."""

    retval: int
    data: bytes
    duration: int


class Object:
    """A file descriptor of a map or program, closed with the object."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        self.close()

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Give the descriptor back; a pinned object lives on."""
        # At the interpreter's exit `os` may be gone before the last object is: hence the default.
        if self.fd >= 0:
            _close(self.fd)
            self.fd = -1

    def pin(self, path: Path) -> None:
        """Give the object a name on a bpf file system."""
        _check(_libbpf().bpf_obj_pin(self.fd, str(path).encode()), f"pin {path}")


def _get(path: Path) -> int:
    return _check(_libbpf().bpf_obj_get(str(path).encode()), f"open {path}")


def _info(fd: int, info: ctypes.Structure, what: str) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(
        _libbpf().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)),
        f"read the description of {what}",
    )


class Program(Object):
    """A loaded program."""

    @classmethod
    def open(cls, path: Path) -> Program:
        """Open a pinned program."""
        return cls(_get(path))

    @classmethod
    def by_id(cls, number: int) -> Program:
        """Open any loaded program by its id."""
        return cls(_check(_libbpf().bpf_prog_get_fd_by_id(number), f"open program {number}"))

    @classmethod
    def constant(cls, kind: ProgramType, name: str, verdict: int) -> Program:
        """A program that returns `verdict` for every packet."""
        return cls.assembled(kind, name, (0xB7, verdict), (0x95, 0))

    @classmethod
    def assembled(cls, kind: ProgramType, name: str, *code: tuple[int, int]) -> Program:
        """A program out of a few instructions (opcode, immediate) that use register 0 only; loaded
        without a compiler."""
        raw = b"".join(struct.pack("=BBhi", opcode, 0, 0, value) for opcode, value in code)
        fd = _libbpf().bpf_prog_load(int(kind), name.encode(), b"GPL", raw, len(code), None)
        return cls(_check(fd, f"load program {name}"))

    @property
    def id(self) -> int:
        """The kernel's number for it."""
        return int(self._describe().id)

    @property
    def name(self) -> str:
        """The name that it was loaded with."""
        return bytes(self._describe().name).decode(errors="replace")

    def _describe(self) -> _ProgramInfo:
        info = _ProgramInfo()
        _info(self.fd, info, "a program")
        return info

    def run(self, frame: bytes, *, context: bytes = b"", repeat: int = 1) -> RunResult:
        """BPF_PROG_TEST_RUN: run it on one frame; nothing is sent. `context` is a struct xdp_md or
        __sk_buff that the kernel takes in (may be empty)."""
        source = ctypes.create_string_buffer(frame, len(frame))
        room = ctypes.create_string_buffer(len(frame) + 512)
        given = ctypes.create_string_buffer(context, len(context)) if context else None
        options = _TestRunOpts(
            sz=ctypes.sizeof(_TestRunOpts),
            data_in=ctypes.addressof(source),
            data_out=ctypes.addressof(room),
            data_size_in=len(frame),
            data_size_out=len(room),
            ctx_in=ctypes.addressof(given) if given else None,
            ctx_size_in=len(context),
            repeat=repeat,
        )
        _check(_libbpf().bpf_prog_test_run_opts(self.fd, ctypes.byref(options)), "test run")
        return RunResult(options.retval, room.raw[: options.data_size_out], options.duration)


class Map(Object):
    """A map of fixed-size byte strings. Per-CPU values are possible_cpus() values in a row, each
    rounded up to 8 bytes."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        info = _MapInfo()
        _info(fd, info, "a map")
        self.type = info.type
        self.id = int(info.id)
        self.name = bytes(info.name).decode(errors="replace")
        self.key_size = int(info.key_size)
        self.value_size = int(info.value_size)
        self.max_entries = int(info.max_entries)
        self.user_value_size = self.value_size
        if self.type == MapType.PERCPU_ARRAY:
            self.user_value_size = (self.value_size + 7) // 8 * 8 * possible_cpus()

    @classmethod
    def create(
        cls,
        kind: MapType,
        name: str,
        key_size: int,
        value_size: int,
        max_entries: int,
        *,
        inner: Map | None = None,
        flags: int = 0,
    ) -> Map:
        """A new map. `name` is what bpftool shows: at most 15 characters."""
        options = _MapCreateOpts(
            sz=ctypes.sizeof(_MapCreateOpts), inner_map_fd=inner.fd if inner else 0, map_flags=flags
        )
        fd = _libbpf().bpf_map_create(
            int(kind), name.encode(), key_size, value_size, max_entries, ctypes.byref(options)
        )
        return cls(_check(fd, f"make map {name} with {max_entries} entries"))

    @classmethod
    def open(cls, path: Path) -> Map:
        """Open a pinned map."""
        return cls(_get(path))

    @classmethod
    def by_id(cls, number: int) -> Map:
        """Open any map by its id (what looking up a map of maps returns)."""
        return cls(_check(_libbpf().bpf_map_get_fd_by_id(number), f"open map {number}"))

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        value = ctypes.create_string_buffer(self.user_value_size)
        result = _libbpf().bpf_map_lookup_elem(self.fd, self._key(key), value)
        if result < 0 and (-result == errno.ENOENT or ctypes.get_errno() == errno.ENOENT):
            return None
        _check(result, f"read map {self.name}")
        return value.raw

    def put(self, key: bytes, value: bytes) -> None:
        """Insert or replace. Raises CapacityError when the map is full."""
        if len(value) != self.user_value_size:
            raise ValueError(f"{self.name}: value of {len(value)} bytes, not {self.user_value_size}")
        result = _libbpf().bpf_map_update_elem(
            self.fd, self._key(key), ctypes.create_string_buffer(value, len(value)), 0
        )
        if result < 0:
            number = -result if result < -1 else ctypes.get_errno()
            if number in (errno.E2BIG, errno.ENOSPC):
                raise self._full()
            raise _failure(number, f"write map {self.name}")

    def put_many(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Insert or replace several, with one system call where the kernel has batches for this type
        of map. For a map of maps that counts: each call waits for an RCU grace period (10 ms)."""
        keys = b"".join(key for key, _ in entries)
        values = b"".join(value for _, value in entries)
        count = ctypes.c_uint32(len(entries))
        if _libbpf().bpf_map_update_batch(self.fd, keys, values, ctypes.byref(count), None) < 0:
            for key, value in entries:
                self.put(key, value)

    def check_room(self, entries: int) -> None:
        """Raises CapacityError if so many entries don't fit."""
        if entries > self.max_entries:
            raise self._full()

    def _full(self) -> CapacityError:
        name = self.name.removeprefix("lb_")
        return CapacityError(
            f"{name} map is full ({self.max_entries} entries)",
            hint=sizes.hint([name]),
        )

    def delete(self, key: bytes) -> bool:
        """False if it was not there."""
        result = _libbpf().bpf_map_delete_elem(self.fd, self._key(key))
        if result < 0 and (-result == errno.ENOENT or ctypes.get_errno() == errno.ENOENT):
            return False
        _check(result, f"delete from map {self.name}")
        return True

    def keys(self) -> Iterator[bytes]:
        """All keys; those that come or go meanwhile may be missed or seen twice."""
        previous: ctypes.Array[ctypes.c_char] | None = _NO_PREVIOUS_KEY
        while True:
            following = ctypes.create_string_buffer(self.key_size)
            if _libbpf().bpf_map_get_next_key(self.fd, previous, following) < 0:
                return
            yield following.raw
            previous = following

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, as far as they stay while being read."""
        for key in self.keys():
            value = self.get(key)
            if value is not None:
                yield key, value

    def dump(self) -> tuple[bytes, bytes]:
        """All keys and all values of a hash map in the same order, a few thousand with each system
        call; an entry that comes or goes meanwhile may be missed."""
        keys, values = bytearray(), bytearray()
        room_for_keys = ctypes.create_string_buffer(self.key_size * _BATCH)
        room = ctypes.create_string_buffer(self.user_value_size * _BATCH)
        position = ctypes.create_string_buffer(max(self.key_size, 8))
        previous = None
        while True:
            count = ctypes.c_uint32(_BATCH)
            result = _libbpf().bpf_map_lookup_batch(
                self.fd, previous, position, room_for_keys, room, ctypes.byref(count), None
            )
            done = result < 0
            if done and errno.ENOENT not in (-result, ctypes.get_errno()):
                _check(result, f"read map {self.name}")
            keys += room_for_keys.raw[: count.value * self.key_size]
            values += room.raw[: count.value * self.user_value_size]
            if done:
                return bytes(keys), bytes(values)
            previous = position

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Delete these, as far as they are there."""
        for key in keys:
            self.delete(key)

    def array(self) -> bytes:
        """All values of an array map in order of their index, with one system call where the kernel
        has batches (5.6; per CPU 5.13)."""
        out = ctypes.create_string_buffer(self.user_value_size * self.max_entries)
        indexes = ctypes.create_string_buffer(4 * self.max_entries)
        position = ctypes.create_string_buffer(4)
        count = ctypes.c_uint32(self.max_entries)
        result = _libbpf().bpf_map_lookup_batch(
            self.fd, None, position, indexes, out, ctypes.byref(count), None
        )
        # "No further entry" is the end of a whole answer. Without batches `count` is left as it was.
        if result < 0 and (-result if result < -1 else ctypes.get_errno()) != errno.ENOENT:
            return b"".join(
                self.get(index.to_bytes(4, sys.byteorder)) or b"" for index in range(self.max_entries)
            )
        return out.raw

    def _key(self, key: bytes) -> ctypes.Array[ctypes.c_char]:
        if len(key) != self.key_size:
            raise ValueError(f"{self.name}: key of {len(key)} bytes, not {self.key_size}")
        return ctypes.create_string_buffer(key, len(key))
