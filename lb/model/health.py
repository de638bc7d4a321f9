"""What a health check is: how a backend is asked, how often, and what its answers lead to.

A service has a `Health`; a backend may have `Overrides` of it. What the answers lead to is decided in
lb/core/health.py, the asking is in lb/probe/.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, WithJsonSchema, field_validator, model_validator

from lb.model.document import Document, Moment, Report, Written

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?")


def seconds(value: object) -> object:
    """2, "2", "500ms", "10s", "5m" or "1h", in seconds."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        raise ValueError(f"{value!r} is not a duration; write 2, 500ms, 10s or 5m")
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value.strip())
    if not found:
        raise ValueError(f"{value!r} is not a duration; write 2, 500ms, 10s or 5m")
    return float(found[1]) * _UNITS[found[2] or "s"]


def _line(value: str) -> str:
    # What goes into the head of a request must not end it (RFC 9112, 11.1).
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise ValueError(f"{value!r} has control characters")
    return value


DURATION = Written(seconds, r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)?$")  # Annotated[float, Field(…), DURATION]
Count = Annotated[int, Field(ge=1, le=1000, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
Payload = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=1024)]

_PORT = Field(default=None, description="Port that is asked; none = the backend's.")
_STATUS = {
    "anyOf": [
        {"type": "integer", "minimum": 100, "maximum": 599},
        {"type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"},
    ]
}
_STATUSES = {"anyOf": [{"type": "array", "minItems": 1, "items": _STATUS}, *_STATUS["anyOf"]]}


class _Check(Document):
    """What all kinds share."""

    port: Port | None = _PORT


class TcpCheck(_Check):
    """Connect; with `send` and `expect`, also talk."""

    kind: Literal["tcp"] = "tcp"
    send: Payload | None = Field(default=None, description="Text that is sent first.")
    expect: Payload | None = Field(default=None, description="Text that must be in the answer.")


class HttpCheck(_Check):
    """Ask over HTTP/1.1."""

    kind: Literal["http"] = "http"
    method: Literal["GET", "HEAD", "POST", "OPTIONS"] = Field(default="GET", description="Method.")
    path: Line = Field(default="/", description="Path, and query if any.")
    host: Line | None = Field(default=None, description="Host header; none = the address.")
    headers: dict[Line, str] = Field(default={}, max_length=32, description="More headers.")
    status: Annotated[tuple[str, ...], Field(min_length=1), WithJsonSchema(_STATUSES)] = Field(
        default=("200-399",),
        description="Statuses that are good: 200, 204 or ranges as 200-299.",
    )
    body: Payload | None = Field(
        default=None, description="Text that must be in the first 64 KiB of the body."
    )

    @field_validator("path", "host")
    @classmethod
    def _check_line(cls, value: str | None) -> str | None:
        if value is not None and (" " in value or not value.isascii()):
            raise ValueError(f"{value!r} has characters that don't belong there; in a path write %20")
        return value if value is None else _line(value)

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: str) -> str:
        if not value.startswith("/"):
            raise ValueError(f"{value!r} does not begin with /")
        return value

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            _line(text)
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):  # RFC 9110, 5.6.2
                raise ValueError(f"{name!r} is not the name of a header")
            if name.lower() == "host":
                raise ValueError("header Host is set by lb; see `host`")
            if name.lower() in ("connection", "content-length", "transfer-encoding"):
                raise ValueError(f"header {name} is set by lb")
        return value

    @field_validator("status", mode="before")
    @classmethod
    def _check_status(cls, value: object) -> object:
        given = value if isinstance(value, list | tuple) else [value]
        words = tuple(str(each) for each in given)
        for word in words:
            first, _, last = word.partition("-")
            if not re.fullmatch(r"[1-5]\d\d(-[1-5]\d\d)?", word) or int(last or first) < int(first):
                raise ValueError(f"{word!r} is not a status; write 200, or a range as 200-299")
        return words

    @model_validator(mode="after")
    def _check_body(self) -> Self:
        if self.body and self.method == "HEAD":
            raise ValueError("an answer to HEAD has no body that could be looked at")
        return self

    def is_good(self, status: int) -> bool:
        """Is this status among the expected ones?"""
        for word in self.status:
            first, _, last = word.partition("-")
            if int(first) <= status <= int(last or first):
                return True
        return False


class _Tls(Document):
    verify: Flag = Field(default=True, description="Must the certificate be valid for the name?")
    sni: Line | None = Field(
        default=None, description="Name that is asked for and verified; none = `host`, or the address."
    )
    ca_file: Line | None = Field(
        default=None, description="File of certificates to trust, on each node; none = the system's."
    )


class HttpsCheck(HttpCheck, _Tls):
    """Ask over HTTP/1.1 in TLS."""

    kind: Literal["https"] = "https"  # type: ignore[assignment]


class GrpcCheck(_Check, _Tls):
    """Ask the gRPC health service (grpc.health.v1)."""

    kind: Literal["grpc"] = "grpc"
    service: Annotated[str, StringConstraints(max_length=256)] = Field(
        default="", description="gRPC service that is asked for; empty = the server as a whole."
    )
    host: Line | None = Field(default=None, description="Authority; none = address and port.")
    tls: Flag = Field(default=False, description="Ask in TLS.")


