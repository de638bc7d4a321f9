"""Frames through the program as it would treat them now, without touching anything that is alive.

The program is loaded once more, against the live maps as far as it only reads them (services,
backends, slot tables), and against copies of those that it writes (conntrack, ports, counters): so
flows and counters of the live maps stay as they were. Frames go through BPF_PROG_TEST_RUN: nothing is
sent.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lb.core.ids import uid
from lb.core.state import DesiredState
from lb.datapath import compile, consts, structs
from lb.datapath.bpf import Map, Program
from lb.datapath.kernel import read_owners
from lb.datapath.maps import Maps, specs
from lb.datapath.release import XDP_REPLAY
from lb.errors import DatapathError
from lb.model import keys
from lb.settings import Hook, Limits

# What the programs write.
_COPIED = (
    "conntrack", "embryonic", "senders", "bindings", "translations", "fragments", "watched", "totals",
)  # fmt: skip
_FRESH = ("scratch", "lookups", "allowance", "outcomes", "service_stats", "backend_stats")

# uapi/linux/bpf.h and uapi/linux/pkt_cls.h
_VERDICTS = {
    Hook.XDP: {0: "aborted", 1: "drop", 2: "pass", 3: "tx", 4: "redirect"},
    Hook.TC: {2**32 - 1: "pass", 2: "drop", 7: "redirect"},  # TC_ACT_UNSPEC is -1
}
_SHORTEST = 15  # bytes of a frame that a test run takes


@dataclass(frozen=True)
class Replayed:
    """What became of one frame: the kernel's verdict, the outcome as the counters call it, the service
    and backend that it was counted for, and the frame as it would have left (None if it would not)."""

    verdict: str
    outcome: str
    service: str | None
    backend: str | None
    frame: bytes | None


class Replay:
    """A program with maps of its own beside the live ones. Made by `replaying()`."""

    def __init__(self, hook: Hook, program: Program, maps: Maps, state: DesiredState) -> None:
        self.hook = hook
        self._program = program
        self._maps = maps
        services = {uid(keys.service(name)): name for name in state.services}
        backends = {uid(keys.backend(*key)): key[1] for key in state.backends}
        self._services = _names(maps.service_owners, services)
        self._backends = _names(maps.backend_owners, backends)

    def send(self, frame: bytes, ifindex: int) -> Replayed:
        """One frame, as if it had come in by this interface. Flows that it begins are remembered for the
        next ones. Raises DatapathError if the kernel refuses to run it."""
        if self.hook is Hook.XDP and not XDP_REPLAY.is_here():
            raise DatapathError(
                f"{XDP_REPLAY.what} needs Linux {XDP_REPLAY.words} or newer",
                hint=f"{XDP_REPLAY.instead}; `lbctl trace` says where a flow goes",
            )
        if len(frame) < _SHORTEST:
            return Replayed("pass", "pass_not_ours", None, None, None)
        # Frames of a capture don't come as fast as they are sent here.
        for kind in consts.Error:
            unspent = bytes(self._maps.allowance.user_value_size)
            self._maps.allowance.put(struct.pack("=I", kind), unspent)
        before = self._counters()
        result = self._program.run(frame, context=self._context(len(frame), ifindex))
        outcome, service, backend = (
            _changed(was, now) for was, now in zip(before, self._counters(), strict=True)
        )
        verdict = _VERDICTS[self.hook].get(result.retval, str(result.retval))
        if outcome is None:
            raise DatapathError("the program counted no outcome", hint="this is a bug in lb: report it")
        leaves = verdict in ("tx", "redirect") or (verdict == "pass" and result.data != frame)
        return Replayed(
            verdict=verdict,
            outcome=consts.Outcome(outcome).name.lower(),
            service=self._services.get(service) if service is not None else None,
            backend=self._backends.get(backend) if backend is not None else None,
            frame=result.data if leaves else None,
        )

    def _context(self, size: int, ifindex: int) -> bytes:
        if self.hook is Hook.TC:
            return bytes(40) + struct.pack("=I", ifindex)  # struct __sk_buff, up to ifindex
        return struct.pack("=6I", 0, size, 0, ifindex, 0, 0)  # struct xdp_md

    def _counters(self) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint64]]]:
        """Packets per outcome, service and backend. Answers count apart, so both columns."""
        found = []
        for name, kind, columns in (
            ("outcomes", structs.Counter, ("packets",)),
            ("service_stats", structs.Stats, ("packets", "reply_packets")),
            ("backend_stats", structs.Stats, ("packets", "reply_packets")),
        ):
            source = self._maps.by_name[name]
            words = np.frombuffer(source.array(), dtype=np.uint64)
            rows = words.reshape(source.max_entries, -1, ctypes.sizeof(kind) // 8)
            at = [getattr(kind, column).offset // 8 for column in columns]
            found.append(rows[:, :, at].sum(axis=(1, 2)))
        return found


@contextmanager
def replaying(
    pin_dir: Path, state: DesiredState, ifindex: int, hook: Hook | None = None
) -> Iterator[Replay]:
    """A replay beside the live maps in `pin_dir`, for frames that come in by this interface. Without a
    `hook` it is XDP where the kernel can run that for the interface (it has to have native XDP), else
    tc; both treat every frame alike. Takes a second or two: the program is compiled."""
    live = Maps.open(pin_dir)
    live.need_all()
    place = pin_dir / f"replay_{os.getpid()}"
    maps = _beside(live)
    (place / "maps").mkdir(parents=True, mode=0o700)
    try:
        for name, each in maps:
            each.pin(place / "maps" / name)
        for candidate in [hook] if hook else [Hook.XDP, Hook.TC]:
            path = place / candidate
            compile.load(candidate, place, path)
            replay = Replay(candidate, Program.open(path), maps, state)
            try:
                replay.send(bytes(64), ifindex)
            except DatapathError:
                if hook or candidate is Hook.TC:
                    raise
                continue
            break
        yield replay
    finally:
        shutil.rmtree(place)


def _beside(live: Maps) -> Maps:
    wanted = specs(Limits())
    made: dict[str, Map] = {}
    highest = {
        "service_stats": max(read_owners(live.service_owners), default=0) + 1,
        "backend_stats": max(read_owners(live.backend_owners), default=0) + 1,
    }
    for name, each in live:
        if name not in _COPIED and name not in _FRESH:
            made[name] = each
            continue
        # Only as many counters as can change: all of them are read for each frame.
        room = highest.get(name, each.max_entries)
        made[name] = replace(wanted[name], max_entries=room).create(name)
        if name in _COPIED:
            made[name].put_many(list(each.items()))
    return Maps(made)


def _names(owners: Map, names: Mapping[int, str]) -> dict[int, str]:
    return {number: names.get(owner, f"id {number}") for number, owner in read_owners(owners).items()}


def _changed(
    before: np.ndarray[tuple[int, ...], np.dtype[np.uint64]],
    after: np.ndarray[tuple[int, ...], np.dtype[np.uint64]],
) -> int | None:
    found = np.flatnonzero(before != after)
    return int(found[0]) if len(found) else None
