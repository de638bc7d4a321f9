"""A virtual machine with another kernel and this machine's files: `run()` a command in it.

The host's file system is the guest's, below one in memory: what the guest writes is gone with it. Files
must not change on the host meanwhile, so what is tested is copied first (`snapshot`).
KVM is used where there is some; else qemu translates (tcg), which is some 10 times slower.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lb.lab.shell import LabError, tail, wait_until
from lb.lab.shell import run as run_here

from .debian import Kernel

HERE = Path(__file__).parent
TOP = HERE.parents[1]
MEMORY = "3G"
CPUS = 2
BOOT_SECONDS = 180.0  # it takes 4 to 20
LOOK_SECONDS = 2.0
# Debian 12 has it with qemu, Debian 13 on its own.
_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
_MODULES = ("virtio_pci", "virtiofs", "overlay")
_NOT_COPIED = (".venv", ".make", ".git", "__pycache__", ".*_cache", ".hypothesis")


_alive: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Ended:
    """How a run ended: did the machine come up; the command's exit status (None: it came to no end);
    how long it took with booting; the lines that it wrote to /dev/ttyS1."""

    up: bool
    status: int | None
    seconds: float
    lines: tuple[str, ...]


def has_kvm() -> bool:
    """Can the processor help? /dev/kvm alone doesn't say so: under some hypervisors it opens, and then
    Debian's kernels hang in early boot, because there is neither VMX nor SVM behind it."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return os.access("/dev/kvm", os.W_OK) and bool(
        {"vmx", "svm"} & {*(flags[1] if flags else "").split()}
    )


@contextmanager
def snapshot() -> Iterator[Path]:
    """A copy of this checkout that nobody changes, with bytecode: a guest would throw its own away."""
    with tempfile.TemporaryDirectory(prefix="lb-kernels-") as name:
        tree = Path(name) / "lb"
        shutil.copytree(TOP, tree, ignore=shutil.ignore_patterns(*_NOT_COPIED), symlinks=True)
        run_here(["/usr/bin/python3", "-m", "compileall", "-q", str(tree)], check=False, timeout=300)
        yield tree


def run(kernel: Kernel, script: str, *, timeout: float, log: Path) -> Ended:
    """Boot the kernel, run a script of sh as root, and end the machine after `timeout` seconds at the
    latest. `log` gets what the console shows."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lb-vm-") as name:
        place = Path(name)
        lines = place / "lines"
        daemon = _share_files(place)
        try:
            command = _qemu(kernel, place, _initramfs(kernel, place, script), lines)
            with log.open("w") as console:
                machine = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
                )
                _alive.add(machine)
                try:
                    _await(machine, lines, timeout)
                except subprocess.TimeoutExpired:
                    passed = time.monotonic() - began
                    console.write(f"\nkernels: ended from outside after {passed:.0f} s\n")
                finally:
                    _alive.discard(machine)
                    _end(machine)
        finally:
            _end(daemon)
        said = lines.read_text(errors="replace").splitlines() if lines.exists() else []
    found = re.fullmatch(r"exit (\d+)", said[-1]) if said else None
    up = said[:1] == ["up"]
    return Ended(
        up,
        int(found[1]) if found else None,
        time.monotonic() - began,
        tuple(said[up : -1 if found else None]),
    )


def _await(machine: subprocess.Popen[bytes], lines: Path, timeout: float) -> None:
    """Wait for its end. Raises TimeoutExpired, also if it doesn't come up."""
    began = time.monotonic()
    while True:
        is_up = lines.exists() and lines.stat().st_size > 0
        left = (timeout if is_up else min(timeout, BOOT_SECONDS)) - (time.monotonic() - began)
        try:
            machine.wait(max(0, min(left, LOOK_SECONDS)))
        except subprocess.TimeoutExpired:
            if left <= 0:
                raise
        else:
            return


def end_all() -> None:
    """End all machines that run, for instance because this process is told to end."""
    for machine in tuple(_alive):
        machine.terminate()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _share_files(place: Path) -> subprocess.Popen[bytes]:
    """The host's side of virtiofs. Beside 9p, which cloud kernels lack, it is up to 3 times faster."""
    program = next((path for path in _VIRTIOFSD if Path(path).exists()), None)
    if program is None:
        raise LabError("virtiofsd is not installed: run make deps-kernels")
    socket = place / "socket"
    # It holds a descriptor for each file that the guest remembers. With readdirplus those would be all
    # files of all folders that were listed: more than 20,000, which is all that some machines allow.
    options = "source=/,cache=always,no_writeback,no_readdirplus,sandbox=chroot"
    with (place / "virtiofsd.log").open("w") as log:
        daemon = subprocess.Popen(
            [program, f"--socket-path={socket}", "-o", options], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until("virtiofsd", socket.exists)
    except LabError as error:
        _end(daemon)
        raise LabError(f"{error.message}\n{tail(place / 'virtiofsd.log')}") from None
    return daemon


def _qemu(kernel: Kernel, place: Path, initramfs: Path, lines: Path) -> list[str]:
    # A translated machine walks its page tables in software: four levels are fewer than five.
    how = ("kvm", "max") if has_kvm() else ("tcg,thread=multi", "max,la57=off")
    return [
        *("qemu-system-x86_64", "-M", "q35", "-accel", how[0], "-cpu", how[1], "-smp", str(CPUS)),
        *("-m", MEMORY, "-nodefaults", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-serial", f"file:{lines}"),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"),
        *("-numa", "node,memdev=memory", "-chardev", f"socket,id=files,path={place / 'socket'}"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=root"),
        *("-kernel", str(kernel.image), "-initrd", str(initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
    ]


def _initramfs(kernel: Kernel, place: Path, script: str) -> Path:
    root = place / "initramfs"
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    shutil.copy("/bin/busybox", root / "bin")
    for part in ("init.sh", "boot.sh"):
        shutil.copy(HERE / part, root / ("init" if part == "init.sh" else part))
    (root / "init").chmod(0o755)
    (root / "conf").write_text(f"KERNEL={shlex.quote(str(kernel.folder))}\n")
    (root / "command").write_text(script)
    for number, module in enumerate(_needed(kernel)):
        # Neither busybox nor, in an initramfs, the kernel unpacks them.
        unpack = {".xz": ["xz", "-dc"], ".zst": ["zstd", "-qdc"]}.get(module.suffix, ["cat"])
        data = subprocess.run([*unpack, module], capture_output=True, check=True).stdout
        (root / f"modules/{number:03}-{module.name.partition('.')[0]}.ko").write_bytes(data)
    archive = place / "initramfs.cpio"
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with archive.open("wb") as file:
        argv = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(argv, input=names.encode(), stdout=file, cwd=root, check=True)
    return archive


def _needed(kernel: Kernel) -> list[Path]:
    """The modules that lead to the host's files, in the order in which they can be loaded."""
    options = ["-d", str(kernel.folder), "-S", kernel.release, "--show-depends"]
    said = run_here(["modprobe", "-a", *options, *_MODULES]).stdout
    return list(dict.fromkeys(Path(path) for path in re.findall(r"^insmod (\S+)", said, re.M)))
