"""The history of desired state: one record for each change, written in the same transaction."""

from __future__ import annotations

from pydantic import Field

from lb.model.document import Document, Moment


class KeyChange(Document):
    """One document that was written or deleted."""

    key: str
    before: str | None = Field(description="Its JSON text; null = it did not exist.")
    after: str | None = Field(description="The same, after; null = it was deleted.")


class Record(Document):
    """One change. Key: /lb/v1/history/<any name>, of which the revision is that of the change.

    Who changes documents without lbctl need not write one, but is welcome to: in the same transaction,
    or its revision means nothing.
    """

    when: Moment = Field(description="Unix time, seconds.")
    who: str = Field(description="Who asked for it, as the writer says: user@host, or LB_ACTOR.")
    what: str = Field(description="The command, or another way to say what was done.")
    keys: tuple[str, ...] = Field(
        description="Keys of the services and backends that changed; where `changes` is null, of the"
        " services that it was about, at most 100."
    )
    changes: tuple[KeyChange, ...] | None = Field(
        default=None, description="The documents; null if they are too large to be kept."
    )
