"""From the store's address, as settings and command line give it, to a driver."""

from __future__ import annotations

import re
import ssl
from enum import Enum
from pathlib import Path

from lb.errors import StoreUnavailable, UserError
from lb.settings import Etcd
from lb.store.base import Store

_HINT = (
    "give the path of a file, such as /var/lib/lb/store.db or sqlite:///var/lib/lb/store.db, or the"
    " servers of an etcd cluster, such as etcd://10.0.0.1:2379,10.0.0.2:2379"
)
_NO_STORE = (
    "check the path; where lb.toml or LB_STORE says, lbd makes a store when it starts, and so does the"
    " first change: lbctl service add NAME --vip ADDRESS:PORT"
)
_ETCD_PORT = 2379
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")


def is_shared(url: str) -> bool:
    """Is the store one that other machines use, too, and that can be away while this one is up?"""
    return url.lower().startswith(("etcd://", "etcds://"))


class Absent(Enum):
    """What becomes of an embedded store whose file isn't there."""

    MAKE = "make"
    MAKE_AT_COMMIT = "make at commit"  # until then it reads as empty
    REFUSE = "refuse"


def open_store(url: str, etcd: Etcd = Etcd(), *, absent: Absent = Absent.MAKE) -> Store:
    """Open the store at a path, at `sqlite:///path` or at `etcd://host:port,host:port`; a path is taken
    literally, nothing in it is decoded. Raises UserError for anything else, StoreUnavailable if a file
    can't be opened; whether an etcd cluster answers is seen with the first use."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    kind = scheme[1].lower() if scheme else ""
    rest = url[scheme.end() :] if scheme else url
    if kind in ("etcd", "etcds"):
        return _open_etcd(url, rest, etcd, tls=kind == "etcds" or bool(etcd.ca))
    if kind not in ("", "sqlite"):
        raise UserError(f"{url}: there is no store driver for {kind}://", hint=_HINT)
    if kind and not rest.startswith("/"):
        raise UserError(f"{url}: sqlite:// takes an absolute path", hint=_HINT)
    if not rest or rest.endswith("/") or "\0" in rest:
        raise UserError(f"{url!r} does not name a store", hint=_HINT)
    if rest.startswith("~/"):  # a file of lb.toml, --store=~/…, or quotes: no shell has seen it
        raise UserError(f"{url}: ~ means nothing here", hint=f"write {Path(rest).expanduser()}")
    from lb.store.sqlite import SqliteStore
    from lb.store.sqlite_file import is_made

    if absent is Absent.MAKE or is_made(Path(rest)):
        return SqliteStore(rest)
    if absent is Absent.REFUSE:
        raise StoreUnavailable(f"no store at {rest}", hint=_NO_STORE)
    from lb.store.unmade import UnmadeStore

    return UnmadeStore(rest)


def _open_etcd(url: str, servers: str, etcd: Etcd, *, tls: bool) -> Store:
    endpoints = [_endpoint(url, each) for each in servers.split(",")]
    if bool(etcd.cert) != bool(etcd.key):
        raise UserError("[etcd]: cert and key go together", hint="give both in lb.toml, or none")
    if etcd.cert and not tls:
        raise UserError(
            f"{url}: there is a certificate, but no TLS", hint="use etcds://, or give [etcd] ca as well"
        )
    if bool(etcd.user) != bool(etcd.password_file):
        raise UserError(
            "[etcd]: user and password_file go together", hint="give both in lb.toml, or none"
        )
    ca = etcd.ca or ssl.get_default_verify_paths().cafile or ""
    if tls and not ca:
        raise UserError(
            f"{url}: this machine has no certificates to check its servers with",
            hint="give [etcd] ca in lb.toml",
        )
    for name in (etcd.cert, etcd.key, ca if tls else ""):
        if name:
            _read(name)
    # Only here: gRPC takes a tenth of a second to load, and most commands of one machine need none.
    from lb.store.etcd import EtcdStore
    from lb.store.etcd_client import Credentials

    credentials = Credentials(
        ca=Path(ca) if tls else None,
        cert=Path(etcd.cert) if etcd.cert else None,
        key=Path(etcd.key) if etcd.key else None,
        user=etcd.user or None,
        password=_read(etcd.password_file).partition("\n")[0] if etcd.user else None,
    )
    return EtcdStore(endpoints, credentials, timeout=etcd.timeout)


def _endpoint(url: str, text: str) -> str:
    found = _HOST_PORT.fullmatch(text)
    port = int(found["port"] or _ETCD_PORT) if found else 0
    if found is None or not 0 < port <= 65535:
        raise UserError(f"{url}: {text!r} is not the HOST:PORT of an etcd server", hint=_HINT)
    return f"{found['host']}:{port}"


def _read(name: str) -> str:
    try:
        return Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"[etcd]: {name}: {error}", hint="check the file names in lb.toml") from None
