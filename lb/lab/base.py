"""Network namespaces with real processes in them, made from a plan. Removed whatever happens, by
their own exit or by the next lab of that name."""

from __future__ import annotations

import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Self

from lb.datapath.attach import XDP_MTU
from lb.datapath.bpf import Program, ProgramType
from lb.errors import ConflictError, UserError
from lb.lab import nginx
from lb.lab.ledger import ROOT, Ledger
from lb.lab.sessions import started
from lb.lab.shell import PATIENCE, Completed, LabError, environment, in_namespace, run, wait_until
from lb.lab.topology import Address, Plan

_XDP_PASS = 2  # uapi/linux/bpf.h


class Namespaces(ABC):
    """What a lab and a fleet have in common. Namespaces are named with or without prefix in all
    methods: `lab.run("client", …)`."""

    def __init__(self, plan: Plan, folder: str = "") -> None:
        self.folder = ROOT / (folder or plan.prefix.rstrip("-") or "lab")
        self.plan = plan
        self._ledger = Ledger(self.folder)
        self._children: list[subprocess.Popen[str]] = []
        self._more_namespaces: list[str] = []

    @abstractmethod
    def _settle(self) -> None:
        """What comes after the namespaces and links, and before the servers."""

    def _unsettle(self) -> None:  # noqa: B027 - most have nothing to do
        """What is to be ended before everything else is."""

    # -- up and down --

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise UserError("the lab needs root", hint="run it with sudo")
        self._ledger.claim()
        if self._ledger.kept:
            self._ledger.release()
            raise ConflictError(
                f"the lab in {self.folder} is up already", hint="remove it: sudo make lab-down"
            )
        try:
            self._ledger.undo()  # what a killed owner has left
            self._build()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ledger.kept:
            self._ledger.release()
        else:
            self.down()

    def keep(self) -> None:
        """Leave the lab up after the `with` block, until somebody calls `tear_down`."""
        self._ledger.kept = True
        self._ledger.save()

    @property
    def is_kept(self) -> bool:
        """Was the lab left up on purpose?"""
        return self._ledger.kept

    def down(self) -> None:
        """Remove everything."""
        with _uninterrupted():
            self._unsettle()
            self._ledger.dissolve()
            for child in self._children:
                child.wait()

    def _build(self) -> None:
        plan = self.plan
        for name in plan.namespaces:
            self._ledger.add_namespace(name)
            self.run(name, ["sysctl", "--quiet", "--write", *plan.sysctls(name)])
        ip_batch([], plan.link_commands())
        for name in plan.namespaces:
            ip_batch(["-n", name], plan.commands(name))
            for arguments in plan.offloads(name):
                self.run(name, ["ethtool", "-K", *arguments])
        for name in plan.namespaces:
            for family, line in plan.more_commands(name):
                ip_batch([family, "-n", name], [line])
        for name in plan.nodes:
            self.bpf_mount(name)
            self._receive_xdp(name)
        self._settle()
        for name in plan.backends:
            self.popen(name, nginx.prepare(name, self.folder / name))
        for name in plan.backends:
            for address in plan.back_addresses(name):
                wait_until(
                    f"{name} at {address}",
                    lambda n=name, a=address: self.answer(a) == n,  # type: ignore[misc]
                )

    def add_namespace(self, name: str) -> str:
        """One more, with nothing in it; removed with the lab. Returns its full name."""
        full = self.plan.prefix + name
        self._ledger.add_namespace(full)
        self._more_namespaces.append(full)
        self.run(full, ["ip", "link", "set", "lo", "up"])
        return full

    def bpf_mount(self, namespace: str) -> None:
        """Have a bpf file system in a namespace's folder."""
        self._ledger.add_bpf_mount(self.folder / self.namespace(namespace) / "bpf")

    def _receive_xdp(self, node: str) -> None:
        """Let the switch take what a node sends by XDP. GRO is enough for XDP_REDIRECT, but the
        kernel wakes the other end of a veth after XDP_TX only if that runs a program, too
        (drivers/net/veth.c: veth_xdp_flush)."""
        plan = self.plan
        if plan.mtu > XDP_MTU:
            return  # no native XDP on these links, so nothing to receive
        path = self.folder / node / "bpf" / "pass"
        Program.constant(ProgramType.XDP, "lab_pass", _XDP_PASS).pin(path)
        ports = [link.port for link in plan.links if link.namespace == node]
        ip_batch(["-n", plan.switch], [f"link set dev {port} xdpdrv pinned {path}" for port in ports])

    # -- running things --

    def namespace(self, name: str) -> str:
        """The full name of a namespace: `client` and `lb-client` are the same."""
        full = name if name.startswith(self.plan.prefix) else self.plan.prefix + name
        if full not in (*self.plan.namespaces, *self._more_namespaces):
            raise LabError(f"the lab has no namespace {full}")
        return full

    def run(
        self, namespace: str, argv: Sequence[str], *, check: bool = True, timeout: float = 60
    ) -> Completed:
        """Run a command in a namespace, to its end."""
        return run(in_namespace(self.namespace(namespace), argv), check=check, timeout=timeout)

    def popen(
        self,
        namespace: str,
        argv: Sequence[str],
        *,
        output: IO[str] | int = subprocess.DEVNULL,
        env: Mapping[str, str] = {},
    ) -> subprocess.Popen[str]:
        """Start a command in a namespace; it is ended with the lab at the latest."""
        child = subprocess.Popen(
            in_namespace(self.namespace(namespace), argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(env),
            start_new_session=True,
            text=True,
        )
        self._ledger.add_process(started(child.pid, " ".join(argv)))
        self._children.append(child)
        return child

    def curl_name(self, address: Address, port: int = 80) -> str:
        """Which backend answers the client at this address."""
        return self._curl(address, port, check=True).stdout.strip()

    def answer(self, address: Address, port: int = 80) -> str:
        """As `curl_name`, but "" where nobody answers."""
        return self._curl(address, port, check=False).stdout.strip()

    def _curl(self, address: Address, port: int, *, check: bool) -> Completed:
        host = f"[{address}]" if address.version == 6 else str(address)
        options = ["--silent", "--show-error", "--noproxy", "*", "--max-time", f"{5 * PATIENCE:g}"]
        return self.run("client", ["curl", *options, f"http://{host}:{port}/"], check=check)


def remove(lab: Namespaces) -> bool:
    """Remove a lab that was kept, or left by a killed process. Returns whether there was one."""
    if os.geteuid() != 0:
        raise UserError("removing the lab needs root", hint="run it with sudo")
    there_was = lab.folder.exists()
    lab._ledger.claim()
    lab.down()
    return there_was


def ip_batch(options: list[str], lines: list[str]) -> None:
    """Run lines of ip(8)."""
    run(["ip", *options, "-batch", "-"], text="\n".join(lines) + "\n")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not stop the cleaning up after the first."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        before = [signal.signal(number, signal.SIG_IGN) for number in signals]
    except ValueError:  # not in the main thread, which gets the signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
