"""Bringing the data path of this machine up, and taking it down again.

What is up: pinned maps, one pinned program per kind of hook and version, attached to the interfaces.
All of it outlives lbd; the next one adopts what fits.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pyroute2 import IPRoute
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from lb.datapath import adoption, attach, beside, compile, consts, sources, structs
from lb.datapath.attach import Interface, Ours
from lb.datapath.bpf import Map, Program
from lb.datapath.encode import index_key
from lb.datapath.maps import Maps
from lb.errors import ConflictError, DatapathError, NotFoundError
from lb.settings import Hook, Limits, Settings

_BPF_FS_MAGIC = 0xCAFE4A11  # uapi/linux/magic.h
_BPF_FS = Path("/sys/fs/bpf")
_RUN = Path("/run/lb")
_PROGRAM = "program_"


def _short(pin_dir: Path) -> str:
    """A pin directory in few letters."""
    return hashlib.blake2b(str(pin_dir.absolute()).encode(), digest_size=6).hexdigest()


class Lock:
    """One lbd per pin directory. Held by an open file, so that it ends with the process."""

    def __init__(self, pin_dir: Path) -> None:
        self.path = _RUN / f"lbd-{_short(pin_dir)}.pid"
        self._fd = -1

    def acquire(self) -> None:
        """Raises ConflictError that names the process that holds it."""
        _RUN.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ConflictError(
                f"lbd runs already with these pins (pid {self.holder()})",
                hint="stop that one first, or give this one its own pin_dir",
            ) from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def holder(self) -> int | None:
        """Process id of the lbd that wrote the file last; it may be gone."""
        try:
            return int(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def take_over(self, timeout: float = 10.0) -> None:
        """Stop the lbd that holds it (SIGTERM), and hold it."""
        try:
            self.acquire()
            return
        except ConflictError:
            pid = self.holder()
            if pid is not None:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGTERM)
        for attempt in Retrying(
            retry=retry_if_exception_type(ConflictError),
            stop=stop_after_delay(timeout),
            wait=wait_fixed(0.05),
            reraise=True,
        ):
            with attempt:
                self.acquire()

    def release(self) -> None:
        """Let go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(frozen=True)
class Attachment:
    """Where the program is attached, and why there."""

    interfaces: tuple[Interface, ...]
    hook: Hook
    why: str


