"""Who changed what: the record that goes into the history with each change."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextvars import ContextVar

from pydantic import ValidationError

from lb.core.records import MAX_WHO, name, recorded, surplus
from lb.model import keys
from lb.model.history import KeyChange, Record
from lb.model.objects import Document
from lb.model.plain import plain
from lb.store.base import Delete, KeyValue, Put, Snapshot

# The command line of this run of lbctl.
command: ContextVar[str] = ContextVar("command", default="")
# The revision that it has stored a change at, for errors that come after that; 0 = none.
stored: ContextVar[int] = ContextVar("stored", default=0)


def recording(
    snapshot: Snapshot, wanted: Mapping[str, Document | None]
) -> tuple[str, list[Put | Delete]]:
    """The key of a new record of a change, and the operations that write it and keep the history
    short."""
    before = {item.key: item.value for item in snapshot.items}
    changes = [
        KeyChange(
            key=key,
            before=before.get(key),
            after=None if document is None else document.model_dump_json(),
        )
        for key, document in wanted.items()
        if key.startswith((keys.SERVICES, keys.BACKENDS))
    ]
    when = time.time()
    record = recorded(changes, who(), command.get(), when)
    key = name(when, secrets.token_hex(4))
    old = surplus([item.key for item in _items(snapshot)])
    return key, [Put(key, record.model_dump_json()), *(Delete(each) for each in old)]


def records(snapshot: Snapshot) -> list[tuple[int, Record]]:
    """(revision, record), newest first. What can't be read is left out."""
    found = []
    for item in _items(snapshot):
        try:
            found.append((item.mod_revision, Record.model_validate_json(item.value)))
        except ValidationError:
            continue
    return found


def who() -> str:
    """LB_ACTOR, for programs that act for somebody; else the user, who may have become root by sudo.
    Others will read it on their terminals."""
    return plain(_who(), MAX_WHO)


def _who() -> str:
    if actor := os.environ.get("LB_ACTOR"):
        return actor
    user = os.environ.get("SUDO_USER")
    if not user:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # no name for this number
            user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _items(snapshot: Snapshot) -> list[KeyValue]:
    items = (item for item in snapshot.items if item.key.startswith(keys.HISTORY))
    return sorted(items, key=lambda item: (item.mod_revision, item.key), reverse=True)
