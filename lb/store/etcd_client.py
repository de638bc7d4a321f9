"""One etcd server, through the etcd3 package: calls with a deadline, a token that is renewed, streams.

etcd3's own `Watcher` forgets its callbacks when a stream breaks, takes no notice of a server that is
frozen, and runs all callbacks on one thread; and it can't read at a revision. The stubs that etcd3
brings along can do all of it, so they are what is called here
(docs/decisions/009-etcd3-and-protobuf.md).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from lb.store.etcd_errors import CallFailed, Remedy
from lb.store.etcd_package import client, rpc

# gRPC's defaults are made for other uses: replies up to 4 MB (10,000 backends are more), minutes between
# two tries to connect, and a proxy of the environment for what is in our own network.
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # which is how long one try may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A peer that is gone without a word. etcd refuses pings more often than each 5 s
    # (--grpc-keepalive-min-time).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else a closed channel's backoff is inherited by the next
)


@dataclass(frozen=True)
class Credentials:
    """How to prove who we are."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: str | None = None


@dataclass(frozen=True)
class Header:
    """What each answer says about the cluster that gave it."""

    cluster: str
    revision: int

    @classmethod
    def of(cls, message: Any) -> Header:
        """From a ResponseHeader."""
        return cls(f"{message.cluster_id:x}", message.revision)


