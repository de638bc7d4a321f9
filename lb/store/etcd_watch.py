"""A watch that goes on whatever happens to the servers: no gap, no duplicate.

All that it has to remember is how far it has come, because a stream can be begun anew from any revision
that etcd still keeps. So whatever is wrong with a stream (broken, ended, its server frozen, silent for
too long), the remedy is the same: find a member that answers, and begin anew after the last revision
that was delivered.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from lb.errors import RevisionCompacted, StoreUnavailable
from lb.store.base import Batch, Watch
from lb.store.etcd_client import Connection, Header, Stream
from lb.store.etcd_errors import CallFailed, Remedy
from lb.store.etcd_members import Members
from lb.store.etcd_package import rpc
from lb.store.etcd_requests import event, prefix_range

PULSE_SECONDS = 2.0  # of silence, after which the server is asked whether it is still there
# The server answers, and its revision goes up, but nothing comes: that may be right (others' keys), or a
# stream that has stalled. Beginning anew costs two messages, and rules the second out.
SILENCE_SECONDS = 60.0
BREATH_SECONDS = 0.05  # between two tries of streams that break at once


class EtcdWatch(Watch):
    """`next` may be called from several threads: each change goes to one."""

    def __init__(self, members: Members, prefix: str, after: int, cluster: str) -> None:
        self._members = members
        self._key, self._range_end = prefix_range(prefix)
        self._position = after  # everything up to here has come
        self._told = after  # and this much the caller knows
        self._cluster = cluster
        self._turn = threading.Lock()
        self._stream: Stream | None = None
        self._member: Connection | None = None
        self._heard = 0.0  # when the stream brought something last
        self._closing = threading.Event()

    def next(self, timeout: float | None = None) -> Batch | None:
        """See Watch.next. A batch without events comes only in place of None."""
        deadline = None if timeout is None else time.monotonic() + timeout
        # `--timeout inf` is a way to say that one waits: for a lock that is 292 years at most.
        turn = -1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        if not self._turn.acquire(timeout=turn):
            return None
        try:
            while not self._ended():
                batch = self._take(deadline)
                if batch:
                    return batch
                if deadline is not None and time.monotonic() >= deadline:
                    return self._progress()
            return None
        except StoreUnavailable:
            if self._ended():
                return None
            raise
        finally:
            self._turn.release()

    def close(self) -> None:
        """See Watch.close."""
        self._closing.set()
        stream = self._stream
        if stream is not None:
            stream.close()

    def _take(self, deadline: float | None) -> Batch | None:
        """What comes within a pulse, if anything does."""
        try:
            if self._stream is None:
                self._begin()
            assert self._stream is not None
            left = PULSE_SECONDS if deadline is None else deadline - time.monotonic()
            message = self._stream.take(min(left, PULSE_SECONDS))
            if message is not None:
                return self._understand(message)
            self._feel_pulse()
        except CallFailed as error:
            self._drop()
            if self._ended():
                return None
            if error.remedy is Remedy.NONE:
                raise error.as_error() from error
            if self._member is not None and error.remedy is not Remedy.LOG_IN:
                self._members.leave(self._member)
            self._closing.wait(BREATH_SECONDS)
        return None

    def _ended(self) -> bool:
        return self._closing.is_set() or self._members.closed

    def _begin(self) -> None:
        """A new stream, from where the last one had come, at a member that answers."""
        member, header = self._members.first_pulse(self._key)
        self._check_history(header)
        request = rpc.WatchCreateRequest(
            key=self._key,
            range_end=self._range_end,
            start_revision=self._position + 1,
            progress_notify=True,  # etcd then tells every 10 minutes how far a silent stream has come
        )
        self._member = member
        self._heard = time.monotonic()
        stream = self._stream = member.stream(rpc.WatchRequest(create_request=request))
        if self._ended():  # close() may have looked before there was one to close
            stream.close()

    def _check_history(self, header: Header) -> None:
        """The answer of a member in touch with the majority: its revision is the newest there is."""
        if self._cluster and header.cluster != self._cluster:
            raise RevisionCompacted(
                "another etcd cluster answers now: its revisions are not those that were watched",
                hint="read the present state anew",
            )
        self._cluster = header.cluster
        if header.revision < self._position:
            raise RevisionCompacted(
                f"revision {self._position} is not in etcd: the newest is {header.revision}",
                hint="read the present state anew",
            )

    def _understand(self, message: Any) -> Batch | None:
        self._heard = time.monotonic()
        assert self._member is not None
        if message.compact_revision:
            self._drop()
            raise RevisionCompacted(
                f"revision {self._position} is no longer kept: the oldest is {message.compact_revision}",
                hint="read the present state anew",
            )
        if message.canceled:
            raise self._member.refused(message.cancel_reason)
        if not message.events:
            if not message.created:  # a notification of progress, in line with the events
                self._position = max(self._position, message.header.revision)
            return None
        events = tuple(event(each) for each in message.events)
        # etcd never spreads one revision over two messages unless asked to
        # (WatchCreateRequest.fragment).
        self._position = self._told = events[-1].revision
        return Batch(self._position, events)

    def _feel_pulse(self) -> None:
        """After a while of silence: is the server there, and can the silence be true?"""
        assert self._member is not None
        silence = time.monotonic() - self._heard
        if silence < SILENCE_SECONDS and time.monotonic() - self._member.heard < PULSE_SECONDS:
            return
        header = self._member.pulse(self._key, self._members.one_try())
        self._check_history(header)
        if silence >= SILENCE_SECONDS:
            if header.revision > self._position:
                self._drop()
            self._heard = time.monotonic()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _progress(self) -> Batch | None:
        if self._position == self._told:
            return None
        self._told = self._position
        return Batch(self._position, ())
