"""`with Lab(): …`: the lab itself. Removed whatever happens, by its own exit or by the next lab."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from lb.datapath.attach import XDP_MTU
from lb.datapath.bpf import Program, ProgramType
from lb.errors import ConflictError, UserError
from lb.lab import nginx
from lb.lab.ledger import ROOT, Ledger
from lb.lab.sessions import started
from lb.lab.shell import (
    Completed,
    LabError,
    environment,
    in_namespace,
    run,
    tail,
    wait_until,
)
from lb.lab.topology import VIP4, VIP6, Address, Topology

# BCC compiles two programs with clang: 5 to 10 s on a busy machine with two slow cores.
LBD_START_SECONDS = 90.0
UDP_PORT = 9000
_XDP_PASS = 2  # uapi/linux/bpf.h


class Lab:
    """A client, a node and backends with real nginx. Namespaces are named with or without prefix
    in all methods: `lab.run("client", …)`."""

    def __init__(self, *, prefix: str = "lb-", backends: int = 4, mtu: int = 1500) -> None:
        self.topology = Topology(prefix, backends, mtu)
        self.folder = ROOT / (prefix.rstrip("-") or "lab")
        self.node_folder = self.folder / self.topology.node
        self.config = self.node_folder / "lb.toml"
        self.store = f"{self.node_folder}/store.db"  # or a URL, as seen from the node
        self.lbd_log = self.node_folder / "lbd.log"
        self.lbd: subprocess.Popen[str] | None = None
        self.lbd_ready_line = ""
        self._ledger = Ledger(self.folder)
        self._children: list[subprocess.Popen[str]] = []
        self._udp_ports: set[int] = set()
        self._has_open_tunnels = False
        self._more_namespaces: list[str] = []

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
            self._ledger.dissolve()
            for child in self._children:
                child.wait()

    def _build(self) -> None:
        topology = self.topology
        for name in topology.namespaces:
            self._ledger.add_namespace(name)
            self.run(name, ["sysctl", "--quiet", "--write", *topology.sysctls(name)])
        _ip_batch([], topology.link_commands())
        for name in topology.namespaces:
            _ip_batch(["-n", name], topology.commands(name))
            for arguments in topology.offloads(name):
                self.run(name, ["ethtool", "-K", *arguments])
        for name in topology.backends:
            for family, line in topology.rules(name):
                _ip_batch([family, "-n", name], [line])
        self._ledger.add_bpf_mount(self.node_folder / "bpf")
        self._receive_xdp()
        self.write_config()
        for name in topology.backends:
            self.popen(name, nginx.prepare(name, self.folder / name))
        for name in topology.backends:
            for address in topology.back_addresses(name):
                wait_until(
                    f"{name} at {address}",
                    lambda n=name, a=address: self.answer(a) == n,  # type: ignore[misc]
                )

    def add_namespace(self, name: str) -> str:
        """One more, with nothing in it; removed with the lab. Returns its full name."""
        full = self.topology.prefix + name
        self._ledger.add_namespace(full)
        self._more_namespaces.append(full)
        self.run(full, ["ip", "link", "set", "lo", "up"])
        return full

    def bpf_mount(self, namespace: str) -> None:
        """Have a bpf file system in a namespace's folder."""
        self._ledger.add_bpf_mount(self.folder / self.namespace(namespace) / "bpf")

    def open_tunnels(self) -> None:
        """Let the backends take modes ipip and gue, without tunnel devices."""
        if self._has_open_tunnels:
            return
        self._has_open_tunnels = True
        vips = [option for vip in (VIP4, VIP6) for option in ("--vip", str(vip))]
        for name in self.topology.backends:
            self.bpf_mount(name)
            pins = ["--pin-dir", str(self.folder / name / "bpf" / "lb")]
            command = [*program("lbctl"), "backend-node", "attach", "--interface", "back0"]
            run(in_namespace(name, [*command, *vips, *pins]), env=environment(self.lb_environment))

    def _receive_xdp(self) -> None:
        """Let the switch take what the node sends by XDP. GRO is enough for XDP_REDIRECT, but the
        kernel wakes the other end of a veth after XDP_TX only if that runs a program, too
        (drivers/net/veth.c: veth_xdp_flush)."""
        if self.topology.mtu > XDP_MTU:
            return  # no native XDP on these links, so nothing to receive
        path = self.node_folder / "bpf" / "pass"
        Program.constant(ProgramType.XDP, "lab_pass", _XDP_PASS).pin(path)
        topology = self.topology
        ports = [link.port for link in topology.links if link.namespace == topology.node]
        _ip_batch(
            ["-n", topology.switch], [f"link set dev {port} xdpdrv pinned {path}" for port in ports]
        )

    # -- running things --

    def namespace(self, name: str) -> str:
        """The full name of a namespace: `client` and `lb-client` are the same."""
        full = name if name.startswith(self.topology.prefix) else self.topology.prefix + name
        if full not in (*self.topology.namespaces, *self._more_namespaces):
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
        options = ["--silent", "--show-error", "--noproxy", "*", "--max-time", "5"]
        return self.run("client", ["curl", *options, f"http://{host}:{port}/"], check=check)

    def start_udp_servers(self, port: int = UDP_PORT) -> None:
        """Have a server on each backend that answers datagrams with the backend's name."""
        if port in self._udp_ports:
            return
        self._udp_ports.add(port)
        topology = self.topology
        for name in topology.backends:
            addresses = [VIP4, VIP6, *topology.back_addresses(name)]
            command = [sys.executable, "-m", "lb.lab.udp_name", name, str(port)]
            self.popen(name, [*command, *map(str, addresses)])
        for name in topology.backends:
            wait_until(
                f"the UDP server of {name}",
                lambda n=name: self._udp_sockets(n, port) == 4,  # type: ignore[misc]
            )

    def _udp_sockets(self, name: str, port: int) -> int:
        listing = self.run(name, ["ss", "-Huln", "sport", "=", f":{port}"]).stdout
        return len(listing.splitlines())

    # -- lb --

    @property
    def lb_environment(self) -> dict[str, str]:
        """What makes lbd and lbctl those of this lab."""
        return {"LB_CONFIG": str(self.config)}

    def write_config(self, hook: str = "auto", interfaces: Sequence[str] = ("front0", "back0")) -> None:
        """Write the settings file of the node."""
        self.config.write_text(
            f'store = "{self.store}"\n'
            f'last_known = "{self.node_folder}/last-known-good.json"\n'
            f'pin_dir = "{self.node_folder}/bpf/lb"\n'
            f'node = "{self.topology.node}"\n'
            f"interfaces = {json.dumps(interfaces)}\n"
            f'hook = "{hook}"\n'
            f"[checks]\n"
            f'memory = "{self.node_folder}/health.json"\n'
            f'exec_dir = "{self.node_folder}/checks"\n'
        )

    def start_lbd(
        self, hook: str = "auto", *arguments: str, interfaces: Sequence[str] = ("front0", "back0")
    ) -> subprocess.Popen[str]:
        """Start the node's lbd and wait until it serves."""
        self.write_config(hook, interfaces)
        with self.lbd_log.open("a") as log:
            before = log.tell()
            lbd = self.popen("node1", [*program("lbd"), *arguments], output=log, env=self.lb_environment)

        def is_ready() -> bool:
            with self.lbd_log.open(errors="replace") as log:
                log.seek(before)
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
        return lbd

    def kill_lbd(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send lbd a signal, wait for its end and return its status; the data path stays."""
        if self.lbd is None:
            raise LabError("lbd was not started")
        self.lbd.send_signal(number)
        status = self.lbd.wait(timeout=30)
        self.lbd = None
        return status

    def detach_lbd(self) -> Completed:
        """`lbd --detach`: take everything out of the kernel."""
        argv = in_namespace(self.topology.node, [*program("lbd"), "--detach"])
        return run(argv, env=environment(self.lb_environment))

    def lbctl(self, *arguments: str, check: bool = True, text: str | None = None) -> Completed:
        """Run lbctl on the node's store and maps. Raises LabError if it fails."""
        argv = in_namespace(self.topology.node, [*program("lbctl"), *arguments])
        return run(argv, env=environment(self.lb_environment), check=check, text=text)


def tear_down(prefix: str = "lb-") -> bool:
    """Remove a lab that was kept, or left by a killed process. Returns whether there was one."""
    if os.geteuid() != 0:
        raise UserError("removing the lab needs root", hint="run it with sudo")
    lab = Lab(prefix=prefix)
    there_was = lab.folder.exists()
    lab._ledger.claim()
    lab.down()
    return there_was


def program(name: str) -> list[str]:
    """lbd or lbctl of the Python that runs us."""
    script = Path(sys.executable).with_name(name)
    if script.exists():
        return [str(script)]
    # Run from a checkout that isn't installed: what the script would do.
    package = {"lbd": "lb.node.main", "lbctl": "lb.cli.main"}[name]
    return [sys.executable, "-c", f"from {package} import main; main()"]


def _ip_batch(options: list[str], lines: list[str]) -> None:
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
