"""Debian's kernels with their headers: the newest package of a series, unpacked in a cache.

Nothing is installed: apt gets a list of sources of its own, made of the mirrors that this machine uses.
`python -m tests.kernels.debian 6.1` fills the cache, for tests that are cut off from the network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lb.datapath import headers
from lb.errors import DatapathError, LbError, NotFoundError, UserError
from lb.lab.shell import LabError, run

CACHE = Path("/var/cache/lb/kernels")
NEWEST = "newest"
# The least that is supported, Debian 12's own, the next long-term one, and what comes after it.
SERIES = ("5.10", "6.1", "6.12", NEWEST)
_SUITES = {
    "main": ("bullseye", "bookworm", "bookworm-backports", "trixie-backports"),
    "security": ("bullseye-security", "bookworm-security"),
}
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_FRESH_SECONDS = 86400.0  # for which a list of packages is not fetched again


@dataclass(frozen=True)
class Kernel:
    """One kernel: `release` is what `uname -r` says there, `folder` has boot/, lib/, usr/."""

    series: str
    release: str
    folder: Path

    @property
    def image(self) -> Path:
        """What a boot loader starts. Debian 13 keeps it with the modules."""
        boot = self.folder / f"boot/vmlinuz-{self.release}"
        return boot if boot.exists() else self.modules / "vmlinuz"

    @property
    def modules(self) -> Path:
        """Its modules."""
        return self.folder / "lib/modules" / self.release


def fetch(series: str, cache: Path = CACHE, *, seconds: float = 900.0) -> Kernel:
    """The newest kernel of a series ("6.1"; "newest": of all), from the cache if it is there. Where no
    mirror answers within `seconds`, the newest that the cache has. Raises an error that says what to
    do."""
    if series != NEWEST and not re.fullmatch(r"\d+\.\d+", series):
        raise UserError(f"{series!r} is no series of kernels", hint=f"for example {', '.join(SERIES)}")
    cache.mkdir(parents=True, exist_ok=True)
    apt = _Apt(cache / "apt", seconds)
    try:
        apt.update()
        release = apt.newest(series)
    except (LabError, NotFoundError) as error:
        held = [path.name for path in cache.glob("[0-9]*-amd64")]
        release = next(iter(in_order(series, held)), "")
        if not release:
            raise
        print(f"kernels: {error.message.splitlines()[0]}: taking {release} from the cache", flush=True)
    if not release:
        raise NotFoundError(
            f"Debian has no kernel {series} with headers", hint=f"there are: {', '.join(SERIES)}"
        )
    folder = cache / release
    if not folder.exists():
        print(f"kernels: fetching {release}", flush=True)
        _unpack(apt, release, folder)
    # The guest finds it made, instead of walking some 20,000 files for it.
    sources = folder / "usr/src"
    headers.merged(sources / common(release), sources / f"linux-headers-{release}")
    return Kernel(series, release, folder)


def in_order(series: str, releases: Iterable[str]) -> list[str]:
    """Those of a series, the newest first."""
    prefix = "" if series == NEWEST else f"{series}."
    return sorted((r for r in releases if r.startswith(prefix)), key=_version, reverse=True)


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release.removesuffix("-amd64")))


class _Apt:
    """apt with lists and sources of its own."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        self._stamp = folder / "updated"
        self._config = folder / "apt.conf"

    def update(self) -> None:
        """Fetch the lists of packages, if they aren't of today."""
        if self._stamp.exists() and time.time() - self._stamp.stat().st_mtime < _FRESH_SECONDS:
            return
        for part in ("lists/partial", "cache/archives/partial"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)
        lines = [
            f"deb [signed-by={_KEYS}] {site} {suite} main\n"
            for kind, site in mirrors().items()
            for suite in _SUITES[kind]
        ]
        (self._folder / "sources.list").write_text("".join(lines))
        self._config.write_text(
            f'Dir::Etc::sourcelist "{self._folder}/sources.list";\nDir::Etc::sourceparts "-";\n'
            f'Dir::State::lists "{self._folder}/lists";\nDir::Cache "{self._folder}/cache";\n'
            # What is unpacked by hand needs no user of its own to be downloaded.
            'APT::Sandbox::User "root";\nAcquire::Languages "none";\n'
        )
        self.run("apt-get", "-qq", "update")
        self._stamp.touch()

    def newest(self, series: str) -> str:
        """The newest kernel of a series for all machines (not cloud, not rt) that comes with both halves
        of its headers, or ""."""
        names = set(self.run("apt-cache", "pkgnames", "linux-").split())
        images = [re.fullmatch(r"linux-image-(\d+\.\d+\.\d+[^-]*(-\d+)?-amd64)", name) for name in names]
        for release in in_order(series, [found[1] for found in images if found]):
            wanted = (f"linux-image-{release}", f"linux-headers-{release}", common(release))
            if {*wanted} <= names and all(map(self._has, wanted)):
                return release
        return ""

    def _has(self, package: str) -> bool:
        # A name may be left of a package that is gone, because another one depends on it.
        return "Filename:" in self.run("apt-cache", "--no-all-versions", "show", package, check=False)

    def run(self, *argv: str, check: bool = True, folder: Path | None = None) -> str:
        """Run a program of apt. Raises LabError with what it said."""
        argv = ("env", f"--chdir={folder or '/'}", *argv)
        env = {**os.environ, "APT_CONFIG": str(self._config)}
        return run(argv, env=env, check=check, timeout=self._seconds).stdout


