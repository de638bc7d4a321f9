"""Text that somebody else wrote, fit for a terminal and a line of a table."""

from __future__ import annotations

import re

# Control characters (C0, DEL, C1), which move the cursor or set a title; those that turn the direction
# of writing, or end a line; and halves of surrogate pairs, which no document can hold.
_UNFIT = re.compile("[\0-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str, longest: int | None = None) -> str:
    """The text with escapes such as \\x1b for what is not to reach a terminal, cut to `longest`
    characters."""
    if longest is not None:
        text = text[: longest + 1]  # before the work
    text = _UNFIT.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    return text