class UdpCheck(_Check):
    """Send a datagram and wait for an answer."""

    kind: Literal["udp"] = "udp"
    send: Payload = Field(description="Text that is sent.")
    expect: Payload | None = Field(default=None, description="Text that must be in the answer.")


class DnsCheck(_Check):
    """Ask a name server, over UDP. An answer without a record is a failure."""

    kind: Literal["dns"] = "dns"
    name: Line = Field(description="Name that is asked for.")
    type: Literal["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"] = Field(
        default="A", description="Type of the record."
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        labels = value.removesuffix(".").split(".")
        if not all(re.fullmatch(r"[A-Za-z0-9_*-]{1,63}", label) for label in labels) or len(value) > 253:
            raise ValueError(f"{value!r} is not a name in DNS")
        return value


def can_be_run(argv: tuple[str, ...]) -> tuple[str, ...]:
    """A program with its whole path, and arguments that the kernel takes. Raises ValueError."""
    if not argv[0].startswith("/"):
        raise ValueError(f"{argv[0]!r} is not the whole path of a program")
    if any("\0" in each for each in argv):
        raise ValueError("arguments can't hold a zero byte")
    return argv


class ExecCheck(_Check):
    """Run a program of the node; status 0 is good. It finds LB_SERVICE, LB_BACKEND, LB_ADDRESS and
    LB_PORT in its environment. Nodes run programs of one folder only (`exec_dir` in lb.toml)."""

    kind: Literal["exec"] = "exec"
    argv: tuple[Annotated[str, StringConstraints(max_length=4096)], ...] = Field(
        min_length=1, max_length=64, description="Program, with its whole path, and its arguments."
    )

    _check_argv = field_validator("argv")(can_be_run)


class NoCheck(_Check):
    """Ask nothing: only `passive` counts."""

    kind: Literal["none"] = "none"


class Passive(Document):
    """What the data path sees of clients' connections ejects a backend for a while. Only in modes nat
    and fullnat: in the others answers don't come by the node. Rules: lb/core/passive.py."""

    failures: Annotated[int, Field(ge=0, le=100_000, strict=True)] = Field(
        default=5,
        description="Failed connections or requests in a row that eject; 0 = this rule is off.",
    )
    ratio: Annotated[float, Field(ge=0, le=100)] = Field(
        default=50.0,
        description="Share of failed ones within `window` that ejects, in per cent; 0 = this rule is"
        " off.",
    )
    minimum: Count = Field(
        default=20, description="The ratio of fewer connections and requests than these says nothing."
    )
    window: Annotated[float, Field(ge=1, le=3600), DURATION] = Field(
        default=10.0, description="Seconds."
    )
    resets: Flag = Field(
        default=True,
        description="Does a connection that the server resets count as failed? false where servers end"
        " connections so.",
    )
    base: Annotated[float, Field(ge=1, le=86400), DURATION] = Field(
        default=30.0,
        description="Seconds of the first ejection; twice as long the second time, and so on. For each"
        " `base` seconds without one, one time is forgotten.",
    )
    maximum: Annotated[float, Field(ge=1, le=86400), DURATION] = Field(
        default=300.0, description="Seconds that an ejection lasts at most."
    )
    share: Annotated[float, Field(ge=0, le=100)] = Field(
        default=50.0,
        description="Share of a pool's backends that may be ejected at once, in per cent, rounded down;"
        " but one from two backends on, and never the last one that takes flows.",
    )

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if not self.failures and not self.ratio:
            raise ValueError("without `failures` and `ratio` there is no rule that ejects")
        if self.maximum < self.base:
            raise ValueError(f"maximum {self.maximum:g} is below base {self.base:g}")
        return self


AnyCheck = TcpCheck | HttpCheck | HttpsCheck | GrpcCheck | UdpCheck | DnsCheck | ExecCheck | NoCheck
Check = Annotated[AnyCheck, Field(discriminator="kind")]


class Initial(StrEnum):
    """Whether a new backend takes flows before its first passed check."""

    DOWN = "down"
    UP = "up"


class Established(StrEnum):
    """What becomes of the flows of a backend that gets unhealthy.

    keep: they stay; it may recover. reset: the kernel answers the next packet of a TCP connection with a
    reset, so that the client connects again at once; a UDP flow goes on with another server.
    """

    KEEP = "keep"
    RESET = "reset"


class Via(StrEnum):
    """Which way a check goes: straight to the backend, or as clients' packets go to the VIP."""

    BACKEND = "backend"
    VIP = "vip"


INTERVAL = Field(ge=0.1, le=3600)
DEFAULT_INTERVAL = 2.0


class Health(Document):
    """How the backends of a service are checked. Durations in seconds, or as 500ms, 10s, 5m."""

    check: Check = Field(default=TcpCheck(), description="What is asked.")
    via: Via = Field(
        default=Via.BACKEND,
        description="Which way it goes: straight to the backend's address; or as clients' packets go to"
        " the VIP, so that a broken tunnel or NAT, or a missing VIP, counts as unhealthy.",
    )
    interval: Annotated[float, INTERVAL, DURATION] = Field(
        default=DEFAULT_INTERVAL, description="Seconds from one check to the next, at most."
    )
    fast_interval: Annotated[float, INTERVAL, DURATION] | None = Field(
        default=None,
        description="The same while results contradict the state, and before the first passed check;"
        " none = half the interval.",
    )
    jitter: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.1, description="Share of an interval by which it is shortened at random."
    )
    timeout: Annotated[float, Field(ge=0.01, le=300), DURATION] = Field(
        default=1.0, description="Seconds after which no answer is a failure."
    )
    rise: Count = Field(
        default=2, description="Passed checks in a row that make an unhealthy backend healthy."
    )
    fall: Count = Field(
        default=3, description="Failed checks in a row that make a healthy backend unhealthy."
    )
    grace: Annotated[float, Field(ge=0, le=86400), DURATION] = Field(
        default=0.0,
        description="Seconds after it was added in which a backend that never passed may fail.",
    )
    initial: Initial = Field(
        default=Initial.DOWN, description="Flows before the first passed check: down = none, up = all."
    )
    slow_start: Annotated[float, Field(ge=0, le=86400), DURATION] = Field(
        default=0.0, description="Seconds in which the weight of a backend that got healthy ramps up."
    )
    panic: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="If a smaller share of a pool is healthy, in per cent, the unhealthy ones are used,"
        " too; 0 = never.",
    )
    flaps: Annotated[int, Field(ge=0, le=100, strict=True)] = Field(
        default=0,
        description="A backend that got unhealthy so often within `flap_window` is held down for"
        " `flap_hold`; 0 = never.",
    )
    flap_window: Annotated[float, Field(ge=1, le=86400), DURATION] = Field(
        default=300.0, description="Seconds."
    )
    flap_hold: Annotated[float, Field(ge=1, le=86400), DURATION] = Field(
        default=60.0, description="Seconds without a failed check until it may be healthy again."
    )
    established: Established | None = Field(
        default=None,
        description="Flows of a backend that got unhealthy: keep; or reset = TCP connections are reset,"
        " UDP flows placed anew; none = keep for TCP, reset for UDP.",
    )

    passive: Passive | None = Field(
        default=None,
        description="What the data path sees ejects a backend for a while, beside what is asked; with"
        " check `none`, alone. none = it doesn't.",
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if isinstance(self.check, NoCheck) and self.passive is None:
            raise ValueError("check: none leaves nothing to go by; add passive: {}, or leave health out")
        return self

    @model_validator(mode="after")
    def _check_via(self) -> Self:
        if self.via is Via.VIP and isinstance(self.check, ExecCheck):
            raise ValueError("via: a program makes connections of its own, which can't go by the VIP")
        return self

    @property
    def fast(self) -> float:
        """Seconds between checks while results contradict the state; never more than the interval."""
        return min(self.fast_interval or self.interval / 2, self.interval)


class Overrides(Document):
    """What is different for one backend; none = as the service says."""

    enabled: Flag = Field(default=True, description="Is it checked at all?")
    check: Check | None = Field(default=None, description="What is asked.")
    port: Port | None = Field(default=None, description="Port that is asked.")
    interval: Annotated[float, INTERVAL, DURATION] | None = None
    fast_interval: Annotated[float, INTERVAL, DURATION] | None = None
    timeout: Annotated[float, Field(ge=0.01, le=300), DURATION] | None = None
    rise: Count | None = None
    fall: Count | None = None
    grace: Annotated[float, Field(ge=0, le=86400), DURATION] | None = None
    initial: Initial | None = None
    slow_start: Annotated[float, Field(ge=0, le=86400), DURATION] | None = None


class BallotVote(Report):
    """What a node found of one backend."""

    state: Literal["healthy", "unhealthy"]
    since: Moment = Field(description="Unix time, seconds.")


class Ballot(Report):
    """What a node's checks found, as the other nodes count it. Key: /lb/reports/v1/votes/<name>, under
    the lease of the node; written together with its status, but only when a vote changes."""

    node: str
    votes: dict[str, BallotVote] = Field(default={}, description="By service/backend.")


def effective(health: Health | None, own: Overrides | None, port: int | None) -> Health | None:
    """How a backend is checked, with its port filled in; none = not at all. `port` is where its
    traffic goes to."""
    if health is None or (own is not None and not own.enabled):
        return None
    check = (own and own.check) or health.check
    if isinstance(check, NoCheck):
        return None
    own_port = (own and own.port) or check.port or health.check.port or port
    changes: dict[str, Any] = {"check": check.model_copy(update={"port": own_port})}
    if own is not None:
        shared = Overrides.model_fields.keys() & Health.model_fields
        given = {name: value for name in shared if (value := getattr(own, name)) is not None}
        changes = given | changes
    return health.model_copy(update=changes)
