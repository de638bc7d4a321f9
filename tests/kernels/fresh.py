"""`make test-fresh`: Debian 12 as it comes, made by debootstrap; in there what a newcomer is told to do.

It is a container made by hand: a root file system of its own above a cached one, namespaces for mounts
and processes, this machine's kernel and network. Without systemd, so of vagrant/'s scripts those of its
lab machine are run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lb.errors import LbError
from lb.lab.shell import run

from . import debian, machine

BASE = debian.CACHE / "fresh"
# What a newcomer's machine has, besides the least: README.md, "See it work".
PACKAGES = "ca-certificates,sudo,git,make,python3"
OLD_SECONDS = 7 * 86400.0  # after which the cached one is made anew
# `make test` of these: what needs the packages and files that a fresh machine may lack. The whole suite
# takes long, and is run elsewhere.
FAST = "tests/unit tests/datapath/test_hooks.py tests/lab/test_traffic.py"
MINUTES = 30
# How this machine reaches its mirrors, in case it has a way of its own.
_HOST_FILES = ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt")


def base() -> Path:
    """A fresh Debian 12, from the cache if that is young."""
    if BASE.exists() and time.time() - BASE.stat().st_mtime < OLD_SECONDS:
        return BASE
    sites = debian.mirrors()
    BASE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BASE.parent, prefix=".new-") as name:
        root = Path(name) / "root"
        print("fresh: debootstrap", flush=True)
        options = ["--variant=minbase", f"--include={PACKAGES}"]
        run(["debootstrap", *options, "bookworm", str(root), sites["main"]], timeout=900)
        suites = [(sites["main"], "bookworm"), (sites["main"], "bookworm-updates")]
        if "security" in sites:
            suites.append((sites["security"], "bookworm-security"))
        lines = "".join(f"deb {site} {suite} main\n" for site, suite in suites)
        (root / "etc/apt/sources.list").write_text(lines)
        shutil.rmtree(BASE, ignore_errors=True)
        root.rename(BASE)
        os.utime(BASE)
    return BASE


def script(root: Path, lower: Path, tree: Path) -> str:
    """Of sh, for the new mount namespace: put the root together and go there."""
    new, parts = shlex.quote(str(root / "new")), shlex.quote(str(root))
    layers = f"lowerdir={lower},upperdir={root}/up/upper,workdir={root}/up/work"
    lines = [
        "set -eu",
        f"cd {parts}",
        "mkdir up new",
        # In memory: some file systems can't be the upper layer.
        "mount -t tmpfs tmpfs up",
        "mkdir up/upper up/work",
        f"mount -t overlay -o {shlex.quote(layers)} overlay new",
        f"cd {new}",
        "mount -t proc proc proc",
        "mount -t sysfs sys sys",
        "mount -t bpf bpf sys/fs/bpf",
        "mount -t cgroup2 cgroup sys/fs/cgroup",
        "mount --rbind /dev dev",
        "mount -t tmpfs tmpfs run",
        "mkdir -p home/vagrant/lb run/lock",
        f"cp -a {shlex.quote(str(tree))}/. home/vagrant/lb/",
        "chown -R root:root home/vagrant/lb",
        *(f"[ ! -e /{file} ] || cp -L /{file} {file}" for file in _HOST_FILES),
        'exec chroot . env -i PATH="$PATH" HOME=/root TERM=dumb LC_ALL=C.UTF-8'
        f" PYTEST_ADDOPTS={shlex.quote(os.environ.get('PYTEST_ADDOPTS', FAST))}"
        " sh /home/vagrant/lb/tests/kernels/fresh.sh",
    ]
    return "\n".join([*lines, ""])


def works() -> bool:
    """Do it; True if all of it ended well."""
    lower = base()
    with machine.snapshot() as tree, tempfile.TemporaryDirectory(prefix="lb-fresh-") as name:
        # --kill-child: with the first process of the namespace all others end.
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]
        try:
            done = subprocess.run(
                [*command, script(Path(name), lower, tree)], timeout=MINUTES * 60, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"fresh: no end after {MINUTES} min")
            return False
    return done.returncode == 0


def main() -> None:
    """Exit code 0 if all of it ended well; the last line says so, too."""
    try:
        good = works()
    except LbError as error:
        print(f"fresh: error: {error.message}\nfresh: {error.hint}", file=sys.stderr)
        good = False
    print(f"fresh: {'ok' if good else 'failed'}", flush=True)
    sys.exit(not good)


if __name__ == "__main__":
    main()
