"""The store of a fleet: an etcd cluster, of which any member will do.

A call goes to the member that answered last, and to the next one when that fails. What changes nothing
is tried until the time is up; a commit is tried again only if it was not done for sure.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from lb.errors import ConflictError, NotFoundError, RevisionCompacted, StoreUnavailable
from lb.store.base import Compare, Delete, KeyValue, Put, Snapshot, Store, Unwritten, conflict
from lb.store.etcd_client import Connection, Credentials, Header
from lb.store.etcd_errors import CallFailed, Remedy
from lb.store.etcd_package import rpc
from lb.store.etcd_requests import key_value, prefix_range, transaction
from lb.store.etcd_watch import EtcdWatch

# While no member answers, only watches wait for the whole timeout: whoever else asks has work to do, and
# is told so soon.
PATIENCE_WHILE_AWAY = 0.5
FRESH_SECONDS = 1.0  # a member that answered so lately needs no pulse before a commit

T = TypeVar("T")


class EtcdStore(Store):
    """A client of one cluster. Opening it connects to nobody: the first call does. Open it after
    forking."""

    def __init__(
        self, endpoints: Sequence[str], credentials: Credentials, *, timeout: float = 5.0
    ) -> None:
        """`endpoints` are host:port; `timeout` is how long to look for a member that answers."""
        self.timeout = timeout
        self.cluster = ""  # as the last answer named it
        self._connections = [Connection(each, credentials) for each in endpoints]
        self._current = 0
        self._away = False
        self._lock = threading.Lock()
        self._watches: set[EtcdWatch] = set()
        self._closed = False

    def read(self, prefix: str, *, revision: int | None = None) -> Snapshot:
        """See Store.read. It is one answer of one member, so it is whole or not at all."""
        if revision is not None and revision < 1:  # to etcd, 0 is the present
            raise RevisionCompacted(
                f"revision {revision} is not in etcd", hint="read the present state anew"
            )
        first, last = prefix_range(prefix)
        request = rpc.RangeRequest(key=first, range_end=last, revision=revision or 0)
        answer = self._ask(lambda member, timeout: member.range(request, timeout))
        header = self._note(answer.header)
        return Snapshot(revision or header.revision, tuple(map(key_value, answer.kvs)), header.cluster)

    def get(self, key: str) -> KeyValue | None:
        """See Store.get."""
        request = rpc.RangeRequest(key=key.encode())
        answer = self._ask(lambda member, timeout: member.range(request, timeout))
        self._note(answer.header)
        return key_value(answer.kvs[0]) if answer.kvs else None

    def commit(
        self, operations: Sequence[Put | Delete], compares: Sequence[Compare | Unwritten] = ()
    ) -> int:
        """See Store.commit. Raises NotFoundError for a lease that has ended, ValueError for a key that
        is empty or comes twice, CapacityError for more than etcd takes at once."""
        names = [operation.key for operation in operations]
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"a commit takes each key once, and none empty: {names}")
        request = transaction(operations, compares)
        touched = request.compare[0].key if compares else names[0].encode() if names else b"\0"

        def commit(member: Connection, timeout: float) -> Any:
            # A frozen member would leave us with the question whether it was done: find that out first.
            if time.monotonic() - member.heard > FRESH_SECONDS:
                member.probe(touched, timeout)
            return member.txn(request, timeout)

        try:
            answer = self._ask(commit, repeat=frozenset({Remedy.ELSEWHERE}))
        except _LeaseEnded as error:
            leases = sorted({o.lease for o in operations if isinstance(o, Put) and o.lease})
            raise NotFoundError(
                f"lease {', '.join(map(str, leases))} has ended",
                hint="grant a new one and write again",
            ) from error
        header = self._note(answer.header)
        if not answer.succeeded:
            raise _conflict(compares, answer.responses)
        return header.revision

    def watch(self, prefix: str, *, after: int) -> EtcdWatch:
        """See Store.watch."""
        watch = EtcdWatch(self, prefix, after, self.cluster)
        with self._lock:
            self._watches.add(watch)
        return watch

    def grant(self, ttl: float) -> int:
        """See Store.grant. etcd counts in seconds, and takes no less than 1.5 of its election
        timeouts."""
        if not ttl > 0:
            raise ValueError(f"a lease needs a time to live above 0, not {ttl}")
        request = rpc.LeaseGrantRequest(TTL=math.ceil(ttl))
        return int(self._ask(lambda member, timeout: member.grant(request, timeout)).ID)

    def renew(self, lease: int) -> bool:
        """See Store.renew."""
        request = rpc.LeaseKeepAliveRequest(ID=lease)
        return bool(self._ask(lambda member, timeout: member.keep_alive(request, timeout)).TTL > 0)

    def revoke(self, lease: int) -> None:
        """See Store.revoke; no error for a lease that has ended already."""
        request = rpc.LeaseRevokeRequest(ID=lease)
        with suppress(_LeaseEnded):
            self._ask(lambda member, timeout: member.revoke(request, timeout))

    def close(self) -> None:
        """See Store.close."""
        with self._lock:
            self._closed = True
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        for connection in self._connections:
            connection.close()

    # -- for watches -----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def forget(self, watch: EtcdWatch) -> None:
        """A watch that was closed."""
        with self._lock:
            self._watches.discard(watch)

    def first_pulse(self, key: bytes) -> tuple[Connection, Header]:
        """A member that answers now, and its answer; takes the whole timeout to find one."""

        def pulse(member: Connection, timeout: float) -> tuple[Connection, Header]:
            return member, member.pulse(key, timeout)

        return self._ask(pulse, patient=True)

    def one_try(self) -> float:
        """How long one member may take to answer, so that the others have their turn."""
        return max(0.2, self.timeout / len(self._connections))

    def leave(self, member: Connection) -> None:
        """Turn to the next member, unless another thread has."""
        with self._lock:
            if self._connections[self._current] is member:
                self._current = (self._current + 1) % len(self._connections)

    # --------------------------------------------------------------------------------------------

    def _ask(
        self,
        call: Callable[[Connection, float], T],
        *,
        repeat: frozenset[Remedy] = frozenset({Remedy.ELSEWHERE, Remedy.DOUBTFUL}),
        patient: bool = False,
    ) -> T:
        """The answer of the first member that gives one. Raises LbError."""
        budget = self.timeout if patient or not self._away else min(self.timeout, PATIENCE_WHILE_AWAY)
        deadline = time.monotonic() + budget

        def attempt() -> T:
            if self._closed:
                raise StoreUnavailable("the connection to etcd is closed", hint="open the store again")
            member = self._connections[self._current]
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
            if self._closed:
                raise StoreUnavailable("the connection to etcd was closed") from error
            if "lease not found" in error.text:
                raise _LeaseEnded from error
            self._away = error.remedy in (Remedy.ELSEWHERE, Remedy.DOUBTFUL)
            if error.remedy is Remedy.DOUBTFUL and error.remedy not in repeat:
                raise StoreUnavailable(
                    f"etcd did not say whether the change was stored: {error}",
                    hint="look (lbctl status, lbctl history) before trying again",
                ) from error
            raise error.as_error() from error

    def _note(self, message: object) -> Header:
        header = Header.of(message)
        self.cluster = header.cluster
        return header


class _LeaseEnded(Exception):
    """etcd: "requested lease not found"."""


def _conflict(compares: Sequence[Compare | Unwritten], responses: Sequence[Any]) -> ConflictError:
    """About the first compare that does not hold, by the keys' present revisions."""
    found = [next((kv.mod_revision for kv in response.response_range.kvs), 0) for response in responses]
    for compare, revision in zip(compares, found, strict=True):
        if isinstance(compare, Unwritten):
            holds = revision <= compare.after
        else:
            holds = revision == compare.mod_revision
        if not holds:
            return conflict(compare, revision)
    raise AssertionError("etcd refused a transaction of which all compares hold")
