"""Private etcd servers on loopback, in a folder: for tests and for the lab of a fleet."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from lb.lab.shell import Completed, environment, in_namespace, run, wait_until

# Elections within half a second, so that a lost leader costs a test little; and so that leases of 1 s
# can be had (etcd: no less than 1.5 election timeouts).
_PACE = ("--heartbeat-interval=50", "--election-timeout=500")


def free_port() -> int:
    """A TCP port of loopback that nobody has just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Member:
    """One server."""

    name: str
    folder: Path
    client_port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.client_port}"

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


@dataclass
class Etcd:
    """A cluster of servers. `with Etcd(folder) as etcd:` starts them, and ends them whatever happens."""

    folder: Path
    size: int = 1
    options: Sequence[str] = ()
    scheme: str = "http"
    client_options: Sequence[str] = ()  # of etcdctl
    namespace: str = ""  # network namespace that all of it runs in
    members: list[Member] = field(init=False)

    def __post_init__(self) -> None:
        self.members = [Member(f"etcd{n}", self.folder) for n in range(1, self.size + 1)]

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
        running = [member.endpoint for member in self.members if member.process is not None]
        where = f"--endpoints={','.join(f'{self.scheme}://{each}' for each in running)}"
        command = ["etcdctl", where, *self.client_options, *arguments]
        return run(self._here(command), env=environment({"ETCDCTL_API": "3"}), check=check, text=text)

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
                    f"--initial-advertise-peer-urls=http://127.0.0.1:{member.peer_port}",
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

    def _here(self, command: list[str]) -> list[str]:
        return in_namespace(self.namespace, command) if self.namespace else command

    def _peers(self) -> str:
        return ",".join(f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in self.members)

    def _launch(self, member: Member) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        client, peer = (f"://127.0.0.1:{port}" for port in (member.client_port, member.peer_port))
        with member.log.open("ab") as log:
            command = [
                "etcd",
                f"--name={member.name}",
                f"--data-dir={member.data}",
                f"--listen-client-urls={self.scheme}{client}",
                f"--advertise-client-urls={self.scheme}{client}",
                f"--listen-peer-urls=http{peer}",
                f"--initial-advertise-peer-urls=http{peer}",
                f"--initial-cluster={self._peers()}",
                *_PACE,
                *self.options,
            ]
            member.process = subprocess.Popen(
                self._here(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
            )

    def _answers(self, member: Member) -> bool:
        where = f"--endpoints={self.scheme}://{member.endpoint}"
        # Not `endpoint health`: a user without the right to read the key that it asks for is unwell.
        asked = ["etcdctl", where, *self.client_options, "endpoint", "status"]
        done = run(self._here(asked), env=environment({"ETCDCTL_API": "3"}), check=False)
        return done.returncode == 0 and "no leader" not in done.stdout
