"""What all documents have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """Base of all documents: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
