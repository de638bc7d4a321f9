"""What all documents have in common.

Numbers have bounds, because anybody may write them into the store, and who reads them does arithmetic:
in NumPy's 64 bits, in the kernel's, in the C library's calendar. A document beyond them can't be read,
and that is all that comes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

# The year 2242. Linux sets no clock beyond 2232 (TIME_SETTOD_SEC_MAX in include/linux/time64.h), and so
# many seconds are less than 2^63 ns, which moves are counted in (lb/datapath/slotmaps.py).
LATEST = 1 << 33
LONGEST = 10 * 365 * 86400  # seconds
MOST = (1 << 63) - 1
LARGEST_FIGURE = 1e18  # measured outside, or a limit or margin: what is made of two is finite

# Unix seconds; before 1970, too: times move along with a clock that is set back (lb/core/health.py).
Moment = Annotated[float, Field(ge=-LATEST, le=LATEST)]
Total = Annotated[int, Field(ge=0, le=MOST)]  # of something that is counted


class Document(BaseModel):
    """Base of all documents: frozen, strict about unknown keys, and no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Report(Document):
    """Base of what nodes write, and others only read. Unknown keys are ignored: a newer node says more,
    and what an older one understands of it is true all the same. What is read and written again may not
    be one of these, as that would take away what wasn't understood."""

    model_config = ConfigDict(extra="ignore")


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
