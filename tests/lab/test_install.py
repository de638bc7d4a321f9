"""The bootstrap: nothing is downloaded where nothing is missing, and errors are one line."""

import os
import subprocess
from pathlib import Path

import pytest

import lb.lab

INSTALL = Path(lb.lab.__file__).with_name("install.sh")


@pytest.fixture
def shims(tmp_path: Path) -> Path:
    """A folder in front of PATH, with an apt-get that only writes down how it was called."""
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')
    (tmp_path / "apt-cache").write_text("#!/bin/sh\nexit 1\n")
    for shim in tmp_path.iterdir():
        shim.chmod(0o755)
    return tmp_path


def install(shims: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}"}
    return subprocess.run([INSTALL], env=env, capture_output=True, text=True, check=False)


def hide_package(shims: Path, package: str) -> None:
    """Make dpkg-query deny one package."""
    shim = shims / "dpkg-query"
    shim.write_text(f'#!/bin/sh\n[ "$4" != {package} ] && exec /usr/bin/dpkg-query "$@"\n')
    shim.chmod(0o755)


def test_nothing_to_do(shims: Path) -> None:
    done = install(shims)
    assert (done.returncode, done.stdout) == (0, "deps: everything is installed\n")
    assert not (shims / "calls").exists()


def test_only_what_is_missing_is_installed(shims: Path) -> None:
    hide_package(shims, "python3-venv")
    assert install(shims).returncode == 0
    assert (shims / "calls").read_text().splitlines() == [
        "update -qq",
        "install -y -qq --no-install-recommends python3-venv",
    ]


def test_no_network(shims: Path) -> None:
    hide_package(shims, "python3-venv")
    (shims / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    done = install(shims)
    assert done.returncode == 1
    assert done.stderr.startswith("deps: error: apt-get update failed: ")
