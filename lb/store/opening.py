"""From the store's address, as settings and command line give it, to a driver."""

from __future__ import annotations

import re

from lb.errors import UserError
from lb.store.base import Store
from lb.store.sqlite import SqliteStore

_HINT = "give the path of a file, such as /var/lib/lb/store.db or sqlite:///var/lib/lb/store.db"


def open_store(url: str) -> Store:
    """Open the store at a path or at `sqlite:///path`; both are taken literally, nothing in them
    is decoded. Raises UserError for anything else, StoreUnavailable if it can't be opened."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    if scheme is None:
        path = url
    elif scheme[1].lower() != "sqlite":
        raise UserError(f"{url}: there is no store driver for {scheme[1]}://", hint=_HINT)
    else:
        path = url[scheme.end() :]
        if not path.startswith("/"):
            raise UserError(f"{url}: sqlite:// takes an absolute path", hint=_HINT)
    if not path or path.endswith("/") or "\0" in path:
        raise UserError(f"{url!r} does not name a store", hint=_HINT)
    return SqliteStore(path)
