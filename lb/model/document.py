"""What all documents have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Document(BaseModel):
    """Base of all documents: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Written:
    """The last annotation of a number that may be written as text too, such as 10s or 1%.

    Behind the limits, because JSON Schema has them for numbers alone: pydantic's own BeforeValidator in
    front of them makes a schema that refuses the text, and in which the limits are no words of JSON
    Schema.
    """

    read: Callable[[object], object]  # raises ValueError
    pattern: str  # of the text, ECMA 262

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": self.pattern}]}
