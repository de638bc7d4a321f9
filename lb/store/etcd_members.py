"""The members of an etcd cluster, of which any will do.

A call goes to the member that answered last, and to the next one when that fails. What changes nothing
is tried until the time is up; a commit is tried again only if it was not done for sure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from lb.errors import StoreUnavailable
from lb.store.etcd_client import Connection, Credentials, Header
from lb.store.etcd_errors import CallFailed, Remedy

# While no member answers, only watches wait for the whole timeout: whoever else asks has work to do, and
# is told so soon.
PATIENCE_WHILE_AWAY = 0.5

T = TypeVar("T")


class LeaseEnded(Exception):
    """etcd: "requested lease not found"."""


class Members:
    """A connection to each. Making it connects to nobody: the first call does."""

    def __init__(self, endpoints: Sequence[str], credentials: Credentials, timeout: float) -> None:
        """`endpoints` are host:port; `timeout` is how long to look for a member that answers."""
        self.timeout = timeout
        self.connections = [Connection(each, credentials) for each in endpoints]
        self.closed = False
        self._current = 0
        self._away = False
        self._lock = threading.Lock()

    @property
    def current(self) -> Connection:
        """The member that is asked next."""
        return self.connections[self._current]

    def one_try(self) -> float:
        """How long one member may take to answer, so that the others have their turn."""
        return max(0.2, self.timeout / len(self.connections))

    def leave(self, member: Connection) -> None:
        """Turn to the next member, unless another thread has."""
        with self._lock:
            if self.current is member:
                self._current = (self._current + 1) % len(self.connections)

    def ask(
        self,
        call: Callable[[Connection, float], T],
        *,
        repeat: frozenset[Remedy] = frozenset({Remedy.ELSEWHERE, Remedy.DOUBTFUL}),
        patient: bool = False,
    ) -> T:
        """The answer of the first member that gives one. Raises LbError, or LeaseEnded."""
        budget = self.timeout if patient or not self._away else min(self.timeout, PATIENCE_WHILE_AWAY)
        deadline = time.monotonic() + budget

        def attempt() -> T:
            if self.closed:
                raise StoreUnavailable("the connection to etcd is closed", hint="open the store again")
            member = self.current
            left = max(0.001, min(self.one_try(), deadline - time.monotonic()))
            try:
                answer = call(member, left)
            except CallFailed as error:
                if error.remedy in (Remedy.ELSEWHERE, Remedy.DOUBTFUL):
                    self.leave(member)
                raise
            self._away = False
            return answer

        retrying = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, CallFailed) and error.remedy in repeat
            ),
            wait=wait_random_exponential(multiplier=0.01, max=0.25),
            stop=stop_after_delay(budget),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except CallFailed as error:
            if self.closed:
                raise StoreUnavailable("the connection to etcd was closed") from error
            if "lease not found" in error.text:
                raise LeaseEnded from error
            self._away = error.remedy in (Remedy.ELSEWHERE, Remedy.DOUBTFUL)
            if error.remedy is Remedy.DOUBTFUL and error.remedy not in repeat:
                raise StoreUnavailable(
                    f"etcd did not say whether the change was stored: {error}",
                    hint="look (lbctl status, lbctl history) before trying again",
                ) from error
            raise error.as_error() from error

    def first_pulse(self, key: bytes) -> tuple[Connection, Header]:
        """A member that answers now, and its answer; takes the whole timeout to find one."""

        def pulse(member: Connection, timeout: float) -> tuple[Connection, Header]:
            return member, member.pulse(key, timeout)

        return self.ask(pulse, patient=True)

    def close(self) -> None:
        """Close all connections, and with them what waits for an answer."""
        self.closed = True
        for connection in self.connections:
            connection.close()
