"""The store of a fleet: an etcd cluster."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from lb.errors import ConflictError, NotFoundError, RevisionCompacted
from lb.store.base import Compare, Delete, KeyValue, Put, Snapshot, Store, Unwritten, conflict
from lb.store.etcd_client import Connection, Credentials, Header
from lb.store.etcd_errors import Remedy
from lb.store.etcd_members import LeaseEnded, Members
from lb.store.etcd_package import rpc
from lb.store.etcd_requests import key_value, prefix_range, transaction
from lb.store.etcd_watch import EtcdWatch

FRESH_SECONDS = 1.0  # a member that answered so lately needs no pulse before a commit


class EtcdStore(Store):
    """A client of one cluster. Opening it connects to nobody: the first call does. Open it after
    forking."""

    def __init__(
        self, endpoints: Sequence[str], credentials: Credentials, *, timeout: float = 5.0
    ) -> None:
        """`endpoints` are host:port; `timeout` is how long to look for a member that answers."""
        self.members = Members(endpoints, credentials, timeout)
        self.cluster = ""  # as the last answer named it
        self._lock = threading.Lock()
        self._watches: WeakSet[EtcdWatch] = WeakSet()

    def read(self, prefix: str, *, revision: int | None = None) -> Snapshot:
        """See Store.read. It is one answer of one member, so it is whole or not at all."""
        if revision is not None and revision < 1:  # to etcd, 0 is the present
            raise RevisionCompacted(
                f"revision {revision} is not in etcd", hint="read the present state anew"
            )
        first, last = prefix_range(prefix)
        request = rpc.RangeRequest(key=first, range_end=last, revision=revision or 0)
        answer = self.members.ask(lambda member, timeout: member.range(request, timeout))
        header = self._note(answer.header)
        return Snapshot(revision or header.revision, tuple(map(key_value, answer.kvs)), header.cluster)

    def get(self, key: str) -> KeyValue | None:
        """See Store.get."""
        request = rpc.RangeRequest(key=key.encode())
        answer = self.members.ask(lambda member, timeout: member.range(request, timeout))
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
            answer = self.members.ask(commit, repeat=frozenset({Remedy.ELSEWHERE}))
        except LeaseEnded as error:
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
        watch = EtcdWatch(self.members, prefix, after, self.cluster)
        with self._lock:
            self._watches.add(watch)
        return watch

    def grant(self, ttl: float) -> int:
        """See Store.grant. etcd counts in seconds, and takes no less than 1.5 of its election
        timeouts."""
        if not ttl > 0:
            raise ValueError(f"a lease needs a time to live above 0, not {ttl}")
        request = rpc.LeaseGrantRequest(TTL=math.ceil(ttl))
        return int(self.members.ask(lambda member, timeout: member.grant(request, timeout)).ID)

    def renew(self, lease: int) -> bool:
        """See Store.renew."""
        request = rpc.LeaseKeepAliveRequest(ID=lease)
        return bool(
            self.members.ask(lambda member, timeout: member.keep_alive(request, timeout)).TTL > 0
        )

    def revoke(self, lease: int) -> None:
        """See Store.revoke; no error for a lease that has ended already."""
        request = rpc.LeaseRevokeRequest(ID=lease)
        with suppress(LeaseEnded):
            self.members.ask(lambda member, timeout: member.revoke(request, timeout))

    def close(self) -> None:
        """See Store.close."""
        self.members.close()
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.close()

    def _note(self, message: object) -> Header:
        header = Header.of(message)
        self.cluster = header.cluster
        return header


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
