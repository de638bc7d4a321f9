"""A node of a lab: its settings, its lbd, and lbctl as it runs there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lb.lab.base import Namespaces
from lb.lab.shell import PATIENCE, Completed, LabError, environment, in_namespace, run, tail, wait_until

# BCC compiles two programs with clang: 5 to 10 s on a busy machine with two slow cores; in a fleet
# several nodes do it at once.
LBD_START_SECONDS = 90.0
WAIT_SECONDS = 10.0  # that lbctl waits for the nodes, if nobody says otherwise


class Node:
    """One namespace in which lbd runs."""

    def __init__(self, place: Namespaces, name: str, interfaces: Sequence[str]) -> None:
        self.name = name
        self.node_folder = place.folder / name
        self.config = self.node_folder / "lb.toml"
        self.store = f"{self.node_folder}/store.db"  # or a URL, as seen from the node
        self.lbd_log = self.node_folder / "lbd.log"
        self.lbd: subprocess.Popen[str] | None = None
        self.lbd_ready_line = ""
        self.more_environment: dict[str, str] = {}  # of lbd and lbctl
        self.more_settings = ""  # at the end of the settings file
        self._place = place
        self._interfaces = tuple(interfaces)

    @property
    def lb_environment(self) -> dict[str, str]:
        """What makes lbd and lbctl those of this node."""
        return {"LB_CONFIG": str(self.config), **self.more_environment}

    def write_config(self, hook: str = "auto", interfaces: Sequence[str] = ()) -> None:
        """Write the settings file of the node; with its own interfaces, if none are named."""
        self.config.write_text(
            f'store = "{self.store}"\n'
            f'last_known = "{self.node_folder}/last-known-good.json"\n'
            f'pin_dir = "{self.node_folder}/bpf/lb"\n'
            f'node = "{self.name}"\n'
            f"interfaces = {json.dumps(interfaces or self._interfaces)}\n"
            f'hook = "{hook}"\n'
            f"[checks]\n"
            f'memory = "{self.node_folder}/health.json"\n'
            f'exec_dir = "{self.node_folder}/checks"\n'
            f"{self.more_settings}"
        )

    def start_lbd(
        self, hook: str = "auto", *arguments: str, interfaces: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start the node's lbd and wait until it serves."""
        lbd, before = self.launch_lbd(hook, *arguments, interfaces=interfaces)
        self.await_lbd(lbd, before)
        return lbd

    def launch_lbd(
        self, hook: str = "auto", *arguments: str, interfaces: Sequence[str] = ()
    ) -> tuple[subprocess.Popen[str], int]:
        """Start the node's lbd; returns it, and where its part of the log begins."""
        self.write_config(hook, interfaces)
        with self.lbd_log.open("a") as log:
            begin = log.tell()
            argv = [*program("lbd"), *arguments]
            lbd = self._place.popen(self.name, argv, output=log, env=self.lb_environment)
        return lbd, begin

    def await_lbd(self, lbd: subprocess.Popen[str], begin: int) -> None:
        """Wait until what `launch_lbd` started serves."""

        def is_ready() -> bool:
            with self.lbd_log.open(errors="replace") as log:
                log.seek(begin)
                ready = [line.strip() for line in log if line.startswith("lbd: ready")]
            self.lbd_ready_line = "".join(ready)
            if not ready and lbd.poll() is not None:
                raise LabError(f"lbd ended, status {lbd.returncode}")
            return bool(ready)

        try:
            wait_until("lbd", is_ready, timeout=LBD_START_SECONDS)
        except LabError as error:
            raise LabError(f"{error.message}\n{tail(self.lbd_log)}") from None
        self.lbd = lbd

    def kill_lbd(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send lbd a signal, wait for its end and return its status; the data path stays."""
        if self.lbd is None:
            raise LabError("lbd was not started")
        self.lbd.send_signal(number)
        status = self.lbd.wait(timeout=30 * PATIENCE)
        self.lbd = None
        return status

    def detach_lbd(self) -> Completed:
        """`lbd --detach`: take everything out of the kernel."""
        argv = in_namespace(self.name, [*program("lbd"), "--detach"])
        return run(argv, env=environment(self.lb_environment))

    def lbctl(self, *arguments: str, check: bool = True, text: str | None = None) -> Completed:
        """Run lbctl on the node's store and maps. Raises LabError if it fails."""
        # A rollout's --wait has no end of its own.
        waits = "--wait" in arguments and arguments[0] != "rollout"
        if waits and "--timeout" not in arguments:
            arguments = (*arguments, "--timeout", f"{WAIT_SECONDS * PATIENCE:g}")
        argv = in_namespace(self.name, [*program("lbctl"), *arguments])
        try:
            return run(argv, env=environment(self.lb_environment), check=check, text=text)
        except LabError as error:
            if not waits:
                raise
            raise LabError(f"{error.message}\nlbd said:\n{tail(self.lbd_log)}") from None


def program(name: str) -> list[str]:
    """lbd or lbctl of the Python that runs us."""
    script = Path(sys.executable).with_name(name)
    if script.exists():
        return [str(script)]
    # Run from a checkout that isn't installed: what the script would do.
    package = {"lbd": "lb.node.main", "lbctl": "lb.cli.main"}[name]
    return [sys.executable, "-c", f"from {package} import main; main()"]
