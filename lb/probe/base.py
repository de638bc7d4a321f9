"""What every kind of check shares: what it is given, how it fails, and how that is said."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from lb.model.health import Health
from lb.model.objects import Address

MAX_ANSWER = 65536  # bytes of an answer that are looked at
DEFAULT_EXEC_DIR = Path("/etc/lb/checks")

# Our own troubles, which say nothing about a backend.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})

_WORDS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection closed while we sent",
    errno.EHOSTUNREACH: "no route to the host, or it doesn't answer ARP",
    errno.ENETUNREACH: "no route to the network",
    errno.EACCES: "forbidden by this node's firewall",
    errno.EPERM: "forbidden by this node's firewall",
    errno.ETIMEDOUT: "connection timed out",
}


@dataclass(frozen=True)
class Target:
    """Whom to ask, and what. `health.check.port` is filled in wherever the kind needs one."""

    service: str
    backend: str
    address: Address
    health: Health
    exec_dir: Path = DEFAULT_EXEC_DIR
    # What a kind of check works out once, by names of its own.
    kept: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    @property
    def host(self) -> str:
        """The address, as sockets take it."""
        return str(self.address)

    @property
    def port(self) -> int:
        """The port that is asked; 0 if the kind has none."""
        return self.health.check.port or 0

    @property
    def authority(self) -> str:
        """The address as URLs write it (RFC 3986, 3.2.2)."""
        return f"[{self.address}]" if self.address.version == 6 else str(self.address)


class Attempt:
    """How far one check has got, so that a timeout can say what is missing; and which way it goes:
    `mark` is that of its sockets, 0 = none."""

    def __init__(self, mark: int = 0) -> None:
        self.missing = "no answer"
        self.mark = mark

    def connecting(self) -> None:
        """The connection is being made."""
        self.missing = "no connection"

    def connected(self, what: str = "connected, but no answer") -> None:
        """It is made: now the other side has to answer."""
        self.missing = what


class Failed(Exception):
    """The backend did not pass; the message says why, for people."""


class Inconclusive(Exception):
    """This node could not ask, or not tell: that says nothing about the backend."""


def describe(error: OSError) -> str:
    """An operating system's error in our words. Raises Inconclusive for those that are our own."""
    number = error.errno or 0
    # asyncio joins what several addresses have said into one error without a number.
    if number in _OURS:
        raise Inconclusive(os.strerror(number)) from error
    return _WORDS.get(number) or (os.strerror(number) if number else str(error))


def new_socket(target: Target, attempt: Attempt, kind: socket.SocketKind) -> socket.socket:
    """A socket for a check, that doesn't block, not connected yet."""
    family = socket.AF_INET if target.address.version == 4 else socket.AF_INET6
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if attempt.mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, attempt.mark)
            # A port that no other check has. The kernel's own choice, with connect(), may be that of a
            # check of another backend; their answers all come from the VIP.
            made.bind(("", 0))
    except OSError:
        made.close()
        raise
    return made


def excerpt(data: bytes | str, length: int = 60) -> str:
    """The beginning of an answer, on one line, in quotes."""
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    line = " ".join(text.split())
    return f'"{line[:length]}…"' if len(line) > length else f'"{line}"'