def common(release: str) -> str:
    """The package of the headers that all machines share."""
    return f"linux-headers-{release.removesuffix('-amd64').rstrip('-')}-common"


def mirrors() -> dict[str, str]:
    """Where this machine gets Debian from, and Debian's security updates."""
    said = run(["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(CREATED_BY)"]).stdout
    found: dict[str, str] = {}
    for line in said.splitlines():
        site, _, rest = line.partition(" ")
        suite, _, kind = rest.partition(" ")
        if kind != "Packages":
            continue
        if suite.endswith("-security"):
            found.setdefault("security", site)
        elif re.fullmatch(r"(bullseye|bookworm|trixie)(-updates)?", suite):
            found.setdefault("main", site)
    if "main" not in found:
        raise NotFoundError(
            "this machine gets no packages from Debian, so neither kernels",
            hint="run it on Debian 12, after apt-get update",
        )
    return found


def _unpack(apt: _Apt, release: str, folder: Path) -> None:
    """All or nothing; and then what the cache has of that series, but older, is dropped."""
    depends = apt.run("apt-cache", "depends", f"linux-image-{release}")
    # Newer ones come in several parts.
    parts = re.findall(rf"Depends: (linux-(?:base|binary|modules)-\S*{re.escape(release)}\S*)", depends)
    wanted = [f"linux-image-{release}", f"linux-headers-{release}", common(release), *parts]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as name:
        place = Path(name)
        apt.run("apt-get", "-qq", "download", *wanted, folder=place)
        tree = place / "tree"
        tree.mkdir()
        for package in place.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, tree], check=True)
        modules = tree / "lib/modules"
        if not (modules / release / "kernel").is_dir():
            modules.parent.mkdir(exist_ok=True)
            shutil.rmtree(modules, ignore_errors=True)
            modules.symlink_to("../usr/lib/modules")
        if not (modules / release / "kernel").is_dir():
            raise DatapathError(f"the packages of {release} hold no modules", hint="report it")
        subprocess.run(["depmod", "-b", tree, release], check=True)
        try:
            tree.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    series = ".".join(release.split(".")[:2])
    for old in folder.parent.glob(f"{series}.*-amd64"):
        if old != folder:
            shutil.rmtree(old)


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            fetch(name, seconds=240)
    except LbError as error:
        sys.exit(f"kernels: {error.message.splitlines()[0]}")
