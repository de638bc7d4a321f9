"""exec: run a program of this node. No shell; bounded in time and output, with all that it starts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lb.model.health import ExecCheck
from lb.probe.base import Attempt, Failed, Target, excerpt

MAX_OUTPUT = 4096
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def ask(target: Target, attempt: Attempt) -> str:
    """Raises Failed, OSError."""
    check = target.health.check
    assert isinstance(check, ExecCheck)
    program = allowed(check.argv[0], target.exec_dir)
    environment = {
        "PATH": PATH,
        "LB_SERVICE": target.service,
        "LB_BACKEND": target.backend,
        "LB_ADDRESS": target.host,
        "LB_PORT": str(target.port or ""),
    }
    attempt.missing = "no end"
    status, output, _ = await run((program, *check.argv[1:]), environment)
    if status < 0:
        raise Failed(describe_status(status))
    if status:
        raise Failed(describe_status(status) + (f": {excerpt(output)}" if output else ""))
    return "status 0" + (f": {excerpt(output)}" if output else "")


def allowed(path: str, folder: Path) -> str:
    """The program's real path. Raises Failed if it isn't in the folder.

    Who may write to the store must not be able to run anything as root: programs are of one folder,
    which only this node's administrators fill."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise Failed(f"{path} is not in {folder}, this node's folder of check programs (exec_dir)")
    return str(real)


def describe_status(status: int) -> str:
    """How a program ended that did not end well."""
    if status < 0:
        return f"the program was ended by signal {signal.Signals(-status).name}"
    return f"status {status}"


async def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    given: bytes | None = None,
    most: int = MAX_OUTPUT,
) -> tuple[int, bytes, bytes]:
    """Status, and the first `most` bytes of standard output and of standard error. Without something
    that is `given` on standard input, both outputs are one. Cancelling ends the program and all that it
    left running. Raises Failed if it can't be run."""
    together = given is None
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if together else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if together else asyncio.subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise Failed(f"{argv[0]} can't be run: {error.strerror}") from None
    try:
        if child.stdin is not None:
            # Less than a pipe holds (64 KiB): it is written at once, read or not.
            child.stdin.write(given or b"")
            child.stdin.close()
        output, errors = await asyncio.gather(
            _beginning(child.stdout, most), _beginning(child.stderr, most)
        )
        return await child.wait(), output, errors
    finally:
        # Also what it left running: it has a process group of its own.
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        # Without a reader left, asyncio would keep the pipe open for a grandchild.
        child._transport.close()  # type: ignore[attr-defined]


async def _beginning(stream: asyncio.StreamReader | None, most: int) -> bytes:
    """The beginning of what it says; the rest is read and forgotten, so that it doesn't wait."""
    kept = b""
    while stream is not None and (more := await stream.read(MAX_OUTPUT)):
        kept = (kept + more)[:most]
    return kept
