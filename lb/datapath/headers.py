"""Kernel headers for BCC: the running kernel's, or any version's, as Debian splits them.

Our programs include UAPI headers and what BCC itself drags in (linux/…, asm/…), so any headers of
5.10 or newer compile a program that runs on any such kernel. Debian ships headers in two trees,
linux-headers-V-common and linux-headers-V-ARCH; BCC wants one. `merged()` makes a farm of symbolic
links of the two, once per version.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lb.errors import DatapathError

CACHE = Path("/var/cache/lb/headers")


@dataclass(frozen=True)
class Headers:
    """A tree that BCC can compile against, and where it came from in words."""

    path: Path
    origin: str


def find(
    *,
    release: str | None = None,
    root: Path = Path("/"),
    cache: Path = CACHE,
    environ: Mapping[str, str] = os.environ,
) -> Headers:
    """The best tree there is: BCC_KERNEL_SOURCE, the running kernel's own, the newest that Debian's
    packages left in /usr/src. Raises DatapathError that says what to install."""
    release = release or platform.release()
    named = environ.get("BCC_KERNEL_SOURCE")
    if named:
        if not _is_whole(Path(named)):
            raise DatapathError(
                f"BCC_KERNEL_SOURCE={named} is not a tree of kernel headers",
                hint="it must hold include/linux/kconfig.h; unset it to search as usual",
            )
        return Headers(Path(named), "BCC_KERNEL_SOURCE")
    own = root / "lib/modules" / release / "build"
    if _is_whole(own):
        return Headers(own, f"headers of the running kernel {release}")
    candidates = sorted((root / "usr/src").glob("linux-headers-*-common*"), key=_version, reverse=True)
    # The running kernel's first, if its two halves are there.
    candidates.sort(key=lambda path: not release.startswith(_version_text(path)))
    for common in candidates:
        for arch in sorted((root / "usr/src").glob(f"linux-headers-{_version_text(common)}-*")):
            if arch == common or not (arch / "include/generated/autoconf.h").exists():
                continue
            tree = merged(common, arch, cache)
            return Headers(tree, f"Debian's split headers {arch.name}")
    raise DatapathError(
        f"no kernel headers: neither {own} nor a linux-headers package in {root / 'usr/src'}",
        hint=f"apt-get install linux-headers-{release} (or, for another version's headers, which"
        " work as well: linux-headers-amd64)",
    )


def merged(common: Path, arch: Path, cache: Path = CACHE) -> Path:
    """One tree of links out of Debian's two; made whole in a temporary place, then moved."""
    tree = cache / arch.name
    if _is_whole(tree):
        return tree
    cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{arch.name}.", dir=cache))
    for half in (common, arch):
        for part in ("include", "arch"):
            if (half / part).is_dir():
                shutil.copytree(half / part, building / part, copy_function=_link, dirs_exist_ok=True)
    building.chmod(0o755)
    try:
        shutil.rmtree(tree, ignore_errors=True)
        building.rename(tree)
    except OSError:  # another process was faster
        shutil.rmtree(building, ignore_errors=True)
        if not _is_whole(tree):
            raise
    return tree


def _link(source: str, target: str) -> str:
    path = Path(target)
    path.unlink(missing_ok=True)
    path.symlink_to(source)
    return target


def _is_whole(tree: Path) -> bool:
    # exists() follows links: one into a package that was removed since counts as missing.
    return all(
        (tree / "include" / part).exists()
        for part in ("linux/kconfig.h", "uapi/linux/bpf.h", "generated/autoconf.h")
    )


def _version_text(path: Path) -> str:
    return path.name.removeprefix("linux-headers-").partition("-common")[0]


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", _version_text(path)))
