"""Private etcd servers, in a folder: on loopback for tests, each in its namespace for the fleet."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from lb.lab.shell import Completed, environment, in_namespace, run, wait_until

# Elections within half a second, so that a lost leader costs a test little; and so that leases of 1 s
# can be had (etcd: no less than 1.5 election timeouts).
_PACE = ("--heartbeat-interval=50", "--election-timeout=500")

PORTS = (2379, 2380)  # for clients and for the other members, where nobody else is


def free_ports(count: int) -> list[int]:
    """Different TCP ports of loopback that nobody has just now."""
    with ExitStack() as held:
        servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(server.getsockname()[1]) for server in servers]


@dataclass
class Member:
    """One server."""

    name: str
    folder: Path
    client_port: int
    peer_port: int
    address: str = "127.0.0.1"
    namespace: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"{self.address}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """For the other members."""
        return f"http://{self.address}:{self.peer_port}"

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.folder / self.name

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / f"{self.name}.log"

    def signal(self, number: signal.Signals) -> None:
        """Send this process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once, frozen or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


Launch = Callable[[Member, list[str], IO[str]], "subprocess.Popen[str]"]


def _in(namespace: str, command: list[str]) -> list[str]:
    return in_namespace(namespace, command) if namespace else command


def _launch(member: Member, command: list[str], log: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _in(member.namespace, command),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment(),
        text=True,
    )


@dataclass
class Etcd:
    """A cluster of servers. `with Etcd(folder) as etcd:` starts them, and ends them whatever happens."""

    folder: Path
    size: int = 1
    options: Sequence[str] = ()
    scheme: str = "http"
    client_options: Sequence[str] = ()  # of etcdctl
    namespace: str = ""  # network namespace that all of it runs in
    places: Sequence[tuple[str, str]] = ()  # or of each member, and its address there
    launch: Launch | None = None  # for whoever has to know of the processes
    members: list[Member] = field(init=False)

    def __post_init__(self) -> None:
        names = [f"etcd{n}" for n in range(1, (len(self.places) or self.size) + 1)]
        if self.places:
            self.members = [
                Member(name, self.folder, *PORTS, address, namespace)
                for name, (namespace, address) in zip(names, self.places, strict=True)
            ]
        else:
            ports = free_ports(2 * self.size)
            self.members = [
                Member(name, self.folder, client, peer, namespace=self.namespace)
                for name, client, peer in zip(names, ports[::2], ports[1::2], strict=True)
            ]

    @property
    def endpoints(self) -> list[str]:
        """Of all members, running or not."""
        return [member.endpoint for member in self.members]

    @property
    def url(self) -> str:
        """As `store` in lb.toml takes it."""
        return f"etcd://{','.join(self.endpoints)}"

    def start(self, members: Sequence[Member] | None = None) -> None:
        """Start these members (all), and wait until they answer."""
        started = self.members if members is None else members
        for member in started:
            self._launch(member)
        for member in started:
            wait_until(f"{member.name}, see {member.log}", partial(self._answers, member), timeout=30)

    def stop(self) -> None:
        """End all members."""
        for member in self.members:
            member.kill()

    def wipe(self) -> None:
        """End all members, and lose all that they had."""
        self.stop()
        for member in self.members:
            shutil.rmtree(member.data)

    def ctl(self, *arguments: str, check: bool = True, text: str | None = None) -> Completed:
        """Run etcdctl against the members that run."""
        running = [member for member in self.members if member.process is not None]
        return self._ctl(running, *arguments, check=check, text=text)

    def _ctl(
        self, members: Sequence[Member], *arguments: str, check: bool = True, text: str | None = None
    ) -> Completed:
        where = ",".join(f"{self.scheme}://{member.endpoint}" for member in members)
        command = ["etcdctl", f"--endpoints={where}", *self.client_options, *arguments]
        here = _in(self.members[0].namespace, command)
        return run(here, env=environment({"ETCDCTL_API": "3"}), check=check, text=text)

    def leader(self) -> Member:
        """The member that leads, as etcd says itself, as soon as there is one: a busy machine has them
        elect anew."""
        found: list[Member] = []

        def is_found() -> bool:
            for line in self.ctl("endpoint", "status", check=False).stdout.splitlines():
                endpoint, _, _, _, leads, *_ = (column.strip() for column in line.split(","))
                if leads == "true":
                    found.extend(m for m in self.members if endpoint.endswith(m.endpoint))
            return bool(found)

        wait_until("a leader of etcd", is_found, timeout=30)
        return found[0]

    def save(self, snapshot: Path) -> None:
        """Have the first member write down all that it has."""
        self._ctl(self.members[:1], "snapshot", "save", str(snapshot))

    def restore(self, snapshot: Path) -> None:
        """Begin all members anew from a snapshot (`etcdctl snapshot save`)."""
        self.wipe()
        for member in self.members:
            run(
                [
                    *("etcdctl", "snapshot", "restore", str(snapshot)),
                    f"--data-dir={member.data}",
                    f"--name={member.name}",
                    f"--initial-cluster={self._peers()}",
                    f"--initial-advertise-peer-urls={member.peer_url}",
                ],
                env=environment({"ETCDCTL_API": "3"}),
            )
        self.start()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _peers(self) -> str:
        return ",".join(f"{m.name}={m.peer_url}" for m in self.members)

    def _launch(self, member: Member) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        client = f"{self.scheme}://{member.endpoint}"
        with member.log.open("a") as log:
            command = [
                "etcd",
                f"--name={member.name}",
                f"--data-dir={member.data}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={member.peer_url}",
                f"--initial-advertise-peer-urls={member.peer_url}",
                f"--initial-cluster={self._peers()}",
                *_PACE,
                *self.options,
            ]
            member.process = (self.launch or _launch)(member, command, log)

    def _answers(self, member: Member) -> bool:
        where = f"--endpoints={self.scheme}://{member.endpoint}"
        # Not `endpoint health`: a user without the right to read the key that it asks for is unwell.
        asked = ["etcdctl", where, *self.client_options, "endpoint", "status"]
        done = run(_in(member.namespace, asked), env=environment({"ETCDCTL_API": "3"}), check=False)
        return done.returncode == 0 and "no leader" not in done.stdout