def on_bpf_fs(path: Path) -> bool:
    """Is this path, or where it would be made, on a bpf file system?"""
    while not path.exists():
        path = path.parent
    found = subprocess.run(
        ["stat", "--file-system", "--format=%t", str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(found.stdout, 16) == _BPF_FS_MAGIC


def ensure_bpf_fs(pin_dir: Path) -> None:
    """Mount a bpf file system at its usual place if that is what is missing."""
    if on_bpf_fs(pin_dir):
        return
    if not pin_dir.is_relative_to(_BPF_FS):
        raise DatapathError(
            f"pin_dir {pin_dir} is not on a bpf file system",
            hint=f"mount -t bpf bpf {pin_dir.parent}, or use {_BPF_FS / 'lb'}",
        )
    mounted = subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(_BPF_FS)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        raise DatapathError(
            f"no bpf file system at {_BPF_FS}: {mounted.stderr.strip()}",
            hint="run as root; the kernel needs CONFIG_BPF_SYSCALL",
        )


def open_maps(pin_dir: Path, limits: Limits) -> tuple[Maps, list[str]]:
    """The pinned maps, or new ones. Also returns the names of those that were made beside pinned ones,
    as another version of lbd had none, or others."""
    if not (pin_dir / "maps").exists():
        maps = Maps.create(limits)
        maps.pin(pin_dir)
        return maps, []
    return adoption.adopt(pin_dir, limits)


def our_programs(pin_dir: Path) -> dict[int, Path]:
    """Ids of all programs that an lbd pinned here."""
    found = {}
    for path in pin_dir.glob(f"{_PROGRAM}*"):
        found[Program.open(path).id] = path
    return found


def our_attachments(pin_dir: Path) -> Ours:
    """What tells attachments of an lbd with these pins from others'."""
    return Ours(frozenset(our_programs(pin_dir)), f"lb-{_short(pin_dir)}")


def _program_file(hook: Hook, maps: Maps) -> str:
    return f"{_PROGRAM}{sources.folder(hook)}_{maps.fingerprint(hook)}"


def load_program(pin_dir: Path, hook: Hook, maps: Maps) -> tuple[Program, Path]:
    """The program for this hook: the pinned one if its sources are ours and its maps are these, else
    compiled."""
    path = pin_dir / _program_file(hook, maps)
    if not path.exists():
        compile.load(hook, pin_dir, path)
    return Program.open(path), path


def bring_up(ip: IPRoute, settings: Settings, maps: Maps) -> Attachment:
    """Load and attach; interfaces that are no longer named are let go. If one interface refuses, all
    are as they were before."""
    interfaces = attach.check(ip, settings.interfaces)
    pin_dir = settings.pin_dir
    # Before the first packet: a program that doesn't know its interfaces can't send.
    for interface in interfaces:
        link(maps, interface)
    if settings.hook is Hook.AUTO:
        hook, why = Hook.XDP, "all interfaces have native XDP"
        try:
            path = _attach_all(ip, interfaces, hook, pin_dir, maps)
        except DatapathError as error:
            # Generic XDP copies most packets first, and is slower than tc.
            hook, why = Hook.TC, f"no native XDP: {error.message}"
            path = _attach_all(ip, interfaces, hook, pin_dir, maps)
    else:
        hook, why = settings.hook, "asked for"
        path = _attach_all(ip, interfaces, hook, pin_dir, maps)
    maps.former.clear()
    ours = our_programs(pin_dir)
    for index in linked(maps.links) - {interface.index for interface in interfaces}:
        _release(ip, maps, index, our_attachments(pin_dir))
    current = {_program_file(hook, maps) for hook in (Hook.XDP, Hook.TC)}
    for old in ours.values():
        if old != path and old.name not in current:
            old.unlink()  # of another version; this version's other hook may be wanted again
    return Attachment(tuple(interfaces), hook, why)


def _attach_all(
    ip: IPRoute, interfaces: Sequence[Interface], hook: Hook, pin_dir: Path, maps: Maps
) -> Path:
    """Attach to all interfaces or, if one refuses, to none that had nothing of ours before. Returns
    where the program is pinned."""
    if hook is not Hook.TC:
        for interface in interfaces:
            attach.check_foreign(interface, our_attachments(pin_dir))
    program, path = load_program(pin_dir, hook, maps)
    maps.carry_over()  # once more: compiling takes seconds
    ours = our_attachments(pin_dir)
    fresh: list[str] = []
    try:
        for interface in interfaces:
            if hook not in attach.attached_hooks(ip, interface, ours):
                fresh.append(interface.name)
            attach.attach(ip, interface, hook, program, ours)
    except DatapathError:
        for name in fresh:
            attach.detach_from(ip, attach.find(ip, name), hook, ours)
        raise
    # Only when all have the new one: until then the old one serves where the new one refused.
    for interface in interfaces:
        _detach_others(ip, interface.name, hook, ours)
    return path


def _detach_others(ip: IPRoute, name: str, hook: Hook, ours: Ours) -> None:
    """Off the hooks that are not wanted: two at once would balance twice."""
    present = attach.find(ip, name)
    for other in attach.attached_hooks(ip, present, ours) - {hook}:
        attach.detach_from(ip, present, other, ours)


def reattach(ip: IPRoute, maps: Maps, settings: Settings, attachment: Attachment) -> Attachment:
    """Put the program back on interfaces that lost it: made anew, given another MAC address, or
    detached by hand. The same object if all is well. An interface that is gone is left alone until it
    comes back."""
    ours = our_attachments(settings.pin_dir)
    present: list[Interface] = []
    for known in attachment.interfaces:
        try:
            (now,) = attach.check(ip, [known.name])
        except (DatapathError, NotFoundError):
            present.append(known)
            continue
        attached = attachment.hook in attach.attached_hooks(ip, now, ours)
        if attached and _place(now) == _place(known):
            present.append(known)
            continue
        program, _ = load_program(settings.pin_dir, attachment.hook, maps)
        link(maps, now)
        attach.attach(ip, now, attachment.hook, program, ours)
        _unlink(maps, known.index, keep=(now.index, *now.ports))
        present.append(now)
    if all(now is known for now, known in zip(present, attachment.interfaces, strict=True)):
        return attachment
    return Attachment(tuple(present), attachment.hook, attachment.why)


def _place(interface: Interface) -> tuple[object, ...]:
    return interface.index, interface.mac, interface.ports


def link(maps: Maps, interface: Interface) -> None:
    """Tell the programs of an interface, and let them send out there."""
    for index in (interface.index, *interface.ports):
        entry = structs.Link(ifindex=index, master=interface.index)
        entry.mac[:] = interface.mac
        maps.links.put(index_key(index % consts.LINKS), bytes(entry))
    maps.egress.put(index_key(interface.index), index_key(interface.index))


def linked(links: Map) -> set[int]:
    """Indexes of the interfaces that the program is attached to."""
    return {entry.master for entry in _entries(links)}


def _entries(links: Map) -> list[structs.Link]:
    raw = links.array()
    size = ctypes.sizeof(structs.Link)
    entries = (structs.Link.from_buffer_copy(raw, at) for at in range(0, len(raw), size))
    return [entry for entry in entries if entry.ifindex]


def _release(ip: IPRoute, maps: Maps, index: int, ours: Ours) -> None:
    for interface in attach.by_index(ip, index):
        beside.release(ip, interface, ours.name)
        attach.detach(ip, interface, ours)
    _unlink(maps, index)


def _unlink(maps: Maps, index: int, keep: Collection[int] = ()) -> None:
    """Forget an interface and its ports, but for those to `keep`."""
    for entry in _entries(maps.links):
        if entry.master == index and entry.ifindex not in keep:
            empty = bytes(ctypes.sizeof(structs.Link))
            maps.links.put(index_key(entry.ifindex % consts.LINKS), empty)
    if index not in keep:
        maps.egress.delete(index_key(index))


def take_down(ip: IPRoute, pin_dir: Path) -> list[str]:
    """Detach from all interfaces and remove all pins. Returns the interfaces' names."""
    released = []
    # Only this one map is needed, so that what a killed lbd or another version left goes away, too.
    path = pin_dir / "maps" / "links"
    if path.exists():
        links, ours = Map.open(path), our_attachments(pin_dir)
        is_known = links.value_size == ctypes.sizeof(structs.Link)
        for index in linked(links) if is_known else [link["index"] for link in ip.get_links()]:
            for interface in attach.by_index(ip, index):
                beside.release(ip, interface, ours.name)
                if attach.detach(ip, interface, ours):
                    released.append(interface.name)
    if pin_dir.exists() and on_bpf_fs(pin_dir):
        shutil.rmtree(pin_dir)
    return sorted(released)
