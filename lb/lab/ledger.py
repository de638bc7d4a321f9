"""What a lab has made: written down before it is made, so that it can always be removed.

`/run/lb-lab/NAME/` belongs to the lab of that name and holds all of its files. Its ledger.json
lists namespaces, mounts and processes. A lab's owner holds a lock on the folder: a folder that can
be locked, and isn't marked as kept, was left by an owner that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lb.errors import ConflictError
from lb.lab.sessions import Started, end
from lb.lab.shell import run

ROOT = Path("/run/lb-lab")
NAMESPACES = Path("/run/netns")


@dataclass
class Ledger:
    """The list, and the way to add to it and to undo it."""

    folder: Path
    kept: bool = False
    namespaces: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    processes: list[Started] = field(default_factory=list)
    _lock: int | None = None

    @property
    def _file(self) -> Path:
        return self.folder / "ledger.json"

    def claim(self) -> None:
        """Become the owner of the folder, and learn what an earlier owner has left there."""
        self._lock_folder()
        try:
            saved = json.loads(self._file.read_text())
        except FileNotFoundError:
            return
        self.kept = saved["kept"]
        self.namespaces = saved["namespaces"]
        self.mounts = saved["mounts"]
        self.processes = [Started(**process) for process in saved["processes"]]

    def _lock_folder(self) -> None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise ConflictError(
                    f"the lab in {self.folder} is in use by another process",
                    hint="wait for it to end",
                ) from None
            # An owner that ended just now has removed the folder that we waited for.
            with suppress(FileNotFoundError):
                if self.folder.stat().st_ino == os.fstat(descriptor).st_ino:
                    self._lock = descriptor
                    return
            os.close(descriptor)

    def release(self) -> None:
        """Stop being the owner, and leave all as it is."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def dissolve(self) -> None:
        """Undo everything, and give the folder up."""
        self.undo()
        shutil.rmtree(self.folder)
        with suppress(OSError):  # another lab is in there
            ROOT.rmdir()
        self.release()

    def save(self) -> None:
        """Write it down, whole or not at all."""
        saved = {
            "kept": self.kept,
            "namespaces": self.namespaces,
            "mounts": self.mounts,
            "processes": [asdict(process) for process in self.processes],
        }
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps(saved, indent=1))
        draft.replace(self._file)

    def add_namespace(self, name: str) -> None:
        """Make a network namespace."""
        if (NAMESPACES / name).exists():
            raise ConflictError(
                f"network namespace {name} exists, and this lab has not made it",
                hint="if it is another lab's: sudo make lab-down, or sudo make fleet-down; if nothing"
                f" needs it: ip netns del {name}",
            )
        self.namespaces.append(name)
        self.save()
        run(["ip", "netns", "add", name])

    def add_bpf_mount(self, point: Path) -> None:
        """Mount a bpf file system of the lab's own."""
        point.mkdir(parents=True, exist_ok=True)
        self.mounts.append(str(point))
        self.save()
        run(["mount", "-t", "bpf", "bpf", str(point)])

    def add_process(self, process: Started) -> None:
        """Remember a process that was just started."""
        self.processes.append(process)
        self.save()

    def undo(self) -> None:
        """Remove all that is listed. Can be repeated after it was interrupted."""
        end(self.processes)
        for point in self.mounts:
            if os.path.ismount(point):
                _unmount(point)
        for name in self.namespaces:
            if (NAMESPACES / name).exists():
                run(["ip", "netns", "del", name])
        self.processes, self.mounts, self.namespaces, self.kept = [], [], [], False
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _unmount(point: str) -> None:
    """Somebody's shell may stand in it: take it out of the tree all the same."""
    if subprocess.run(["umount", point], capture_output=True, check=False).returncode:
        run(["umount", "--lazy", point])
