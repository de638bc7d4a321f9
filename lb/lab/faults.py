"""What can go wrong with a backend's nginx, done on purpose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from lb.lab import nginx
from lb.lab.lab import Lab
from lb.lab.shell import wait_until

_SLOW = Path(__file__).with_name("slow_name.py")

_TLS = """\
server {{
    listen 0.0.0.0:443 ssl;
    ssl_certificate {folder}/server.pem;
    ssl_certificate_key {folder}/server.key;
    location / {{ return 200 "{name}\\n"; }}
}}
"""


class Server:
    """The nginx of one backend of the lab."""

    def __init__(self, lab: Lab, backend: str) -> None:
        self.lab = lab
        self.name = lab.namespace(backend)
        self.folder = lab.folder / self.name
        self._slow: subprocess.Popen[str] | None = None

    def stop(self) -> None:
        """It goes at once: connections are reset, new ones refused."""
        pids = self._pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(f"the end of {self.name}", lambda: not any(_runs(pid) for pid in pids))

    def start(self) -> None:
        """After stop()."""
        self.lab.popen(self.name, nginx.command(self.folder))
        self._await_status(200)

    def mend(self) -> None:
        """Whatever was done to it: it runs, and answers with 200."""
        if not _runs(self._master):
            nginx.prepare(self.name, self.folder)
            self.start()
            return
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)
        self.answer(200)

    def freeze(self) -> None:
        """It says nothing any more; the kernel still takes connections for it."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """After freeze()."""
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)
        self._await_status(200)

    def answer(self, status: int) -> None:
        """From now on with this status."""
        nginx.prepare(self.name, self.folder, status)
        self._reload()
        self._await_status(0 if status in (nginx.CLOSES, nginx.RESETS) else status)

    def slow_down(self, seconds: float) -> None:
        """It takes connections as before, and answers each after so long; until answer()."""
        command = [sys.executable, str(_SLOW), str(nginx.SLOW_PORT), str(seconds)]
        slow = self.lab.popen(self.name, command)
        listens = ["ss", "-Hltn", "sport", "=", f":{nginx.SLOW_PORT}"]
        wait_until("the slow server", lambda: self.lab.run(self.name, listens).stdout != "")
        nginx.prepare(self.name, self.folder, nginx.SLOW)
        self._reload()
        self._slow = slow

    def hurry(self) -> None:
        """After slow_down()."""
        self.answer(200)
        if self._slow:
            self._slow.terminate()
            self._slow.wait()

    def refuse(self) -> None:
        """New connections are refused, from this moment on; the server itself doesn't notice."""
        rules = (
            "add table inet fault; add chain inet fault in { type filter hook input priority 0; };"
            " add rule inet fault in tcp dport 80 tcp flags & (syn | ack) == syn reject with tcp reset"
        )
        self.lab.run(self.name, ["nft", rules])

    def accept(self) -> None:
        """After refuse()."""
        self.lab.run(self.name, ["nft", "delete table inet fault"])

    def serve_tls(self, certificate: bytes, key: bytes) -> None:
        """Also on port 443, with this certificate (PEM)."""
        (self.folder / "server.pem").write_bytes(certificate)
        (self.folder / "server.key").write_bytes(key)
        (self.folder / "more.conf").write_text(_TLS.format(folder=self.folder, name=self.name))
        self._reload()
        wait_until("TLS", lambda: self._curl("https://127.0.0.1/") == "200")

    def _reload(self) -> None:
        """Until none of the workers with the old configuration takes connections any more."""
        master, *before = self._pids()
        os.kill(master, signal.SIGHUP)
        wait_until("new workers", lambda: not any(_runs(pid) for pid in before))

    @property
    def _master(self) -> int:
        return int((self.folder / "nginx.pid").read_text())

    def _pids(self) -> list[int]:
        """The master, and its workers."""
        master = self._master
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return [master, *map(int, children)]

    def _await_status(self, status: int) -> None:
        wait_until(f"{self.name}", lambda: self._curl("http://127.0.0.1/") == f"{status:03}")

    def _curl(self, url: str) -> str:
        argv = ["curl", "-sk", "-o", "/dev/null", "-m", "1", "-w", "%{http_code}", url]
        return self.lab.run(self.name, argv, check=False).stdout


def _runs(pid: int) -> bool:
    """Is it there, and not just waiting for its parent to hear of its end?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
