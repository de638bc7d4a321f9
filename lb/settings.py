"""Where things are on this machine: read once, from a TOML file and the environment.

Settings are what differs between machines; what is shared by all nodes is in the store. Order of
precedence: command-line option, environment (LB_STORE, LB_PIN_DIR, LB_NODE), the file named by
LB_CONFIG (default /etc/lb/lb.toml), the defaults below.
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from lb.errors import NotFoundError, UserError

DEFAULT_FILE = Path("/etc/lb/lb.toml")


class Hook(StrEnum):
    """Where in the kernel the program runs."""

    AUTO = "auto"
    XDP = "xdp"
    XDP_GENERIC = "xdp-generic"
    TC = "tc"


class Limits(BaseModel):
    """Capacity of the kernel maps, in entries. A change takes effect when lbd makes the maps anew
    (after `lbd --detach`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    services: int = Field(default=4096, ge=1, le=65536)
    vips: int = Field(default=8192, ge=2, le=1 << 20)
    rules: int = Field(default=4096, ge=1, le=1 << 20)
    backends: int = Field(default=16384, ge=2, le=1 << 20)
    conntrack: int = Field(default=131072, ge=1024, le=1 << 24)
    embryonic: int = Field(default=65536, ge=1024, le=1 << 24)
    translations: int = Field(default=131072, ge=1024, le=1 << 24)
    fragments: int = Field(default=4096, ge=128, le=1 << 20)
    senders: int = Field(default=16384, ge=1024, le=1 << 24)
    watched: int = Field(default=65536, ge=1024, le=1 << 24)
    mirrored: int = Field(default=16384, ge=1024, le=1 << 24)


class Timeouts(BaseModel):
    """After how many seconds of silence a flow is forgotten, by what was seen of it: in mode fullnat,
    where it gives its port back, and of services that remember every flow (`tracking: always`), of which
    only the begin and the going on are seen. (`tracking: moving` goes by the service's window.)"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tcp_opening: int = Field(
        default=30, ge=1, description="SYN, not answered; or that answer not acknowledged."
    )
    tcp_established: int = Field(default=7440, ge=1, description="RFC 5382, REQ-5: 2 h 4 min or more.")
    tcp_closing: int = Field(default=240, ge=1, description="One side is done (FIN), or has reset it.")
    tcp_closed: int = Field(default=10, ge=1, description="Both are done.")
    udp: int = Field(default=300, ge=1, description="RFC 4787, REQ-5: 5 min.")
    udp_unanswered: int = Field(default=30, ge=1, description="Only the client has sent.")


class Observation(BaseModel):
    """Of services that are observed: after how many seconds something counts as not answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unanswered: int = Field(default=3, ge=1, le=600, description="A SYN.")
    unserved: int = Field(default=10, ge=1, le=3600, description="A request.")


class Etcd(BaseModel):
    """How to reach a store in etcd, beside its address; "" = none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: str = Field(
        default="", description="File with the certificates that its servers' are signed by."
    )
    cert: str = Field(default="", description="File with our own certificate (mutual TLS).")
    key: str = Field(default="", description="File with its key.")
    user: str = Field(default="", description="Name of the etcd user.")
    password_file: str = Field(default="", description="File whose first line is that user's password.")
    timeout: float = Field(
        default=5.0, gt=0, description="Seconds to look for a server that answers, before giving up."
    )


class Checks(BaseModel):
    """Health checks, as far as they are this machine's own affair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory: Path = Field(
        default=Path("/var/lib/lb/health.json"), description="File that keeps health over a restart."
    )
    exec_dir: Path = Field(
        default=Path("/etc/lb/checks"), description="Folder of programs that exec checks may run."
    )
    hook: tuple[str, ...] = Field(
        default=(), description="Program that is told of each change, as JSON on its standard input."
    )
    webhook: str = Field(default="", description="URL that the same is posted to.")


class Metrics(BaseModel):
    """What Prometheus may ask lbd for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = Field(
        default="127.0.0.1:9642", description='HOST:PORT to answer at, IPv6 as [::1]:9642; "" = nowhere.'
    )

    @field_validator("listen")
    @classmethod
    def _has_a_port(cls, listen: str) -> str:
        host, colon, port = listen.rpartition(":")
        if listen and not (host and colon and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise ValueError("not HOST:PORT, as in 127.0.0.1:9642")
        return listen

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None = nowhere."""
        if not self.listen:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Settings(BaseModel):
    """One machine's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(
        default="/var/lib/lb/store.db",
        description="Path of the embedded store, or etcd://HOST:PORT,… of a fleet (etcds: TLS).",
    )
    pin_dir: Path = Field(
        default=Path("/sys/fs/bpf/lb"), description="Where maps and programs are pinned (bpffs)."
    )
    last_known: Path = Field(
        default=Path("/var/lib/lb/last-known-good.json"),
        description="Copy of what this node serves, for a boot while the store in etcd is away.",
    )
    node: str = Field(default_factory=socket.gethostname, description="Name of this node.")
    interfaces: tuple[str, ...] = Field(default=(), description="Interfaces that lbd attaches to.")
    hook: Hook = Field(default=Hook.AUTO, description="auto | xdp | xdp-generic | tc")
    etcd: Etcd = Field(default=Etcd(), description="How to reach a store in etcd.")
    limits: Limits = Field(default=Limits(), description="Capacity of the kernel maps.")
    timeouts: Timeouts = Field(default=Timeouts(), description="Of remembered flows.")
    observation: Observation = Field(default=Observation(), description="Of observed services.")
    checks: Checks = Field(default=Checks(), description="Health checks.")
    metrics: Metrics = Field(default=Metrics(), description="For Prometheus.")


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings. Raises UserError for a bad file, NotFoundError for a named one that is
    not there; the default file may be absent."""
    named = path or (Path(environ["LB_CONFIG"]) if environ.get("LB_CONFIG") else None)
    file = named or DEFAULT_FILE
    values: dict[str, object] = {}
    try:
        values = tomllib.loads(file.read_text())
    except FileNotFoundError:
        if named:
            raise NotFoundError(
                f"settings file {file} does not exist", hint="check --config or LB_CONFIG"
            ) from None
    except IsADirectoryError:
        raise UserError(
            f"{file} is a directory", hint="--config and LB_CONFIG name a file, such as /etc/lb/lb.toml"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", hint="check --config or LB_CONFIG") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}", hint="correct the file and try again") from None
    for variable, key in (("LB_STORE", "store"), ("LB_PIN_DIR", "pin_dir"), ("LB_NODE", "node")):
        if environ.get(variable):
            values[key] = environ[variable]
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise UserError(
            f"{file}: {_explain(error.errors()[0])}", hint="see configs/lb.toml for all settings"
        ) from None


def _explain(error: ErrorDetails) -> str:
    """A pydantic error, in the words that a manifest has for it (lb/model/manifest.py)."""
    path = [str(part) for part in error["loc"]]
    where, given = ".".join(path), error["input"]
    if error["type"] == "extra_forbidden":
        model: type[BaseModel] = Settings
        for name in path[:-1]:
            kind = model.model_fields[name].annotation
            assert isinstance(kind, type)
            assert issubclass(kind, BaseModel)
            model = kind
        close = difflib.get_close_matches(path[-1], model.model_fields, n=1)
        return f"{where} is not a setting" + (f"; did you mean {close[0]!r}?" if close else "")
    said = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{where}: {said}" + ("" if isinstance(given, dict) else f"; not {given!r}")
