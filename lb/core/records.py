"""A record of the history, whoever writes it: what is in it, and which older ones go. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from lb.model import keys
from lb.model.history import KeyChange, Record
from lb.model.plain import plain

MAX_RECORDS = 200  # that is how far back `lbctl history` goes
# Of the documents in one record. Everyone who reads the store reads them all: 200 of some 500 bytes
# each, and few as large as this.
MAX_BYTES = 16 * 1024
MAX_NAMES = 100
MAX_COMMAND = 500
MAX_WHO = 200
TRIM = 4  # records to delete with a change: more than one, as two writers may each add one at a time


def recorded(changes: Sequence[KeyChange], who: str, what: str, when: float) -> Record:
    """The record of a change at `when` (Unix seconds)."""
    size = sum(len(each.before or "") + len(each.after or "") for each in changes)
    touched = [each.key for each in changes]
    if size > MAX_BYTES:
        services = {key.removeprefix(keys.ROOT).split("/")[1] for key in touched}
        touched = [keys.service(name) for name in sorted(services)[:MAX_NAMES]]
    return Record(
        when=when,
        who=plain(who, MAX_WHO),
        what=plain(what, MAX_COMMAND),
        keys=tuple(touched),
        changes=tuple(changes) if size <= MAX_BYTES else None,
    )


def name(when: float, tail: str) -> str:
    """The key of a record: by time, for people who list them, and `tail` makes it like no other."""
    return keys.record(f"{int(when * 1000):013}-{tail}")


def surplus(newest_first: Sequence[str]) -> Sequence[str]:
    """Of these keys of records those that go when one more is written."""
    return newest_first[MAX_RECORDS - 1 :][-TRIM:]
