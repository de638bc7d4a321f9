"""lb/datapath/headers.py: where kernel headers are looked for, and what is said if there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lb.datapath import headers
from lb.errors import DatapathError


def tree(path: Path, *, common: bool, arch: bool) -> Path:
    """Make what headers.py looks at of a whole tree, or of one of Debian's halves."""
    files = []
    if common:
        files += ["include/linux/kconfig.h", "include/uapi/linux/bpf.h", "arch/x86/include/asm/a.h"]
    if arch:
        files += ["include/generated/autoconf.h", "arch/x86/include/generated/asm/b.h"]
    for file in files:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text(f"{path.name} {file}")
    return path


def find(root: Path, release: str = "6.1.0-9-amd64", **environ: str) -> headers.Headers:
    return headers.find(release=release, root=root, cache=root / "cache", environ=environ)


def test_the_running_kernels_own_come_first(tmp_path: Path) -> None:
    own = tree(tmp_path / "lib/modules/6.1.0-9-amd64/build", common=True, arch=True)
    tree(tmp_path / "usr/src/linux-headers-6.5.0-1-common", common=True, arch=False)
    tree(tmp_path / "usr/src/linux-headers-6.5.0-1-amd64", common=False, arch=True)
    assert find(tmp_path).path == own


def test_debians_halves_become_one_tree(tmp_path: Path) -> None:
    # The kernel's own link points to the half without the common headers.
    tree(tmp_path / "lib/modules/6.1.0-9-amd64/build", common=False, arch=True)
    tree(tmp_path / "usr/src/linux-headers-6.1.0-9-common", common=True, arch=False)
    tree(tmp_path / "usr/src/linux-headers-6.1.0-9-amd64", common=False, arch=True)
    found = find(tmp_path)
    for file in ("include/linux/kconfig.h", "include/generated/autoconf.h", "arch/x86/include/asm/a.h"):
        assert (found.path / file).read_text().endswith(file)
    assert "linux-headers-6.1.0-9-amd64" in found.origin
    assert find(tmp_path).path == found.path


def test_the_running_kernels_version_is_preferred_then_the_newest(tmp_path: Path) -> None:
    for version in ("5.10.0-3", "6.1.0-9", "6.12.0-2"):
        tree(tmp_path / f"usr/src/linux-headers-{version}-common", common=True, arch=False)
        tree(tmp_path / f"usr/src/linux-headers-{version}-amd64", common=False, arch=True)
    assert "6.1.0-9" in find(tmp_path).origin
    assert "6.12.0-2" in find(tmp_path, release="7.0.0-custom").origin


def test_a_half_alone_is_none(tmp_path: Path) -> None:
    tree(tmp_path / "usr/src/linux-headers-6.1.0-9-common", common=True, arch=False)
    with pytest.raises(DatapathError, match="no kernel headers") as caught:
        find(tmp_path)
    assert "apt-get install linux-headers-6.1.0-9-amd64" in caught.value.hint


def test_a_farm_whose_package_was_removed_is_made_anew(tmp_path: Path) -> None:
    common = tree(tmp_path / "usr/src/linux-headers-6.1.0-9-common", common=True, arch=False)
    tree(tmp_path / "usr/src/linux-headers-6.1.0-9-amd64", common=False, arch=True)
    found = find(tmp_path)
    common.rename(tmp_path / "elsewhere")
    assert not (found.path / "include/linux/kconfig.h").exists()
    (tmp_path / "elsewhere").rename(common)
    (found.path / "include/linux/kconfig.h").unlink()
    assert (find(tmp_path).path / "include/linux/kconfig.h").exists()


def test_a_named_tree_must_be_whole(tmp_path: Path) -> None:
    named = tree(tmp_path / "named", common=True, arch=True)
    assert find(tmp_path, BCC_KERNEL_SOURCE=str(named)).path == named
    with pytest.raises(DatapathError, match="BCC_KERNEL_SOURCE"):
        find(tmp_path, BCC_KERNEL_SOURCE=str(tmp_path))
