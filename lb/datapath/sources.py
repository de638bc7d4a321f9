"""The C sources of the programs, and their fingerprint."""

from __future__ import annotations

import hashlib
from pathlib import Path

import lb
from lb.errors import DatapathError


def directory() -> Path:
    """The folder that holds xdp/ and tc/: beside the package in a checkout, inside it in a wheel."""
    package = Path(lb.__file__).parent
    # The checkout first: an editable install leaves a copy, which grows old, inside the package.
    for place in (package.parent, package / "bpf"):
        if (place / "xdp/lb.c").is_file():
            return place
    raise DatapathError(
        "the C sources (xdp/, tc/) are not there",
        hint="install lb from its checkout (make venv) or from its wheel",
    )


def folder(hook: str) -> str:
    """xdp for both XDP hooks, tc for tc."""
    return "tc" if hook == "tc" else "xdp"


def fingerprint(hook: str) -> str:
    """Changes with any file that the program is made of."""
    state = hashlib.blake2b(digest_size=8)
    top = directory()
    for part in (top / "xdp/include", top / folder(hook)):
        for file in sorted(part.glob("*.[ch]")):
            state.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return state.hexdigest()
