"""Running commands, and waiting for what they bring about."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from lb.errors import LbError, NotFoundError

Completed = subprocess.CompletedProcess[str]

# How many times longer than usual everything may take: for machines that are translated, not run (the
# virtual machines of tests/kernels without KVM).
PATIENCE = float(os.environ.get("LB_PATIENCE", "1"))

# Debian leaves the sbin folders out of a user's PATH, and `su` keeps it so.
SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


class LabError(LbError):
    """The lab, or something run in it, did not do what it should."""


def environment(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment of the lab's programs: ours, without what would lead them elsewhere."""
    elsewhere = ("LB_STORE", "LB_PIN_DIR", "LB_NODE", "LB_CONFIG")
    own = {key: value for key, value in os.environ.items() if key not in elsewhere}
    return {**own, "PATH": SEARCH_PATH, **extra}


def in_namespace(namespace: str, argv: Sequence[str]) -> list[str]:
    """The command, run in a network namespace. nsenter, because `ip netns exec` mounts a /sys of
    its own, which hides the bpf file system."""
    return ["nsenter", f"--net=/run/netns/{namespace}", "--", *argv]


def run(
    argv: Sequence[str],
    *,
    text: str | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 60,
) -> Completed:
    """Run to the end, with `text` as its input. Raises LabError with all that it said, or after
    `timeout` seconds (times PATIENCE)."""
    try:
        done = subprocess.run(
            argv,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            env=env or environment(),
            capture_output=True,
            text=True,
            timeout=timeout * PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise NotFoundError(f"{argv[0]} is not installed", hint="run: sudo make deps") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(argv)}: no end after {timeout * PATIENCE:g} s") from None
    if check and done.returncode:
        said = "\n".join(part.strip() for part in (done.stdout, done.stderr) if part.strip())
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}\n{said}")
    return done


def wait_until(what: str, condition: Callable[[], bool], *, timeout: float = 10) -> None:
    """Ask until the condition holds. Raises LabError after `timeout` seconds (times PATIENCE)."""
    retrying = Retrying(
        stop=stop_after_delay(timeout * PATIENCE),
        wait=wait_fixed(0.02 * PATIENCE),
        retry=retry_if_result(lambda holds: not holds),
    )
    try:
        retrying(condition)
    except RetryError:
        raise LabError(f"waited {timeout * PATIENCE:g} s in vain for {what}") from None


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
