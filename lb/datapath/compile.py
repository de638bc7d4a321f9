"""Compile, verify, load and pin one program, with BCC, in a process of its own.

BCC brings LLVM (145 MB of memory); lbd needs it for seconds in its life, so it runs this module as a
child: `python -m lb.datapath.compile`, a request as JSON on standard input, the answer as JSON on
standard output. What it leaves is a pinned program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lb.datapath import headers, sources
from lb.errors import DatapathError


def load(
    hook: str, pin_dir: Path, pin_to: Path, name: str = "lb", defines: Sequence[str] = ()
) -> dict[str, int]:
    """Compile a program for `hook` against the maps pinned in `pin_dir` and pin it at `pin_to`. `name`
    is that of its file and of its function; `defines` are NAME=VALUE for the compiler.

    Returns {"instructions": N}. Raises DatapathError with the compiler's or verifier's words.
    """
    request = {
        "hook": hook,
        "name": name,
        "maps": str(pin_dir / "maps"),
        "pin_to": str(pin_to),
        "headers": str(headers.find().path),
        "defines": list(defines),
    }
    child = subprocess.run(
        [sys.executable, "-m", "lb.datapath.compile"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        lines = [line for line in child.stderr.splitlines() if line.strip()]
        if os.environ.get("LB_DEBUG"):
            sys.stderr.write(child.stderr)
        raise DatapathError(
            f"the {hook} program {name!r} could not be loaded: {_verdict(lines)}",
            hint="run lbctl doctor; LB_DEBUG=1 shows the whole log",
        )
    answer: dict[str, int] = json.loads(child.stdout)
    return answer


def _verdict(lines: list[str]) -> str:
    """The line of a compiler's or verifier's log that says what is wrong."""
    for line in lines:
        if "error:" in line:
            return line.strip()
    processed = [i for i, line in enumerate(lines) if line.startswith("processed ")]
    if processed and processed[0]:
        return lines[processed[0] - 1].strip()
    return lines[-1].strip() if lines else "no message"


def _main() -> None:
    request = json.load(sys.stdin)
    os.environ["BCC_KERNEL_SOURCE"] = request["headers"]
    # BCC and LLVM write to file descriptor 1; the answer must stand there alone.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    from bcc import BPF  # after the environment is set

    from lb.datapath.bpf import Map, Program

    top = sources.directory()
    source = top / sources.folder(request["hook"])
    pinned = {path.name: Map.open(path) for path in Path(request["maps"]).iterdir()}
    flags = [
        f"-I{top / 'xdp/include'}",
        f"-I{source}",
        "-Werror",
        # Headers of 6.12 use an attribute that clang 14 does not know, and say twice in which address
        # space a variable of each CPU is.
        "-Wno-ignored-attributes",
        "-Wno-duplicate-decl-specifier",
        *(f"-DLB_FD_{name.upper()}={each.fd}" for name, each in pinned.items()),
        *(f"-D{define}" for define in request["defines"]),
    ]
    name = request["name"]
    module = BPF(text=(source / f"{name}.c").read_text(), cflags=flags)
    kind = BPF.SCHED_CLS if source.name == "tc" else BPF.XDP
    function = module.load_func(name, kind)
    program = Program(os.dup(function.fd))
    program.pin(Path(request["pin_to"]))
    answer = {"instructions": len(module.dump_func(name)) // 8}
    os.write(answer_fd, json.dumps(answer).encode())


if __name__ == "__main__":
    _main()
