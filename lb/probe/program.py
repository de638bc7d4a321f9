"""exec: run a program of this node. No shell; bounded in time and output, with all that it starts."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from lb.model.health import ExecCheck
from lb.probe.base import Attempt, Failed, Target, excerpt

MAX_OUTPUT = 4096


async def ask(target: Target, attempt: Attempt) -> str:
    """Raises Failed, OSError."""
    check = target.health.check
    assert isinstance(check, ExecCheck)
    program = _allowed(check.argv[0], target.exec_dir)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LB_SERVICE": target.service,
        "LB_BACKEND": target.backend,
        "LB_ADDRESS": target.host,
        "LB_PORT": str(target.port or ""),
    }
    attempt.missing = "no end"
    try:
        child = await asyncio.create_subprocess_exec(
            program,
            *check.argv[1:],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise Failed(f"{program} can't be run: {error.strerror}") from None
    try:
        output = await _output(child)
        status = await child.wait()
    finally:
        # Also what it left running: it has a process group of its own.
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        # Without a reader left, asyncio would keep the pipe open for a grandchild.
        child._transport.close()  # type: ignore[attr-defined]
    if status < 0:
        raise Failed(f"the program was ended by signal {signal.Signals(-status).name}")
    if status:
        raise Failed(f"status {status}" + (f": {excerpt(output)}" if output else ""))
    return "status 0" + (f": {excerpt(output)}" if output else "")


def _allowed(path: str, folder: Path) -> str:
    """Who may write to the store must not be able to run anything as root: programs are of one
    folder, which only this node's administrators fill."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise Failed(f"{path} is not in {folder}, this node's folder of check programs (exec_dir)")
    return str(real)


async def _output(child: asyncio.subprocess.Process) -> bytes:
    """The beginning of what it says; the rest is read and forgotten, so that it doesn't wait."""
    assert child.stdout
    kept = b""
    while more := await child.stdout.read(MAX_OUTPUT):
        kept = (kept + more)[:MAX_OUTPUT]
    return kept