class Connection:
    """A channel to one endpoint. gRPC connects when there is something to send, and again after that."""

    def __init__(self, endpoint: str, credentials: Credentials) -> None:
        host, _, port = endpoint.rpartition(":")
        self.endpoint = endpoint
        self.heard = float("-inf")  # monotonic clock: when an answer came last
        self._user = credentials
        paths = (credentials.ca, credentials.key, credentials.cert)
        ca, key, cert = (None if path is None else str(path) for path in paths)
        # Without etcd3's own user and password: it would log in here and now, once and for all.
        self._client = client(
            host, port, ca_cert=ca, cert_key=key, cert_cert=cert, grpc_options=_OPTIONS
        )
        self._auth = rpc.AuthStub(self._client.channel)
        self._watch = rpc.WatchStub(self._client.channel)
        self._token: str | None = None
        self._login = threading.Lock()

    def range(self, request: Any, timeout: float) -> Any:
        """Read keys."""
        return self._call(self._client.kvstub.Range, request, timeout)

    def txn(self, request: Any, timeout: float) -> Any:
        """A transaction."""
        return self._call(self._client.kvstub.Txn, request, timeout)

    def grant(self, request: Any, timeout: float) -> Any:
        """A new lease."""
        return self._call(self._client.leasestub.LeaseGrant, request, timeout)

    def revoke(self, request: Any, timeout: float) -> Any:
        """End a lease."""
        return self._call(self._client.leasestub.LeaseRevoke, request, timeout)

    def keep_alive(self, request: Any, timeout: float) -> Any:
        """Renew a lease, once: in the API that is a stream."""

        def call(message: Any, timeout: float, metadata: Any) -> Any:
            stream = self._client.leasestub.LeaseKeepAlive(
                iter([message]), timeout=timeout, metadata=metadata
            )
            try:
                return next(stream)
            finally:
                stream.cancel()

        return self._call(call, request, timeout)

    def pulse(self, key: bytes, timeout: float) -> Header:
        """Ask for one key, which only a member that is in touch with the majority can answer."""
        return Header.of(self.range(rpc.RangeRequest(key=key, count_only=True), timeout).header)

    def probe(self, key: bytes, timeout: float) -> None:
        """Find out whether it answers, before something that must not be asked twice."""
        try:
            self.pulse(key, timeout)
        except CallFailed as error:
            if error.remedy is not Remedy.NONE:  # an answer, even if it is that we may not read this
                raise CallFailed(error.endpoint, error.code, error.text, harmless=True) from error

    def stream(self, request: Any) -> Stream:
        """A watch."""
        # "hasleader": etcd ends the stream when the member loses touch with the majority.
        metadata = (*self._metadata(), ("hasleader", "true"))
        try:
            return Stream(self, lambda r: self._watch.Watch(r, metadata=metadata), request)
        except ValueError as error:
            raise self._closed_channel() from error

    def refused(self, reason: str) -> CallFailed:
        """The error for a watch that the server has cancelled."""
        return CallFailed(self.endpoint, grpc.StatusCode.UNAVAILABLE, reason or "watch cancelled")

    def log_in_anew(self, timeout: float) -> None:
        """Get another token; etcd's simple ones are good for 5 minutes of silence, and for one
        process."""
        stale = self._token
        with self._login:
            if self._token == stale:  # and no other thread was faster
                self._token = None
                self._log_in(timeout)

    def close(self) -> None:
        """Close the channel; calls that are under way fail."""
        self._client.close()

    def _call(self, call: Callable[..., Any], request: Any, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        try:
            self._ensure_token(timeout)
            return self._answer(call, request, deadline)
        except CallFailed as error:
            if error.remedy is not Remedy.LOG_IN or self._user.user is None:
                raise
        self.log_in_anew(deadline - time.monotonic())
        return self._answer(call, request, deadline)

    def _answer(self, call: Callable[..., Any], request: Any, deadline: float) -> Any:
        try:
            answer = call(
                request,
                timeout=max(0.001, deadline - time.monotonic()),
                metadata=self._metadata(),
            )
        except grpc.RpcError as error:
            raise CallFailed.of(self.endpoint, error) from error
        except ValueError as error:
            raise self._closed_channel() from error
        self.heard = time.monotonic()
        return answer

    def _closed_channel(self) -> CallFailed:
        """gRPC raises ValueError, "Cannot invoke RPC: Channel closed!", and for nothing else here."""
        return CallFailed(self.endpoint, grpc.StatusCode.CANCELLED, "the channel is closed")

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("token", self._token),) if self._token else ()

    def _ensure_token(self, timeout: float) -> None:
        if self._user.user is not None and self._token is None:
            self.log_in_anew(timeout)

    def _log_in(self, timeout: float) -> None:
        request = rpc.AuthenticateRequest(name=self._user.user, password=self._user.password)
        try:
            self._token = self._auth.Authenticate(request, timeout=max(0.001, timeout)).token
        except grpc.RpcError as error:
            failed = CallFailed.of(self.endpoint, error)
            if "authentication is not enabled" not in failed.text:
                raise failed from error
            self._token = ""  # until somebody enables it: then etcd asks for a user name


class Stream:
    """A watch of one connection: what comes is put in line by a thread that does nothing else."""

    def __init__(
        self, connection: Connection, begin: Callable[[Iterator[Any]], Any], request: Any
    ) -> None:
        self._connection = connection
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._call = begin(self._requests(request))
        threading.Thread(target=self._listen, name="lb-etcd-watch", daemon=True).start()

    def take(self, timeout: float) -> Any:
        """The next WatchResponse; None if there is none in time. Raises CallFailed when it has ended."""
        try:
            message = self._messages.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None
        if isinstance(message, CallFailed):
            raise message
        return message

    def close(self) -> None:
        """End it; whoever waits in take() is woken."""
        self._ended.set()
        self._call.cancel()

    def _requests(self, request: Any) -> Iterator[Any]:
        yield request
        self._ended.wait()  # the stream is over when its requests are

    def _listen(self) -> None:
        endpoint = self._connection.endpoint
        try:
            for message in self._call:
                self._connection.heard = time.monotonic()
                self._messages.put(message)
            ended = CallFailed(endpoint, grpc.StatusCode.UNAVAILABLE, "the watch was ended by etcd")
        except grpc.RpcError as error:
            ended = CallFailed.of(endpoint, error)
        self._messages.put(ended)
