"""What etcd and gRPC report, sorted by what can be done about it.

etcd gives no error codes of its own, so its texts are what there is to tell errors apart by
(https://github.com/etcd-io/etcd/blob/v3.4.23/etcdserver/api/v3rpc/rpctypes/error.go).
"""

from __future__ import annotations

from enum import Enum, auto

import grpc

from lb.errors import CapacityError, LbError, RevisionCompacted, StoreDenied, StoreUnavailable


class Remedy(Enum):
    """What to do after a call that failed."""

    LOG_IN = auto()  # the token is not known, or no longer: it was not done
    ELSEWHERE = auto()  # another member may answer; it was not done
    DOUBTFUL = auto()  # another member may answer; it may have been done
    NONE = auto()  # it will fail again


class CallFailed(Exception):
    """A call to one endpoint that failed."""

    def __init__(
        self, endpoint: str, code: grpc.StatusCode, text: str, *, harmless: bool = False
    ) -> None:
        """`harmless`: the call would have changed nothing anyhow."""
        super().__init__(f"{endpoint}: {text}")
        self.endpoint, self.code, self.text, self.harmless = endpoint, code, text, harmless

    @classmethod
    def of(cls, endpoint: str, error: grpc.RpcError) -> CallFailed:
        """From what gRPC raised: a call that is also an exception."""
        return cls(endpoint, error.code(), error.details() or error.code().name)

    @property
    def remedy(self) -> Remedy:
        """What can be done about it."""
        if any(words in self.text for words in _LOG_IN):
            return Remedy.LOG_IN
        if any(words in self.text for words in _DENIED):
            return Remedy.NONE
        if any(words in self.text for words in _NOT_SENT):
            return Remedy.ELSEWHERE
        if self.code in _PASSING:
            return Remedy.ELSEWHERE if self.harmless else Remedy.DOUBTFUL
        return Remedy.NONE

    def as_error(self) -> LbError:
        """For whoever asked the store."""
        if "required revision" in self.text:  # "has been compacted" or "is a future revision"
            return RevisionCompacted(f"etcd {self}", hint="read the present state anew")
        if any(words in self.text for words in _DENIED):
            return StoreDenied(
                f"etcd {self}",
                hint="check `user`, `password_file`, `cert` and `key` under [etcd] in lb.toml, and the"
                " roles of that user (configs/etcd)",
            )
        if "database space exceeded" in self.text:
            return StoreUnavailable(
                f"etcd {self}; nothing was changed",
                hint="etcdctl compact, etcdctl defrag, then etcdctl alarm disarm",
            )
        if any(words in self.text for words in _TOO_LARGE):
            return CapacityError(
                f"etcd {self}; nothing was changed",
                hint="change fewer objects at once (a manifest can be applied in parts, without"
                " --prune), or raise --max-txn-ops and --max-request-bytes of the etcd servers",
            )
        return StoreUnavailable(
            f"etcd can't be reached: {self}",
            hint=f"etcdctl --endpoints={self.endpoint} endpoint health; check `store` in lb.toml",
        )


_LOG_IN = (
    "invalid auth token",
    "revision of auth store is old",  # users or roles were changed
    "user name is empty",  # auth was enabled after we came
)
_NOT_SENT = (
    "failed to connect to all addresses",
    "errors resolving",  # the server's name
    "etcdserver: no leader",
    "etcdserver: not leader",
)
_DENIED = (
    "permission denied",
    "user name is empty",
    "invalid auth token",
    "authentication failed",
)
_TOO_LARGE = ("too many operations", "request is too large", "larger than max")
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
