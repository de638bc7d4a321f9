"""What nodes report: of themselves, of what keeps them from going on, of the health of backends."""

from __future__ import annotations

from pydantic import Field

from lb.model.document import Moment, Report, Total
from lb.model.objects import Name


class Problem(Report):
    """Something that is not as asked for: which object, what is wrong, what to do next."""

    where: str
    message: str
    hint: str = ""
    kind: str = Field(default="", description="Class of the error (lb/errors.py), if it was one.")
    warning: bool = Field(
        default=False, description="What was asked for is in force; this is worth knowing."
    )


class Member(Report):
    """A node that has reported. Key: /lb/v1/members/<name>, without a lease: when its status is gone and
    this is not, the node is lost. Taken away by the node when it stops, or by `lbctl node forget`."""

    node: Name
    since: Moment = Field(description="When it last began to report; Unix time, seconds.")


class LinkStatus(Report):
    """An interface that a node attached to."""

    interface: str
    hook: str
    why: str = Field(description="Why this hook was taken.")


class HealthChange(Report):
    """A transition of a backend's health."""

    at: Moment = Field(description="Unix time, seconds.")
    state: str = Field(description="The state since then: healthy or unhealthy.")
    words: str = Field(description="What the check said that brought it.")


class EjectionReport(Report):
    """A backend that gets no new flows because of what a node's data path saw of it."""

    since: Moment = Field(description="Unix time, seconds.")
    until: Moment = Field(description="The same: when it is tried again.")
    times: Total = Field(description="How often in a row; what is long ago doesn't count.")
    words: str = Field(description="What was seen.")


class FullReport(Report):
    """A backend that has as many connections on a node as it may have."""

    connections: Total = Field(description="Counted lately; not told anew for small changes.")
    limit: Total = Field(description="Its `max_connections`.")


class BackendHealth(Report):
    """What a node's checks have shown of a backend."""

    state: str = Field(description="unknown, healthy or unhealthy.")
    since: Moment = Field(description="Unix time, seconds.")
    share: float = Field(
        description="Share of its weight that its health lets it have; below 1 in slow start."
    )
    error: str = Field(default="", description="What the last check said, if it failed.")
    latency: float | None = Field(
        default=None, description="Of a check, in seconds; not told anew for small changes."
    )
    history: tuple[HealthChange, ...] = Field(default=(), description="The last transitions.")
    ejection: EjectionReport | None = Field(
        default=None, description="While it is ejected by what this node's data path saw."
    )


class NodeStatus(Report):
    """What a node reports. Key: /lb/reports/v1/nodes/<name>, under a lease that ends with the node."""

    node: Name
    version: str
    pid: Total
    started: Moment = Field(description="Unix time, seconds.")
    revision: Total = Field(description="Revision of the store that the kernel maps hold.")
    links: tuple[LinkStatus, ...]
    pin_dir: str
    digests: dict[str, str] = Field(
        default={},
        description="Per service, and service/pool that rules send clients to: digest of the slot table"
        " that the kernel holds.",
    )
    shares: dict[str, dict[str, float]] = Field(
        default={},
        description="Per service of several pools: share of the slots that each pool has in the table"
        " that the kernel holds, in per cent; pools without any are left out.",
    )
    unresolved: tuple[str, ...] = Field(
        default=(), description="service/backend whose next hop has not been resolved."
    )
    health: dict[str, BackendHealth] = Field(
        default={}, description="Per service/backend that is checked: what the checks have shown."
    )
    full: dict[str, FullReport] = Field(
        default={}, description="Per service/backend that is full by what this node counted."
    )
    left_out: tuple[str, ...] = Field(
        default=(),
        description="Services, and service/backend, that are not programmed, or not wholly, because a"
        " map is full.",
    )
    limits: dict[str, Total] = Field(default={}, description="Capacity of the maps, in entries.")
    problems: tuple[Problem, ...] = ()
